"""Is the ONNX program right? Measured before anything is saved.

It is run beside the torch.fx program that it was written from, and beside the independent eager reference.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from sptrace.artifact import Measured, Preprocessing, Verification
from sptrace.assemble import Assembled
from sptrace.errors import VerificationError
from sptrace.softening import Softening
from sptrace.verification.eager import reference

TOLERANCE = 1e-4
"""Largest difference, as a share of the largest value."""

HARD_TOLERANCE = 1e-2
"""Norm of the difference, as a share of the norm.

Hard gates make the gradient jump where a gate's input crosses 0. Among millions of inputs some lie closer to 0 than
float32 resolves, and two correct programs put them on different sides: on ImageNet networks that moves up to 2e-3 of
the norm, but single pixels by several percent, so the largest difference would say nothing.
"""


def verify(
    onnx_model: bytes,
    assembled: Assembled,
    network: torch.nn.Module,
    example: Tensor,
    preprocessing: Preprocessing,
    softening: Softening,
) -> Verification:
    """Run the program on the example and on a second batch size, in onnxruntime, torch.fx and eager PyTorch.

    The class explained is the predicted one. Logits are always measured by their largest difference, as a share of
    their largest value. So are attributions, within `TOLERANCE`, unless a gate is hard: then by norms, within
    `HARD_TOLERANCE`.

    Arguments:
        onnx_model: the serialized ONNX file.
        assembled: the torch.fx program that it was written from.
        network: the original module, which is not changed.
        example: float32 [N, 3, H, W] in `preprocessing.input_range`; the second batch has one sample more, the first
            one mirrored.
        preprocessing: its mean, std and input_range go to the eager reference.
        softening: its rules and temperatures go to the eager reference.

    Returns:
        What was measured, for each batch size.

    Raises:
        VerificationError: they disagree by more than the tolerance, or something is NaN.
    """
    session = onnxruntime.InferenceSession(onnx_model, providers=["CPUExecutionProvider"])
    hard = any(gate.rule == "hard" for gate in assembled.gates)
    tolerance = HARD_TOLERANCE if hard else TOLERANCE
    distance = _relative_norm if hard else _relative_maximum
    measured = []
    for images in (example, torch.cat([example, example[:1].flip(-1)])):
        target = torch.full((len(images),), -1)
        attribution, logits = session.run(
            ["attribution", "logits"], {"image": images.numpy(), "target": target.numpy()}
        )
        with torch.no_grad():
            module_attribution, module_logits = assembled.module(images, target)
        eager_attribution, eager_logits, _ = reference(
            network,
            images,
            # The class that the program predicted: two equal logits are no error of the pullback.
            torch.from_numpy(logits.argmax(axis=1)),
            rules=softening.gates(),
            mean=preprocessing.mean,
            std=preprocessing.std,
            input_range=preprocessing.input_range,
        )
        measured.append(
            Measured(
                batch=len(images),
                attribution_to_module=distance(attribution, module_attribution.numpy()),
                logits_to_module=_relative_maximum(logits, module_logits.numpy()),
                attribution_to_eager=distance(attribution, eager_attribution.numpy()),
                logits_to_eager=_relative_maximum(logits, eager_logits.numpy()),
            )
        )
    result = Verification(
        tolerance=tolerance,
        measure="norm" if hard else "maximum",
        onnxruntime=onnxruntime.__version__,
        torch=str(torch.__version__),
        batches=tuple(measured),
    )
    _refuse_disagreement(result)
    return result


def _refuse_disagreement(result: Verification) -> None:
    for batch in result.batches:
        errors = {
            "its torch.fx program": max(batch.attribution_to_module, batch.logits_to_module),
            "the eager reference": max(batch.attribution_to_eager, batch.logits_to_eager),
        }
        for other, error in errors.items():
            if not error <= result.tolerance:  # so that NaN is refused too
                raise VerificationError(
                    f"the ONNX program and {other} differ by {error:.1e} at batch size {batch.batch}, more than "
                    f"{result.tolerance:.0e}: nothing was saved; please report the network, this is an error of sptrace"
                )


def _relative_maximum(given: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    scale = float(np.abs(wanted).max()) or 1.0
    return float(np.abs(given - wanted).max()) / scale


def _relative_norm(given: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """The largest over the samples."""
    difference = np.linalg.norm((given - wanted).reshape(len(given), -1), axis=1)
    norm = np.linalg.norm(wanted.reshape(len(wanted), -1), axis=1)
    return float((difference / np.where(norm > 0, norm, 1.0)).max())
