"""What an artifact makes of the images that it is given."""

from __future__ import annotations

import numpy as np
import pytest

from sptrace.artifact.description import Preprocessing
from sptrace.runtime.checks import checked


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_tensors_with_a_history_and_of_any_precision(dtype: str) -> None:
    import torch

    how = Preprocessing(size=(4, 5))
    image = torch.linspace(-1, 1, 60, dtype=getattr(torch, dtype)).reshape(1, 3, 4, 5).requires_grad_()
    given = checked(image, how, "float32", None)
    assert given.dtype == np.float32
    assert np.array_equal(given, image.detach().float().numpy())
