"""Is the ONNX program right? Measured before anything is saved.

It is run beside the torch.fx program that it was written from, and beside the independent eager reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from sptrace.artifact import Measured, Verification
from sptrace.errors import VerificationError
from sptrace.programs import program_kind
from sptrace.verification.eager_explainer import Eager

TOLERANCE = 1e-4
"""Largest difference, as a share of the largest value."""

JITTER = 3e-6
"""How close to its threshold, in standard deviations of its layer, a hard gate's input is in doubt.

Hard gates make the gradient jump where a gate's input crosses 0. Among millions of inputs some lie closer to 0 than
float32 resolves, and two correct programs put them on different sides: that moves up to a percent of the gradient's
norm, and single pixels by more. So the eager reference is repeated with such gates thrown to either side.
"""

HALF = 5e-2
"""The tolerance in half precision, whose numbers have 11 bits: of attributions and logits.

Measured: soft pullbacks 1e-3 (ResNet-18, ConvNeXt-T, PVTv2-b1) to 1e-2 (EfficientNet-Lite0), its ascent, which
walks on from what it found, 4e-2; logits 5e-3. Networks whose cotangents span more than half precision's range are
further off, and refused.
"""

HALF_JITTER = 2e-3
"""`JITTER` in half precision."""

DOUBTS = 6
"""How often it is repeated: a gate in doubt stays on its side every time with probability 1/64."""

Distance = Callable[[NDArray[np.float32], NDArray[np.float32]], float]

SPREAD = 4.0
"""How many times the distance between those repetitions a program may be away from the reference."""


def verify(
    onnx_model: bytes | str,
    module: torch.fx.GraphModule,
    eager: Eager,
    example: Tensor,
    hard: bool,
    *,
    half: bool = False,
) -> Verification:
    """Run the program on the example and on a second batch size, in onnxruntime, torch.fx and eager PyTorch.

    What is explained is what a target of -1 stands for, or a random direction; the program's run-time settings are
    those of `eager`. Errors are the largest difference, as a share of the largest value. If a gate is hard,
    attributions are measured by the L2 norm instead, as a share of the norm, and may also differ by what gates in
    doubt explain (see `JITTER`). The eager program is run on the example and on the further sample apart, the torch.fx
    program on the example alone.

    Arguments:
        onnx_model: the serialized ONNX file, or its path.
        module: the torch.fx program that it was written from.
        eager: the same program, independently.
        example: float32 [N, 3, H, W] in the input's range; the second batch has one sample more, the first one
            mirrored.
        hard: is there a hard gate?
        half: is the program in half precision? Eager PyTorch computes in float32 all the same.

    Returns:
        What was measured, for each batch size.

    Raises:
        VerificationError: they disagree by more than the tolerance, or something is NaN.
    """
    session = onnxruntime.InferenceSession(onnx_model, quiet(), providers=["CPUExecutionProvider"])
    settings = {item.name: eager.settings[item.name] for item in session.get_overridable_initializers()}
    (neuron,) = (item for item in session.get_inputs() if item.name in ("target", "direction"))
    names = [item.name for item in session.get_outputs()]
    feeds: dict[str, NDArray[Any]] = {
        name: np.array(setting, dtype=_dtype(setting)) for name, setting in settings.items()
    }
    parts = (example, example[:1].flip(-1))
    explained = _chosen(neuron, len(example) + 1)
    with torch.no_grad():
        of_module = dict(zip(names, module(example, explained[: len(example)], **settings), strict=True))
    references = _References(eager, "activation" in names, hard, HALF_JITTER if half else JITTER)
    measured = []
    for count in (1, 2):
        images = torch.cat(parts[:count])
        chosen = explained[: len(images)]
        feeds |= {"image": images.numpy(), neuron.name: chosen.numpy()}
        answers = dict(zip(names, session.run(names, feeds), strict=True))
        # What the program itself took for the largest: two equal logits are no error of the pullback.
        resolved = chosen if neuron.name == "direction" else _resolved(answers, eager)
        places = [slice(0, len(example)), slice(len(example), None)][:count]
        each = [references.of(part, resolved[place]) for part, place in zip(parts, places, strict=False)]
        measured.append(_compare(answers, of_module, each, eager, hard))
    result = Verification(
        tolerance=HALF if half else program_kind(eager.program).tolerance,
        measure="norm" if hard else "maximum",
        settings=settings,
        onnxruntime=onnxruntime.__version__,
        torch=str(torch.__version__),
        batches=tuple(measured),
    )
    _refuse_disagreement(result, half)
    return result


@dataclass(frozen=True)
class _Reference:
    """What eager PyTorch answers to some pictures, by the names of the outputs.

    `doubts` are its attributions with gates in doubt thrown to either side.
    """

    answers: dict[str, NDArray[np.float32]]
    doubts: list[NDArray[np.float32]]


class _References:
    """References by pictures and what is explained of them: those of a batch are computed in parts, each once.

    A picture's answer must not depend on its batch, and large networks take their time.
    """

    def __init__(self, eager: Eager, of_a_layer: bool, hard: bool, jitter: float) -> None:
        self.eager = eager
        self.jitter = jitter
        self.of_a_layer = of_a_layer
        self.seeds = range(DOUBTS if hard else 0)
        self.known: dict[bytes, _Reference] = {}

    def of(self, images: Tensor, resolved: Tensor) -> _Reference:
        """For images, float32 [N, 3, H, W], and what is explained of them, a target or a direction."""
        key = images.numpy().tobytes() + resolved.numpy().tobytes()
        if key not in self.known:
            attribution, logits = self.eager(images, resolved)
            answers = {"attribution": attribution.numpy(), "logits": logits.numpy()}
            if self.of_a_layer:
                answers["activation"] = self.eager.activation(images).numpy()
            doubts = [self.eager(images, resolved, self.jitter, seed)[0].numpy() for seed in self.seeds]
            self.known[key] = _Reference(answers, doubts)
        return self.known[key]


def _compare(
    answers: Mapping[str, NDArray[np.float32]],
    of_module: Mapping[str, Tensor],
    each: Sequence[_Reference],
    eager: Eager,
    hard: bool,
) -> Measured:
    """The answers of the ONNX program to a batch against those of the torch.fx program and of eager PyTorch."""
    measure = _relative_norm if hard else _relative_maximum

    def to_module(name: str, measure: Distance = _relative_maximum) -> float:
        wanted = of_module[name].numpy()
        return measure(answers[name][: len(wanted)], wanted)

    def to_eager(name: str, measure: Distance = _relative_maximum) -> float:
        return measure(answers[name], np.concatenate([part.answers[name] for part in each]))

    logits_to_eager = to_eager("logits")
    if "logits_out" in answers:
        there = eager.logits(torch.from_numpy(answers["image_out"])).numpy()
        logits_to_eager = max(logits_to_eager, _relative_maximum(answers["logits_out"], there))
    attribution = np.concatenate([part.answers["attribution"] for part in each])
    doubts = [np.concatenate(doubt) for doubt in zip(*(part.doubts for part in each), strict=True)]
    of_a_layer = "activation" in answers
    return Measured(
        batch=len(answers["logits"]),
        attribution_to_module=to_module("attribution", measure),
        logits_to_module=to_module("logits"),
        attribution_to_eager=to_eager("attribution", measure),
        logits_to_eager=logits_to_eager,
        doubt=max((measure(doubt, attribution) for doubt in doubts), default=0.0),
        activation_to_module=to_module("activation") if of_a_layer else None,
        activation_to_eager=to_eager("activation") if of_a_layer else None,
    )


def _chosen(neuron: onnxruntime.NodeArg, pictures: int) -> Tensor:
    """What is explained: -1 for every picture, or a direction for each."""
    if neuron.name == "target":
        return torch.full((pictures,), -1)
    return torch.randn(pictures, neuron.shape[1], generator=torch.Generator().manual_seed(0))


def _resolved(answers: Mapping[str, NDArray[np.float32]], eager: Eager) -> Tensor:
    """What a target of -1 stands for, int64 [N]."""
    values = answers.get("activation", answers["logits"])
    unit = 1 if eager.outputs.is_pair and "activation" not in answers else eager.settings.get("unit")
    return torch.from_numpy(values.argmax(axis=1)) if unit is None else torch.full((len(values),), unit)


def _dtype(setting: float) -> type:
    return np.int64 if isinstance(setting, int) else np.float32


def quiet() -> onnxruntime.SessionOptions:
    """Without the warning that steps, alpha and so on are inputs with defaults; they are meant to be."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def _refuse_disagreement(result: Verification, half: bool) -> None:
    of_values = HALF if half else TOLERANCE
    advice = (
        "half precision is too coarse for this network, compile it with precision fp32"
        if half
        else "please report the network, this is an error of sptrace"
    )
    for batch in result.batches:
        allowed = result.tolerance + SPREAD * batch.doubt
        for what, other, error, tolerance in (
            ("attribution", "its torch.fx program", batch.attribution_to_module, allowed),
            ("attribution", "the eager reference", batch.attribution_to_eager, allowed),
            ("logits", "its torch.fx program", batch.logits_to_module, of_values),
            ("logits", "the eager reference", batch.logits_to_eager, of_values),
            ("activation", "its torch.fx program", batch.activation_to_module, of_values),
            ("activation", "the eager reference", batch.activation_to_eager, of_values),
        ):
            if error is not None and not error <= tolerance:  # so that NaN is refused too
                raise VerificationError(
                    f"the {what} of the ONNX program and of {other} differ by {error:.1e} at batch size "
                    f"{batch.batch}, more than {tolerance:.0e}: nothing was saved; {advice}"
                )


def _relative_maximum(given: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    # Where nothing is wanted, all that is given is wrong.
    scale = float(np.abs(wanted).max()) or float(np.abs(given).max()) or 1.0
    return float(np.abs(given - wanted).max()) / scale


def _relative_norm(given: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """The largest over the samples."""
    difference = np.linalg.norm((given - wanted).reshape(len(given), -1), axis=1)
    norm = np.linalg.norm(wanted.reshape(len(wanted), -1), axis=1)
    return float((difference / np.where(norm > 0, norm, 1.0)).max())
