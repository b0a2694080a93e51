"""Reading a softening from the command line, and the photographs that it is calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sptrace.artifact.description import Preprocessing
from sptrace.artifact.softening import Softening
from sptrace.cli.settings import pairs
from sptrace.errors import SptraceError
from sptrace.runtime import photo


def read_softening(
    preset: str,
    tau: Sequence[str] | None,
    rule: Sequence[str] | None,
    override: Sequence[str] | None,
    scale: str | None,
) -> Softening:
    """The softening that flags ask for: --tau KIND=TAU, --rule KIND=RULE, --override PATTERN:KIND=TAU or =RULE."""
    overrides: dict[str, dict[str, Any]] = {}
    for text in override or ():
        pattern, colon, change = text.rpartition(":")
        if not colon or not pattern:
            raise SptraceError(
                f"--override {text}: write PATTERN:KIND=VALUE, for example 'layer4.*:relu=0.3'"
            )
        for kind, setting in pairs([change], "--override").items():
            overrides.setdefault(pattern, {})[kind] = _number_or_text(setting)
    temperatures = {kind: _number_or_text(text) for kind, text in pairs(tau, "--tau").items()}
    return Softening(preset, tau=temperatures, rule=pairs(rule, "--rule"), overrides=overrides, scale=scale)


def read_photographs(folder: Path, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Every photograph of a folder, prepared: float32 [M, 3, H, W]."""
    return np.concatenate(
        [photo.prepare(photo.read(path), preprocessing) for path in photo.in_folder(folder)]
    )


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
