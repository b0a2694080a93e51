"""The table of transposition rules: for every op, the cotangents of its inputs given that of its output.

A rule is a generator

    @adjoint(aten.mm.default)
    def mm(pull, v, y, a, b):
        yield a, v b^T
        yield b, a^T v

called with the builder, the cotangent `v`, the node itself, and the node's arguments as the op's schema names them.
It yields pairs (input node, its cotangent), the cotangent in the shape of that input; None says that the method gives
this input no cotangent. An input that needs a cotangent and is not named is an error of the walk, so a rule may leave
out what it does not support. A rule for an op with several
outputs gets `v` as a dict, from the index of every output that was read to its cotangent. A rule that has a reason to
refuse raises UnsupportedError with the reason alone; the walk adds what and where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder, aten, shape
from sptrace.compiler.graph.facts import Target
from sptrace.compiler.graph.sizes import BatchSize
from sptrace.errors import UnsupportedError

Cotangents = Iterator[tuple[fx.Node, fx.Node | None]]
Rule = Callable[..., Cotangents]

TABLE: dict[Target, Rule] = {}


def adjoint(*targets: Target) -> Callable[[Rule], Rule]:
    """Enter a rule into the table under the ops that it transposes."""

    def enter(rule: Rule) -> Rule:
        for target in targets:
            assert target not in TABLE, f"{target} has two rules"
            TABLE[target] = rule
        return rule

    return enter


class Pull(GraphBuilder):
    """The builder that rules write the pullback with.

    Arguments:
        module: the graph module that grows.
        needed: the nodes that depend on the image; only they have cotangents.
    """

    def __init__(self, module: fx.GraphModule, needed: set[fx.Node]) -> None:
        super().__init__(module)
        self._needed = needed
        self._unbounded: set[fx.Node] = set()

    def needs(self, argument: object) -> bool:
        """Does this input need a cotangent?"""
        return isinstance(argument, fx.Node) and argument in self._needed

    def call(self, target: Target, *args: Any, **kwargs: Any) -> fx.Node:
        """Append a call; what is computed from a number that may be infinite may be so too."""
        node = super().call(target, *args, **kwargs)
        return self.at_pole(node) if self._unbounded.intersection(node.all_input_nodes) else node

    def at_pole(self, part: fx.Node) -> fx.Node:
        """`part`, noted as the cotangent of an op whose derivative has a pole, like that of sqrt at 0."""
        self._unbounded.add(part)
        return part

    def through(self, v: fx.Node, open_: fx.Node) -> fx.Node:
        """The cotangent where `open_` holds, else 0: what passes a hard gate.

        As a product with 0 and 1, since onnxruntime's CPU provider takes three times as long for Where. But infinity
        times 0 is NaN; behind a pole a closed gate must say 0, as in PyTorch: sqrt(relu(x)) has a gradient where x < 0.
        """
        if v in self._unbounded:
            return self.call(aten.where.ScalarOther, open_, v, 0.0)
        return self.call(aten.mul.Tensor, v, open_)

    def sizes(self, x: fx.Node, dims: Sequence[int]) -> list[int]:
        """The sizes of the dimensions `dims`, along which the op mixes numbers: the batch must not be among them."""
        sizes = [shape(x)[dim] for dim in dims]
        numbers = [size for size in sizes if not isinstance(size, BatchSize)]
        if len(numbers) < len(sizes):
            raise UnsupportedError("one picture's explanation would depend on the others of its batch")
        return numbers

    def times(self, v: fx.Node, factor: float) -> fx.Node:
        """`v` times a number."""
        return v if factor == 1 else self.call(aten.mul.Tensor, v, factor)

    def unbroadcast(self, v: fx.Node, x: fx.Node) -> fx.Node:
        """Sum `v` over the dimensions along which `x` was broadcast: the adjoint of broadcasting."""
        given, sizes = shape(v), shape(x)
        leading = len(given) - len(sizes)
        dims = [
            dim for dim in range(len(given)) if dim < leading or (sizes[dim - leading] == 1 != given[dim])
        ]
        if dims:
            v = self.call(aten.sum.dim_IntList, v, dims, True)
        return self.reshape(v, sizes)
