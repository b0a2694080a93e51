from __future__ import annotations

from importlib import import_module

import pytest
from helpers.consumers import require


@pytest.fixture
def quantus() -> None:
    """Quantus, which brings an OpenCV that asks the system for libGL; where there is none, the test is skipped."""
    try:
        import_module("quantus")
    except ImportError as error:
        require(False, f"quantus ({error})")
