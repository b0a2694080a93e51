"""Small networks, and what the tests ask of the graphs made from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from helpers import deterministic


class Small(nn.Module):
    """A network whose body is a function of itself and the image; modules and buffers are given by name.

    The result is flattened to [N, classes].
    """

    def __init__(self, body: Callable[[Any, Tensor], Tensor], **members: nn.Module | Tensor) -> None:
        super().__init__()
        self.body = body
        for name, member in members.items():
            if isinstance(member, nn.Module):
                self.add_module(name, member)
            else:
                self.register_buffer(name, member)

    def forward(self, image: Tensor) -> Tensor:
        return self.body(self, image).flatten(1)


def small(body: Callable[[Any, Tensor], Tensor], **members: nn.Module | Tensor) -> nn.Module:
    """`Small` in eval mode, its parameters and buffers filled and frozen."""
    return deterministic.fill(Small(body, **members), 1)


def classifier(seed: int = 1) -> nn.Module:
    """A bit of everything: convolutions, batch norms, in-place gates, a residual sum, pools, dropout."""

    def body(self: Any, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = self.act(self.block(x) + x)
        return self.head(self.average(x).flatten(1))

    network = Small(
        body,
        stem=nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        ),
        pool=nn.MaxPool2d(3, 2, 1),
        block=nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(inplace=True),
            nn.Conv2d(8, 8, 1),
        ),
        act=nn.ReLU(inplace=True),
        average=nn.AdaptiveAvgPool2d(2),
        head=nn.Sequential(nn.Dropout(0.2), nn.Linear(32, 7)),
    )
    return deterministic.fill(network, seed)


def images(count: int, size: int = 16, seed: int = 0) -> Tensor:
    """Smooth random pictures in [-1, 1], [count, 3, size, size]."""
    return deterministic.images(seed, count, -(-size // 8) * 8)[:, :, :size, :size].contiguous()


def ops(module: fx.GraphModule) -> Counter[str]:
    """How often each op is called."""
    return Counter(str(node.target) for node in module.graph.nodes if node.op == "call_function")


def nodes(module: fx.GraphModule, op: str) -> list[fx.Node]:
    """The calls of an op, in their order."""
    return [node for node in module.graph.nodes if str(node.target) == op]


def assert_same_values(
    module: fx.GraphModule, network: nn.Module, *, tolerance: float = 0.0, size: int = 16
) -> None:
    """The graph gives what the network gives, for several batch sizes: bit for bit, or to a share of the largest."""
    module.graph.lint()
    module.recompile()
    for count in (1, 2, 5):
        image = images(count, size)
        with torch.no_grad():
            given, wanted = module(image.clone()), network(image.clone())
        assert given.shape == wanted.shape
        assert (given - wanted).abs().max() <= tolerance * wanted.abs().max()


def transformer(seed: int = 1) -> nn.Module:
    """Patches, one block of attention, and a last norm whose sum nothing else reads."""

    def body(self: Any, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = x + self.attention(self.first(x))
        return self.head(self.last(x).mean(1))

    network = Small(
        body,
        patches=nn.Conv2d(3, 16, 8, 8),
        first=nn.LayerNorm(16),
        attention=Attention(16, 2),
        last=nn.LayerNorm(16),
        head=nn.Linear(16, 7),
    )
    return deterministic.fill(network, seed)


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values, as timm's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, T, C] to tokens."""
        count, tokens, width = x.shape
        parts = self.qkv(x).reshape(count, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return mixed.transpose(1, 2).reshape(count, tokens, width)
