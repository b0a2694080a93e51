from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.small_networks import assert_same_values, images, nodes, ops, small
from torch import Tensor, fx, nn

from sptrace import passes
from sptrace.compiler.capture.from_torch import capture
from sptrace.passes import fold_scales

Body = Callable[[Any, Tensor], Tensor]
SCALE = torch.linspace(-1, 2, 8)


def prepared(body: Body, **members: nn.Module | Tensor) -> tuple[fx.GraphModule, nn.Module]:
    """All passes before `fold_scales`."""
    network = small(
        body,
        linear=nn.Linear(3, 8),
        other=nn.Linear(3, 8, bias=False),
        conv=nn.Conv2d(3, 8, 2, groups=1),
        plain=nn.Conv2d(3, 8, 2, bias=False),
        norm=nn.LayerNorm(3),
        **members,
    )
    module = capture(network, images(1))
    passes.run(passes.PREPARE[: passes.PREPARE.index(fold_scales)], module)
    return module, network


def folded(body: Body, count: int, **members: nn.Module | Tensor) -> fx.GraphModule:
    module, network = prepared(body, **members)
    assert fold_scales(module) == count
    assert_same_values(module, network, tolerance=1e-6)
    return module


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(
    "body",
    [
        lambda self, x: self.linear(tokens(x)) * self.scale,
        lambda self, x: self.scale * self.other(tokens(x)),
        lambda self, x: self.linear(tokens(x)).transpose(1, 2) * self.scale[:, None],
        lambda self, x: self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * self.scale[:, None, None],
        lambda self, x: self.conv(x) * self.scale[:, None, None],
        lambda self, x: self.plain(x).permute(0, 2, 3, 1) * self.scale,
        lambda self, x: self.linear(tokens(x)).reshape(x.shape[0], -1, 2, 4).transpose(1, 2) * 0.3,
        lambda self, x: self.conv(x) * self.number,
    ],
)
def test_1_a_factor_becomes_part_of_the_layer(body: Body) -> None:
    module = folded(body, 1, scale=SCALE, number=torch.tensor([0.7]))
    assert ops(module)["aten.mul.Tensor"] == 0


def read_twice(self: Any, x: Tensor) -> Tensor:
    y = self.linear(tokens(x))
    return y * self.scale + y


def shared(self: Any, x: Tensor) -> Tensor:
    return self.linear(tokens(x)) * self.scale + self.linear(tokens(x) + 1)


@pytest.mark.parametrize(
    "body",
    [
        read_twice,
        shared,
        lambda self, x: self.linear(tokens(x)) * torch.linspace(0, 1, 256)[:, None],
        lambda self, x: self.linear(tokens(x)).reshape(x.shape[0], -1, 4) * self.scale[:4],
        lambda self, x: self.linear(tokens(x)).relu() * self.scale,
        lambda self, x: self.linear(tokens(x)) * x.mean((1, 2, 3))[:, None, None],
        lambda self, x: self.linear(tokens(x)).mean(1, keepdim=True) * torch.linspace(0, 1, 4)[:, None],
        lambda self, x: x * self.scale[:3, None, None],
    ],
)
def test_1_declines(body: Body) -> None:
    folded(body, 0, scale=SCALE)


def attention_like(self: Any, x: Tensor) -> Tensor:
    y = self.norm(tokens(x))
    return self.linear(y) @ self.other(y.transpose(0, 1)).transpose(0, 1).transpose(1, 2)


@pytest.mark.parametrize(
    ("body", "layers"),
    [
        (lambda self, x: self.linear(self.norm(tokens(x))), 1),
        (lambda self, x: self.other(self.norm(tokens(x))), 1),
        (attention_like, 2),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_2_the_weight_of_a_norm_moves_on(body: Body, layers: int, bias: bool) -> None:
    def changed(self: Any, x: Tensor) -> Tensor:
        if not bias:
            self.norm.bias = None
        return body(self, x)

    module = folded(changed, 1)
    [norm] = nodes(module, "aten.layer_norm.default")
    assert norm.args[2:4] == (None, None)
    names = [str(node.target) for node in module.graph.nodes if node.op == "get_attr"]
    assert sum("folded_weight" in name for name in names) == layers
    assert not any(name.startswith("norm") for name in names)


def read_elsewhere(self: Any, x: Tensor) -> Tensor:
    y = self.norm(tokens(x))
    return self.linear(y).sum(2) + y.sum(2)


@pytest.mark.parametrize(
    "body",
    [
        read_elsewhere,
        lambda self, x: self.norm(tokens(x)),
        lambda self, x: self.linear(self.norm(tokens(x)).relu()),
        lambda self, x: self.linear(F.pad(self.norm(tokens(x)), (0, 0, 1, 0))),
        lambda self, x: self.conv(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        lambda self, x: F.linear(self.norm(tokens(x)), self.linear.weight * x.mean((0, 1, 2, 3)) * 0 + 1),
    ],
)
def test_2_declines(body: Body) -> None:
    folded(body, 0)
