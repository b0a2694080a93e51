"""The three programs on the same pictures: the ONNX file, the torch.fx program, and the eager reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from sptrace.artifact.description import SPREAD, Measured
from sptrace.compiler.reference.eager_explainer import Eager
from sptrace.compiler.verification import diagnosis
from sptrace.compiler.verification.bounds import Bounds
from sptrace.compiler.verification.diagnosis import Excess, Trouble
from sptrace.compiler.verification.distances import Distance, Numbers, along, of_maxima, of_norms, of_values
from sptrace.compiler.verification.references import Reference


@dataclass(frozen=True)
class Pictures:
    """Pictures of one origin.

    Arguments:
        name: for messages.
        images: float32 [N, 3, H, W].
        rank: what is explained: 0: the class of the largest logit, which is not named; or that of the second largest
            (1) or third, of the picture before it, by its number.
    """

    name: str
    images: Tensor
    rank: int = 0


@dataclass(frozen=True)
class Found:
    """What keeps the given pictures, and the one beside them, from being compared; None: nothing, they agree."""

    given: Trouble | None
    beside: Trouble | None
    measured: tuple[Measured, ...]


@dataclass(frozen=True)
class _Answers:
    """Of the ONNX program and of the torch.fx program about pictures of one origin, in a batch of that size."""

    batch: int
    onnx: Mapping[str, Numbers]
    module: Mapping[str, Numbers]


@dataclass(frozen=True)
class _Error:
    """The distances of an output from another program's, float64 [N], and what they may be.

    `doubt` is by how much gates in doubt have widened that.
    """

    what: str
    other: str
    batch: int
    distances: NDArray[np.float64]
    allowed: float | NDArray[np.float64]
    measure: Distance
    doubt: float = 0.0


Part = tuple[Reference, tuple[_Answers, ...]]
MODULE, EAGER = "its torch.fx program", "the eager reference"


class Trial:
    """Runs them side by side.

    Arguments:
        session: the ONNX program.
        module: the torch.fx program.
        eager: the reference, whose run-time settings all get.
        bounds: how far they may be apart.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        module: torch.fx.GraphModule,
        eager: Eager,
        bounds: Bounds,
    ) -> None:
        self._session = session
        self._module = module
        self._eager = eager
        self._bounds = bounds
        self._names = [item.name for item in session.get_outputs()]
        (self._neuron,) = (item for item in session.get_inputs() if item.name in ("target", "direction"))
        self.settings = {
            item.name: eager.settings[item.name] for item in session.get_overridable_initializers()
        }

    def examine(self, given: Pictures, beside: Pictures) -> Found:
        """Compare the programs on the given pictures, and then on them with the one beside.

        Raises:
            VerificationError: they disagree, and the pictures are not to blame.
        """
        images, count = torch.cat([given.images, beside.images]), len(given.images)
        explained = self._explained(len(images))
        alone = self._run(given.images, explained[:count])
        if not explained.is_floating_point():
            explained[count:] = self._ranked(alone, beside.rank)
        both = self._run(images, explained)
        with torch.no_grad():
            outputs = self._module(images, explained, **self.settings)
        module = {name: output.numpy() for name, output in zip(self._names, outputs, strict=True)}
        first, rest = slice(0, count), slice(count, None)
        of_given = _cut(module, first)
        parts = (
            self._part(
                given,
                explained[first],
                _Answers(count, alone, of_given),
                _Answers(len(images), _cut(both, first), of_given),
            ),
            self._part(beside, explained[rest], _Answers(len(images), _cut(both, rest), _cut(module, rest))),
        )
        return self._judged(*parts)

    def _explained(self, pictures: int) -> Tensor:
        """A target of -1 for every picture, or a direction for each."""
        if self._neuron.name == "target":
            return torch.full((pictures,), -1)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(pictures, self._neuron.shape[1], generator=generator, dtype=torch.float32)

    def _run(self, images: Tensor, explained: Tensor) -> dict[str, Numbers]:
        feeds: dict[str, NDArray[Any]] = {
            name: np.array(setting, dtype=np.int64 if isinstance(setting, int) else np.float32)
            for name, setting in self.settings.items()
        }
        feeds |= {"image": images.numpy(), self._neuron.name: explained.numpy()}
        # What a run takes is given back before the next program runs: two may not fit into memory.
        how = onnxruntime.RunOptions()
        how.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return dict(zip(self._names, self._session.run(self._names, feeds, how), strict=True))

    @staticmethod
    def _ranked(answers: Mapping[str, Numbers], rank: int) -> int:
        """The class or channel that is that far from being the largest; -1 for the largest."""
        values = answers.get("activation", answers["logits"])[0]
        return int(values.argsort()[-1 - min(rank, len(values) - 1)]) if rank else -1

    def _part(self, pictures: Pictures, explained: Tensor, *answers: _Answers) -> Part:
        if not explained.is_floating_point() and pictures.rank == 0:
            # What the program itself took for the largest: two equal logits are no error of the pullback.
            explained = self._resolved(answers[0].onnx)
        of_a_layer = "activation" in self._names
        reference = Reference(
            self._eager, pictures.name, pictures.images, explained, of_a_layer, self._bounds.jitter
        )
        return reference, answers

    def _resolved(self, answers: Mapping[str, Numbers]) -> Tensor:
        """What a target of -1 stands for, int64 [N]."""
        values = answers.get("activation", answers["logits"])
        is_pair = self._eager.outputs.is_pair and "activation" not in answers
        unit = 1 if is_pair else self._eager.settings.get("unit")
        return torch.from_numpy(values.argmax(axis=1)) if unit is None else torch.full((len(values),), unit)

    def _judged(self, given: Part, beside: Part) -> Found:
        steady = {
            name: (answers == answers[:1]).all(0)
            for name in given[0].answers
            if name != "attribution"
            for answers in [np.concatenate([reference.answers[name] for reference, _ in (given, beside)])]
        }
        troubles: list[Trouble | None] = []
        errors: list[_Error] = []
        for reference, answers in (given, beside):
            trouble = diagnosis.without_answer(reference)
            found = [] if trouble else list(self._errors(reference, answers, steady))
            for error in found:
                trouble = trouble or self._trouble(reference, error)
            troubles.append(trouble or diagnosis.without_slope(reference, steady["logits"]))
            errors += found
        sizes = (len(given[0].images), len(given[0].images) + 1)
        measured = () if any(troubles) else tuple(_measured(size, errors) for size in sizes)
        of_given, of_beside = troubles
        return Found(of_given, of_beside, measured)

    def _errors(
        self, reference: Reference, several: Sequence[_Answers], steady: Mapping[str, NDArray[np.bool_]]
    ) -> Iterator[_Error]:
        for answers in several:
            for name, of_eager in reference.answers.items():
                for other, wanted in ((MODULE, answers.module[name]), (EAGER, of_eager)):
                    if name == "attribution":
                        yield from self._of_attributions(reference, other, answers, wanted)
                        continue
                    measure = partial(of_values, steady=steady[name])
                    distances = measure(answers.onnx[name], wanted)
                    yield _Error(name, other, answers.batch, distances, self._bounds.values, measure)
            if "logits_out" in answers.onnx:
                there = self._eager.logits(torch.from_numpy(answers.onnx["image_out"])).numpy()
                measure = partial(of_values, steady=steady["logits"])
                distances = measure(answers.onnx["logits_out"], there)
                yield _Error("logits", EAGER, answers.batch, distances, self._bounds.values, measure)

    def _of_attributions(
        self, reference: Reference, other: str, answers: _Answers, wanted: Numbers
    ) -> Iterator[_Error]:
        given, bounds = answers.onnx["attribution"], self._bounds
        if bounds.jitter is None:
            distances = of_maxima(given, wanted)
            yield _Error("attribution", other, answers.batch, distances, bounds.attributions, of_maxima)
            return
        distances = of_norms(given, wanted)
        doubtful = ~(distances <= bounds.attributions)
        # Six times the work, so only for whom it matters.
        doubt = bounds.bounded(reference.doubt(of_norms)) * doubtful if doubtful.any() else np.zeros(1)
        allowed = bounds.attributions + SPREAD * doubt
        yield _Error("attribution", other, answers.batch, distances, allowed, of_norms, float(doubt.max()))
        if doubtful.any():
            # Gates in doubt widen the bound, but not for a wrong factor: see `along`.
            allowed = bounds.attributions + SPREAD * bounds.bounded(reference.doubt(along))
            yield _Error("attribution", other, answers.batch, along(given, wanted), allowed, along)

    def _trouble(self, reference: Reference, error: _Error) -> Trouble | None:
        """None if the error is within its bound.

        Raises:
            VerificationError: it is not, and the pictures are not to blame.
        """
        allowed = np.broadcast_to(error.allowed, error.distances.shape)
        if (error.distances <= allowed).all():  # so that NaN is refused too
            return None
        worst = int(np.argmax(error.distances / allowed))
        excess = Excess(
            error.what,
            error.other,
            error.batch,
            float(error.distances[worst]),
            float(allowed[worst]),
            error.measure,
        )
        return diagnosis.undecided(reference, excess, self._bounds)


def _measured(batch: int, errors: Sequence[_Error]) -> Measured:
    """What is recorded about one batch size."""
    own = [error for error in errors if error.batch == batch and error.measure is not along]

    def worst(what: str, other: str) -> float:
        return max(
            float(error.distances.max()) for error in own if (error.what, error.other) == (what, other)
        )

    of_a_layer = any(error.what == "activation" for error in own)
    return Measured(
        batch=batch,
        attribution_to_module=worst("attribution", MODULE),
        logits_to_module=worst("logits", MODULE),
        attribution_to_eager=worst("attribution", EAGER),
        logits_to_eager=worst("logits", EAGER),
        doubt=max(error.doubt for error in own),
        activation_to_module=worst("activation", MODULE) if of_a_layer else None,
        activation_to_eager=worst("activation", EAGER) if of_a_layer else None,
    )


def _cut(outputs: Mapping[str, Numbers], place: slice) -> dict[str, Numbers]:
    return {name: output[place] for name, output in outputs.items()}
