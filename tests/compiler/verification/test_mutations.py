"""Verification refuses every wrong rule and every wrong emitter, whatever the example.

A rule or an emitter is made wrong in one way at a time: by its sign, by 1 %, or by a term that is dropped. Networks
that reach it (`mutation_networks.py`) are compiled with it, and must be refused with each of the examples.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from helpers.mutation_networks import EXAMPLES, NETWORKS, Network
from onnx.shape_inference import InferenceError
from torch import Tensor, fx

from sptrace.artifact.description import Preprocessing
from sptrace.artifact.programs import program_kind
from sptrace.artifact.softening import RULES, Softening
from sptrace.compiler.assemble import Assembled, assemble
from sptrace.compiler.capture import from_torch
from sptrace.compiler.compile import _jumps
from sptrace.compiler.composition import compose
from sptrace.compiler.emission import EMITTERS, emit, saving
from sptrace.compiler.graph.builder import aten, shape, value
from sptrace.compiler.pullback import TABLE
from sptrace.compiler.reference.eager_explainer import Eager
from sptrace.compiler.verification.verify import verify
from sptrace.errors import VerificationError

pytestmark = pytest.mark.filterwarnings("ignore::sptrace.SptraceWarning")
PREPROCESSING = Preprocessing(size=(8, 8))


class Remembering(Eager):
    """The reference does not depend on what is made wrong: each question is answered once."""

    def __call__(
        self, image: Tensor, target: Tensor, jitter: float = 0.0, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        answers = self.__dict__.setdefault("known", {})
        key = (image.numpy().tobytes(), target.numpy().tobytes(), jitter, seed)
        if key not in answers:
            answers[key] = super().__call__(image, target, jitter, seed)
        return answers[key]


@dataclass(frozen=True)
class Case:
    """A network captured once; assembled and written as often as something is made wrong."""

    network: Network
    captured: fx.GraphModule
    softening: Softening
    settings: dict[str, Any]

    @staticmethod
    def of(network: Network) -> Case:
        kind = program_kind(network.program)
        return Case(
            network,
            from_torch.capture(network.module(), EXAMPLES["random"], network.settings.get("layer")),
            kind.softening(Softening(network.preset)),
            kind.settings(network.settings),
        )

    def assembled(self) -> Assembled:
        """With the table of rules as it is now."""
        return assemble(copy.deepcopy(self.captured), PREPROCESSING, self.softening)

    @functools.cached_property
    def right(self) -> Assembled:
        return self.assembled()

    @functools.cached_property
    def eager(self) -> Remembering:
        network = self.network
        settings = program_kind(network.program).for_verification(self.settings, _jumps(self.right))
        return Remembering(network.program, settings, network.module(), PREPROCESSING, self.softening)

    def written(self, assembled: Assembled) -> tuple[fx.GraphModule, bytes]:
        """With the table of emitters as it is now."""
        module = compose(self.network.program, copy.deepcopy(assembled), self.settings)
        return module, saving.to_bytes(emit(module, "network"))

    def is_refused(self, assembled: Assembled, examples: Sequence[str]) -> bool:
        """With each of the examples? Or by the checker of ONNX files, before anything is compared."""
        try:
            module, model = self.written(assembled)
        except InferenceError:
            return True
        return all(self._is_refused(module, model, EXAMPLES[name]) for name in examples)

    def _is_refused(self, module: fx.GraphModule, model: bytes, example: Tensor) -> bool:
        try:
            verify(model, module, self.eager, example, _jumps(self.right))
        except VerificationError:
            return True
        return False


TRIED = 3
"""Networks that a mistake is looked for in: signs may cancel in one of them."""

AS_RESHAPE = "`canonicalize_shapes` makes it a reshape"
UNREACHED_RULES: dict[str, str] = {
    f"aten.{name}": AS_RESHAPE
    for name in (
        "view.default",
        "_unsafe_view.default",
        "flatten.using_ints",
        "unflatten.int",
        "unsqueeze.default",
        "squeeze.default",
        "squeeze.dim",
        "squeeze.dims",
    )
}
UNREACHED_EMITTERS: dict[str, str] = {
    "aten.squeeze.dim": "of a product whose vector depends on the picture: without a batch there is none",
}
INVISIBLE_RULES: dict[str, dict[str, str]] = {}
"""What no number shows, with the reason."""
INVISIBLE_EMITTERS: dict[str, dict[str, str]] = {
    "aten.max_pool2d.default": dict.fromkeys(
        ("sign", "1 %"), "of a pullback: what exponentials are kept in range by, and it cancels"
    ),
    "aten.zeros_like.default": dict.fromkeys(("sign", "1 %"), "zero times anything"),
}


def named(target: Any) -> str:
    """An op as it is written."""
    return target.__name__ if inspect.isfunction(target) else str(target)


# --- What can be wrong with a rule ---

Key = tuple[Any, str | None]
"""An op, and for a gate its rule."""


@dataclass
class Reach:
    """What a network makes of a rule: how often, with how many cotangents, and how many sums in it."""

    uses: int = 0
    cotangents: int = 0
    sums: int = 0

    @property
    def order(self) -> tuple[int, int, int]:
        """Those where most can be wrong first, and of these the simplest."""
        return -self.cotangents, -self.sums, self.uses


class Summing:
    """The builder that a rule writes with; counts sums in it, and leaves the last term out of one of them."""

    def __init__(self, pull: Any, dropped: int | None) -> None:
        self._pull = pull
        self._dropped = dropped
        self.sums = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pull, name)

    def call(self, target: Any, *arguments: Any, **options: Any) -> fx.Node:
        result = self._pull.call(target, *arguments, **options)
        if target not in SUMS or shape(arguments[0]) != shape(result):
            return result
        self.sums += 1
        return arguments[0] if self.sums - 1 == self._dropped else result


SUMS = (aten.add.Tensor, aten.sub.Tensor)


def watched(reached: dict[Key, Reach], target: Any) -> Callable[..., Iterator[Any]]:
    """The rule of an op, which notes what it does."""
    right = TABLE[target]

    def rule(pull: Any, v: Any, y: fx.Node, *arguments: Any, **options: Any) -> Iterator[Any]:
        summing = Summing(pull, None)
        reach = reached.setdefault((target, y.kwargs.get("rule")), Reach())
        reach.uses += 1
        count = 0
        for argument, part in right(summing, v, y, *arguments, **options):
            count += part is not None and pull.needs(argument)
            yield argument, part
        reach.cotangents, reach.sums = max(reach.cotangents, count), max(reach.sums, summing.sums)

    return rule


def scaled(key: Key, index: int, factor: float) -> Callable[..., Iterator[Any]]:
    """The rule whose cotangent of that number is multiplied by something."""
    right = TABLE[key[0]]

    def rule(pull: Any, v: Any, y: fx.Node, *arguments: Any, **options: Any) -> Iterator[Any]:
        count = 0
        for argument, part in right(pull, v, y, *arguments, **options):
            if part is not None and pull.needs(argument) and y.kwargs.get("rule") == key[1]:
                part = pull.times(part, factor) if count == index else part
                count += 1
            yield argument, part

    return rule


def shortened(key: Key, dropped: int) -> Callable[..., Iterator[Any]]:
    """The rule one of whose sums lacks its last term."""
    right = TABLE[key[0]]

    def rule(pull: Any, v: Any, y: fx.Node, *arguments: Any, **options: Any) -> Iterator[Any]:
        here = y.kwargs.get("rule") == key[1]
        yield from right(Summing(pull, dropped) if here else pull, v, y, *arguments, **options)

    return rule


def wrong_rules(key: Key, reach: Reach) -> Iterator[tuple[str, Callable[..., Iterator[Any]]]]:
    """With what is wrong."""
    for index in range(reach.cotangents):
        yield f"sign of cotangent {index}", scaled(key, index, -1.0)
        yield f"1 % of cotangent {index}", scaled(key, index, 1.01)
        if reach.cotangents > 1:
            yield f"cotangent {index} dropped", scaled(key, index, 0.0)
    for index in sorted({*range(min(reach.sums, 3)), *([reach.sums - 1] if reach.sums else [])}):
        yield f"term of sum {index} dropped", shortened(key, index)


# --- What can be wrong with an emitter ---


class Dropping:
    """The ONNX builder that an emitter writes with; leaves a term out: of a sum, or the bias of a layer."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self.dropped = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._onnx, name)

    def op(self, op_type: str, *inputs: Any, **attributes: Any) -> ir.Value:
        if op_type in ("Add", "Sub") and not self.dropped:
            self.dropped += 1
            return self._onnx.op("Identity", inputs[0])
        if op_type in BIASED and len(inputs) > 2 and not self.dropped:
            self.dropped += 1
            inputs = (*inputs[:2], *inputs[3:])
        return self._onnx.op(op_type, *inputs, **attributes)


BIASED = ("Conv", "ConvTranspose", "Gemm", "LayerNormalization")


def wrong_emitters(target: Any) -> Iterator[tuple[str, Callable[..., ir.Value]]]:
    """With what is wrong; the wrong one of a number that is no float answers None to what it cannot be."""
    right = EMITTERS[target]

    def sign(onnx: Any, node: fx.Node, *arguments: Any, **options: Any) -> ir.Value:
        result = right(onnx, node, *arguments, **options)
        return onnx.op("Not" if value(node).dtype == torch.bool else "Neg", result)

    def hundredth(onnx: Any, node: fx.Node, *arguments: Any, **options: Any) -> ir.Value:
        result = right(onnx, node, *arguments, **options)
        if not value(node).dtype.is_floating_point:
            raise InapplicableError
        return onnx.op("Mul", result, np.float32(1.01))

    def dropped(onnx: Any, node: fx.Node, *arguments: Any, **options: Any) -> ir.Value:
        dropping = Dropping(onnx)
        result = right(dropping, node, *arguments, **options)
        if not dropping.dropped:
            raise InapplicableError
        return result

    yield "sign", sign
    yield "1 %", hundredth
    yield "term dropped", dropped


class InapplicableError(Exception):
    """Whole numbers and truths are never off by 1 %, and what has one term loses none."""


# --- The proof ---


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {name: Case.of(network) for name, network in NETWORKS.items()}


@dataclass(frozen=True)
class Reached:
    """What networks reach: for every rule and every emitter the names of those that do, the simplest first."""

    rules: dict[Key, dict[str, Reach]]
    emitters: dict[Any, list[str]]
    gates: set[tuple[str, str]]


@pytest.fixture(scope="module")
def reached(cases: dict[str, Case]) -> Reached:
    rules: dict[Key, dict[str, Reach]] = {}
    emitters: dict[Any, dict[str, int]] = {}
    gates = set()
    for name, case in cases.items():
        found: dict[Key, Reach] = {}
        used: Counter[Any] = Counter()
        with pytest.MonkeyPatch.context() as patch:
            for target in TABLE:
                patch.setitem(TABLE, target, watched(found, target))
            case.assembled()
        with pytest.MonkeyPatch.context() as patch:
            for target in EMITTERS:
                patch.setitem(EMITTERS, target, counted(used, target))
            case.written(case.right)
        gates |= {(gate.kind, gate.rule) for gate in case.right.gates}
        for key, reach in found.items():
            rules.setdefault(key, {})[name] = reach
        for target, uses in used.items():
            emitters.setdefault(target, {})[name] = uses
    simplest = {target: sorted(names, key=names.__getitem__) for target, names in emitters.items()}
    return Reached(rules, simplest, gates)


def counted(used: Counter[Any], target: Any) -> Callable[..., ir.Value]:
    right = EMITTERS[target]

    def emitter(onnx: Any, node: fx.Node, *arguments: Any, **options: Any) -> ir.Value:
        used[target] += 1
        return right(onnx, node, *arguments, **options)

    return emitter


some_examples = pytest.mark.parametrize("examples", [tuple(EXAMPLES)], ids="-".join)


@some_examples
def test_every_network_is_right(cases: dict[str, Case], examples: Sequence[str]) -> None:
    """Each with one of the examples, by turns."""
    refused = [
        (name, example)
        for (name, case), example in zip(cases.items(), itertools.cycle(examples), strict=False)
        if case.is_refused(case.right, [example])
    ]
    assert refused == []


def test_every_rule_and_every_emitter_is_reached(reached: Reached) -> None:
    """Or it stands in a list with the reason."""
    kinds = {(kind, rule) for kind, rules in RULES.items() for rule in rules}
    assert kinds - reached.gates == set()
    assert {str(target) for target in TABLE} - {str(target) for target, _ in reached.rules} == set(
        UNREACHED_RULES
    )
    assert {str(target) for target in EMITTERS} - {str(target) for target in reached.emitters} == set(
        UNREACHED_EMITTERS
    )


@some_examples
@pytest.mark.parametrize("target", TABLE, ids=named)
def test_wrong_rules_are_refused(
    target: Any, examples: Sequence[str], cases: dict[str, Case], reached: Reached
) -> None:
    passed = []
    for key, networks in reached.rules.items():
        if key[0] is not target:
            continue
        best = sorted(
            networks, key=lambda name: (-networks[name].cotangents, -networks[name].sums, networks[name].uses)
        )
        for what, rule in wrong_rules(key, networks[best[0]]):
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(TABLE, target, rule)
                if not any(
                    cases[name].is_refused(cases[name].assembled(), examples) for name in best[:TRIED]
                ):
                    passed.append(f"{key[1]}: {what}" if key[1] else what)
    assert passed == list(INVISIBLE_RULES.get(named(target), {}))


@some_examples
@pytest.mark.parametrize("target", EMITTERS, ids=named)
def test_wrong_emitters_are_refused(
    target: Any, examples: Sequence[str], cases: dict[str, Case], reached: Reached
) -> None:
    passed = []
    names = reached.emitters.get(target, [])[:TRIED]
    for what, emitter in wrong_emitters(target) if names else ():
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(EMITTERS, target, emitter)
            try:
                if not any(cases[name].is_refused(cases[name].right, examples) for name in names):
                    passed.append(what)
            except InapplicableError:
                continue
    assert passed == list(INVISIBLE_EMITTERS.get(named(target), {}))
