"""Composed ops against torch.autograd in float64, and what the pass leaves whole."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import torch
from helpers.rule_checks import ROUNDED, check_all, numbers
from helpers.small_networks import images, ops, small
from torch import nn
from torch._ops import OpOverload

from sptrace import passes
from sptrace.compiler import pullback
from sptrace.compiler.capture.from_torch import capture
from sptrace.compiler.emission.builder import EMITTERS
from sptrace.compiler.graph.builder import IN_ANOTHER_SHAPE
from sptrace.passes.decompose import WHOLE, is_composed

aten = torch.ops.aten


def test_composed_ops() -> None:
    check_all(
        numbers(3, 4, 3, 5, seed=1).double(),
        lambda x: torch.hstack([x, x.sin()]),
        lambda x: torch.diff(x, n=2, dim=3, prepend=x[..., :1]),
        lambda x: torch.tensordot(x, torch.arange(15.0).reshape(3, 5).to(x), dims=2),
        lambda x: torch.movedim(x, (1, 2), (3, 1)).cumsum(3),
        lambda x: torch.matrix_power(x[..., :3], 3),
        lambda x: torch.nn.functional.bilinear(
            x[:, :2], x[:, 2:, :, :2], torch.arange(30.0).reshape(3, 5, 2).to(x)
        ),
        lambda x: torch.trapezoid(x, dim=3),
        lambda x: torch.linalg.norm(x, dim=(1, 3)),
        tolerance=ROUNDED,
    )


def test_sizes_of_the_batch() -> None:
    network = small(lambda self, x: torch.broadcast_to(x.mean(1, keepdim=True), (x.shape[0], 2, 16, 16)))
    module = capture(network, images(1))
    assert passes.decompose(module) == 1
    assert ops(module)["aten.expand.default"] == 1
    module.recompile()
    for count in (1, 2, 5):
        assert torch.equal(module(images(count)), network(images(count)))


def test_an_op_that_reads_numbers_stays() -> None:
    module = capture(small(lambda self, x: x.flatten(1).masked_fill(x.flatten(1) > 0, 0.0)), images(1))
    assert passes.decompose(module) == 0


def _in_tables() -> Iterator[OpOverload]:
    """All ops in tables of passes and in those of rules and emitters."""
    found: list[object] = [*pullback.TABLE, *EMITTERS]
    for rewrite in passes.PREPARE:
        for table in vars(inspect.getmodule(rewrite)).values():
            if isinstance(table, dict | set | frozenset):
                found += table
    yield from (op for op in found if isinstance(op, OpOverload))


def test_what_is_known_stays_whole() -> None:
    # Of decomposed ops some parts are in tables too: only ops that have no parts but themselves may be there.
    in_tables = {
        op for op in _in_tables() if is_composed(op)
    } - IN_ANOTHER_SHAPE.keys()  # which come as others
    assert {str(op) for op in in_tables} <= {"aten.sym_size.int"}
    assert {name for name in WHOLE if not hasattr(aten, name)} == set()


@pytest.mark.parametrize("shape", ["squeeze_", "unsqueeze_", "transpose_"])
def test_another_shape_in_place(shape: str) -> None:
    options = {"squeeze_": (3,), "unsqueeze_": (1,), "transpose_": (1, 2)}[shape]
    network = small(
        lambda self, x: getattr(self.stem(x).mean(3, keepdim=True), shape)(*options).sin(),
        stem=nn.Conv2d(3, 4, 1),
    )
    module = capture(network, images(1))
    passes.run(passes.PREPARE, module)
    for count in (1, 2, 5):
        assert torch.equal(module(images(count)), network(images(count)))
