"""Does an artifact that takes photographs prepare them as `sptrace.photo` does, and then give the same answers?"""

from __future__ import annotations

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from sptrace.artifact.description import Preprocessing
from sptrace.compiler.emission import saving
from sptrace.compiler.emission.photographs import preparation
from sptrace.compiler.verification.bounds import TOLERANCE
from sptrace.compiler.verification.verify import quiet
from sptrace.errors import VerificationError
from sptrace.runtime import photo

LEVELS = 1.0
"""How far a prepared pixel may be from Pillow's, in levels of 255: sums that end on one half may round either way."""


def verify_pictures(
    taking: bytes | str, prepared: bytes | str, how: Preprocessing, levels: float = LEVELS
) -> float:
    """Run a program that takes photographs beside the same program that takes them prepared.

    Two pictures, one larger and one smaller than the network's grid, are prepared by Pillow and by the file. Then
    both programs are given what the file made of the larger one.

    Arguments:
        taking: the serialized file that takes uint8 [N, H, W, 3], or its path.
        prepared: the one that takes float32 [N, 3, height, width].
        how: how photographs are prepared.
        levels: how far a pixel may be from Pillow's.

    Returns:
        The largest difference from Pillow, in levels of 255.

    Raises:
        VerificationError: the difference is larger than `levels`, or answers differ by more than `TOLERANCE`.
    """
    preparing = _session(saving.to_bytes(preparation(how)))
    height, width = how.size
    low, high = how.input_range
    worst = 0.0
    for picture in (_picture(height // 2 + 1, width // 2 + 3), _picture(height + height // 3, 2 * width + 1)):
        (given,) = preparing.run(None, {"image": picture})
        by_pillow = photo.prepare(Image.fromarray(picture[0]), how)
        worst = max(worst, float(np.abs(given - by_pillow).max()) * 255 / (high - low))
    if not worst <= levels + 1e-3:
        raise VerificationError(
            f"the artifact prepares photographs otherwise than Pillow does, by {worst:.1f} levels of 255 "
            f"(allowed {levels:g}): compile with input float32"
        )
    _compare(_session(taking), {"image": picture}, _session(prepared), {"image": given})
    return worst


def _compare(
    taking: onnxruntime.InferenceSession,
    raw: dict[str, NDArray[np.uint8]],
    plain: onnxruntime.InferenceSession,
    prepared: dict[str, NDArray[np.float32]],
) -> None:
    names = [item.name for item in plain.get_outputs()]
    (neuron,) = (item for item in plain.get_inputs() if item.name != "image")
    chosen = np.full(1, -1) if neuron.name == "target" else np.ones((1, neuron.shape[1]), np.float32)
    answers = taking.run(names, {**raw, neuron.name: chosen})
    wanted = plain.run(names, {**prepared, neuron.name: chosen})
    for name, answer, other in zip(names, answers, wanted, strict=True):
        error = float(np.abs(answer - other).max()) / (float(np.abs(other).max()) or 1.0)
        if not error <= TOLERANCE:
            raise VerificationError(
                f"{name} of a photograph differs from that of its prepared image by {error:.1e}"
            )


def _picture(height: int, width: int) -> NDArray[np.uint8]:
    """Waves and noise, uint8 [1, height, width, 3], the same everywhere."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / period) * np.cos(columns / (period + 3)) for period in (5.0, 11.0, 23.0)]
    noise = np.random.default_rng(0).uniform(-1, 1, (height, width, 3))
    return np.clip(128 + 70 * np.stack(waves, axis=-1) + 40 * noise, 0, 255).astype(np.uint8)[None]


def _session(model: bytes | str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, quiet(), providers=["CPUExecutionProvider"])
