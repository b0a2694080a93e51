"""Formulas: what a rule computes, written as it stands in a paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder, aten


@dataclass(frozen=True)
class Term:
    """A node of the pullback under arithmetic: `(v * (z / tau).sigmoid()).node` appends three nodes.

    Arguments:
        pull: the builder that the nodes are appended with.
        node: the value.
    """

    pull: GraphBuilder
    node: fx.Node

    def _call(self, target: object, *arguments: object) -> Term:
        read = [argument.node if isinstance(argument, Term) else argument for argument in arguments]
        return Term(self.pull, self.pull.call(target, self.node, *read))  # type: ignore[arg-type]

    def __add__(self, other: Term | float) -> Term:
        return self._call(aten.add.Tensor, other)

    def __sub__(self, other: Term | float) -> Term:
        return self._call(aten.sub.Tensor, other)

    def __rsub__(self, other: float) -> Term:
        return self * -1.0 + other

    def __mul__(self, other: Term | float) -> Term:
        return self if other == 1 else self._call(aten.mul.Tensor, other)

    def __truediv__(self, other: Term | float) -> Term:
        return self * (1 / other) if isinstance(other, int | float) else self._call(aten.div.Tensor, other)

    __radd__ = __add__
    __rmul__ = __mul__

    def __gt__(self, other: float) -> Term:
        return self._call(aten.gt.Scalar, other)

    def __lt__(self, other: float) -> Term:
        return self._call(aten.lt.Scalar, other)

    def equals(self, other: float) -> Term:
        """Where it is that number."""
        return self._call(aten.eq.Scalar, other)

    def exp(self) -> Term:
        """e to the power of it."""
        return self._call(aten.exp.default)

    def erf(self) -> Term:
        """The error function."""
        return self._call(aten.erf.default)

    def tanh(self) -> Term:
        """The hyperbolic tangent."""
        return self._call(aten.tanh.default)

    def sigmoid(self) -> Term:
        """The logistic function."""
        return self._call(aten.sigmoid.default)

    def hardsigmoid(self) -> Term:
        """min(1, max(0, x / 6 + 1 / 2))."""
        return self._call(aten.hardsigmoid.default)

    def softplus(self) -> Term:
        """log(1 + exp)."""
        return self._call(aten.softplus.default)

    def rsqrt(self) -> Term:
        """1 / sqrt."""
        return self._call(aten.rsqrt.default)

    def clamp(self, low: float | None = None, high: float | None = None) -> Term:
        """No less than `low`, no more than `high`."""
        bounded = self if low is None else self._call(aten.clamp_min.default, low)
        return bounded if high is None else bounded._call(aten.clamp_max.default, high)

    def where(self, yes: Term, no: Term | float) -> Term:
        """`yes` where it is true, else `no`."""
        if isinstance(no, Term):
            return self._call(aten.where.self, yes, no)
        return self._call(aten.where.ScalarOther, yes, no)

    def mean(self, dims: Sequence[int]) -> Term:
        """The mean over dimensions, which stay with size 1."""
        return self._call(aten.mean.dim, list(dims), True)

    def sum(self, dims: Sequence[int]) -> Term:
        """The sum over dimensions, which stay with size 1."""
        return self._call(aten.sum.dim_IntList, list(dims), True)
