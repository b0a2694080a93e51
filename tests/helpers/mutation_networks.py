"""Small networks that together reach every rule of the table and every emitter.

To cover an op that is new, add a line to the dict that it belongs to: a module, or a function of x, float32
[N, 4, 8, 8], made of the picture by a convolution; a linear layer makes logits of what it gives. `test_mutations.py`
finds out by itself what a network reaches, and fails for rules and emitters that none does. An op that needs another
preset or program gets a line in `NETWORKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import deterministic

Op = Callable[[Tensor], Tensor] | nn.Module
aten = torch.ops.aten


class Alone(nn.Module):
    """A convolution, the op, and a linear layer that reads all that it gives."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.op = op
        self.head = nn.Linear(op(torch.zeros(2, 4, 8, 8)).flatten(1).shape[1], 5)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, 5]."""
        return self.head(self.op(self.stem(image)).flatten(1))


@dataclass(frozen=True)
class Network:
    """An op and how it is compiled.

    Arguments:
        op: in the middle of the network.
        preset: of the softening.
        program: what is compiled.
        settings: of the program.
    """

    op: Op
    preset: str = "paper"
    program: str = "soft_pullback"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def module(self) -> nn.Module:
        """With the same parameters every time."""
        return deterministic.fill(Alone(self.op), 1)


class Attention(nn.Module):
    """Tokens [N, 16, 16] of the map, attention written by `form`."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """The mixed values."""
        tokens = x.reshape(-1, 16, 16)
        q, k, v = self.query(tokens), self.key(tokens), self.value(tokens)
        if self.form == "sdpa":
            return F.scaled_dot_product_attention(q, k, v)
        if self.form == "left":
            return (q @ k.transpose(1, 2) * 0.25).softmax(-1) @ v
        return v.transpose(1, 2) @ (k @ q.transpose(1, 2) * 0.25).softmax(-1)


class Constant(nn.Module):
    """A function of x and of random numbers [sizes]."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *sizes: int) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("numbers", torch.zeros(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Of both."""
        return self.function(x, self.numbers)


def _positive(x: Tensor) -> Tensor:
    return x * x + 0.5


ARITHMETIC: dict[str, Op] = {
    "add": Constant(lambda x, c: x * 1.5 + c, 4, 1, 1),
    "add_two": lambda x: torch.add(x.sin(), x.cos(), alpha=0.7),
    "sub": lambda x: x[:, :2] * 2 - x[:, 2:],
    "rsub": lambda x: torch.rsub(x[:, :1], x[:, 1:2], alpha=2),
    "neg": lambda x: -x.sin(),
    "product": lambda x: x[:, :2] * x[:, 2:],
    "quotient": lambda x: x[:, :2] / _positive(x[:, 2:]),
    "reciprocal": lambda x: _positive(x).reciprocal(),
    "clamp": lambda x: x.clamp(0.1, 0.5),
    "clamp_min": lambda x: x.clamp(min=-0.2),
    "clamp_max": lambda x: x.clamp(max=0.2),
    "clamp_min_call": lambda x: torch.clamp_min(x, -0.2),
    "clamp_max_call": lambda x: torch.clamp_max(x, 0.2),
    "hardtanh_beyond": lambda x: F.hardtanh(x, 0.1, 0.6),
    "add_number": lambda x: aten.add.Scalar(x, 0.5),
    "sub_number": lambda x: aten.sub.Scalar(x, 0.5),
    "rsub_number": lambda x: aten.rsub.Scalar(x, 0.5),
    "mul_number": lambda x: aten.mul.Scalar(x, 0.5),
    "div_number": lambda x: aten.div.Scalar(x, 0.5),
    "sum": lambda x: x.sum((2, 3)) * 0.1,
    "mean": lambda x: x.mean(1),
}
FUNCTIONS: dict[str, Op] = {
    "sigmoid": lambda x: x.sigmoid(),
    "hardsigmoid": lambda x: F.hardsigmoid(4 * x),
    "tanh": lambda x: x.tanh(),
    "exp": lambda x: x.exp(),
    "log": lambda x: _positive(x).log(),
    "erf": lambda x: x.erf(),
    "sqrt": lambda x: _positive(x).sqrt(),
    "rsqrt": lambda x: _positive(x).rsqrt(),
    "pow": lambda x: _positive(x).pow(1.7),
    "sin": lambda x: x.sin(),
    "cos": lambda x: x.cos(),
    "abs": lambda x: x.abs(),
    "detach": lambda x: x * x.detach(),
    "softmax": lambda x: (3 * x).softmax(1),
    "softmax_last": lambda x: (3 * x).softmax(-1),
    "cumsum": lambda x: x.cumsum(3) * 0.3,
    "where": lambda x: torch.where(x[:, :2] > x[:, 2:], 2 * x[:, :2], x[:, 2:] * -0.5),
    "where_number": lambda x: torch.where(x > 0.1, x, 0.3),
    "where_other": lambda x: torch.where(x > 0.1, 0.3, x),
}
MORE_FUNCTIONS: dict[str, Op] = {
    "pow_of_tensors": lambda x: _positive(x[:, :2]) ** x[:, 2:],
    "pow_of_number": lambda x: 1.5**x,
    "expm1": lambda x: x.expm1(),
    "log1p": lambda x: _positive(x).log1p(),
    "xlogy": lambda x: torch.xlogy(x[:, :2], _positive(x[:, 2:])),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=1),
    "norm_3": lambda x: torch.linalg.vector_norm(x, 3, dim=1),
    "norm_infinity": lambda x: torch.linalg.vector_norm(x, float("inf"), dim=1),
    "tan": lambda x: (0.3 * x).tan(),
    "sinh": lambda x: x.sinh(),
    "cosh": lambda x: x.cosh(),
    "asin": lambda x: (0.5 * x.tanh()).asin(),
    "acos": lambda x: (0.5 * x.tanh()).acos(),
    "atan": lambda x: x.atan(),
    "asinh": lambda x: x.asinh(),
    "acosh": lambda x: (_positive(x) + 1).acosh(),
    "atanh": lambda x: (0.5 * x.tanh()).atanh(),
    "atan2": lambda x: torch.atan2(x[:, :2], x[:, 2:]),
    "sign": lambda x: x * x.sign() + x.cos(),
    "sgn": lambda x: x.sin() * x.sgn(),
    "floor": lambda x: x * (3 * x).floor(),
    "ceil": lambda x: x * (3 * x).ceil(),
    "round": lambda x: x * (3 * x).round(),
}
COMPARISONS: dict[str, Op] = {
    "ge": lambda x: torch.where(x[:, :2] >= x[:, 2:], x[:, :2], 0.5 * x[:, 2:]),
    "le": lambda x: torch.where(x[:, :2] <= x[:, 2:], x[:, :2], 0.5 * x[:, 2:]),
    "lt": lambda x: torch.where(x[:, :2] < x[:, 2:], x[:, :2], 0.5 * x[:, 2:]),
    "ne": lambda x: torch.where(x[:, :2].round() != x[:, 2:].round(), x[:, :2], 0.5 * x[:, 2:]),
    "ge_number": lambda x: torch.where(x >= 0.1, x, 0.5 * x),
    "le_number": lambda x: torch.where(x <= 0.1, x, 0.5 * x),
    "ne_number": lambda x: torch.where(x.round() != 0, x, 0.5 * x),
    "not": lambda x: torch.where(~(x > 0.1), x, 0.5 * x),
    "or": lambda x: torch.where((x > 0.3) | (x < -0.3), x, 0.5 * x),
}
SHAPES: dict[str, Op] = {
    "reshape": lambda x: x.reshape(-1, 8, 32).mean(1),
    "permute": Constant(lambda x, c: x.permute(0, 2, 3, 1) @ c, 4, 3),
    "transpose": Constant(lambda x, c: x.transpose(2, 3) * c, 8, 1),
    "flip": Constant(lambda x, c: x.flip(3) * c, 8),
    "expand": Constant(lambda x, c: x[:, :1].expand(-1, 3, -1, -1) * c, 3, 1, 1),
    "cat": Constant(lambda x, c: torch.cat([x[:, 1:], x[:, :2]], 1) * c, 5, 1, 1),
    "stack": Constant(lambda x, c: torch.stack([x[:, 0], x[:, 3]], 1) * c, 2, 1, 1),
    "select": Constant(lambda x, c: x[:, :, 2] * c, 8),
    "slice": Constant(lambda x, c: x[:, :, 1::2, 2:7] * c, 4, 5),
    "pad": Constant(lambda x, c: F.pad(x, (1, 2, 0, 1), value=0.3) * c, 11),
    "crop": Constant(lambda x, c: F.pad(x, (-1, -2)) * c, 5),
    "squeeze": Constant(lambda x, c: x.mean(3, keepdim=True).squeeze(3).unsqueeze(1) * c, 8),
    "index_select": Constant(lambda x, c: x.index_select(1, torch.tensor([2, 0, 0])) * c, 3, 1, 1),
    "permuted": Constant(lambda x, c: x[:, [3, 1, 0, 2]] * c, 4, 1, 1),
}
SELECTIONS: dict[str, Op] = {
    "sorted": lambda x: x.sort(3).values * torch.arange(8.0),
    "top": lambda x: x.topk(3, 3).values,
    "gather": lambda x: x.gather(2, x.sin().argmax(2, keepdim=True)),
    "gather_least": lambda x: x.gather(2, x.sin().argmin(2, keepdim=True)),
    "scatter": lambda x: x.flatten(2).scatter(2, x.flatten(2).topk(3, 2)[1], x.flatten(2)[..., 3:6]),
    "scatter_number": lambda x: x.flatten(2).scatter(2, x.flatten(2).topk(3, 2)[1], 1.5),
    "scatter_add": lambda x: x.flatten(2).scatter_add(2, x.flatten(2).topk(3, 2)[1], x.flatten(2)[..., 3:6]),
    "embedding": Constant(lambda x, c: F.embedding(x.argmax(1), c) * x[:, 0, :, :, None], 4, 3),
}
LAYERS: dict[str, Op] = {
    "linear": nn.Sequential(nn.Flatten(2), nn.Linear(64, 3)),
    "linear_square": nn.Sequential(nn.Flatten(2), nn.Linear(64, 64)),
    "matmul": lambda x: x @ x.transpose(2, 3) * 0.3,
    "mv": Constant(lambda x, c: x @ c, 8),
    "addmm": Constant(lambda x, c: torch.addmm(x[:, 0, 0], x[:, 1, 1], c, beta=0.7, alpha=1.3), 8, 8),
    "bmm": lambda x: torch.bmm(x[:, 0], x[:, 1]) * 0.3,
    "mm": Constant(lambda x, c: torch.mm(x[:, 0, 0], c), 8, 6),
    "mv_matrix": Constant(lambda x, c: torch.mv(x[:, 0, 0], c)[:, None], 8),
    "t": Constant(lambda x, c: torch.mm(c, x[:, 0, 0].t()).permute(1, 0), 6, 8),
    "conv2d": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "grouped": nn.Conv2d(4, 4, 3, dilation=2, groups=2),
    "conv1d": nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 3, 5, stride=4)),
    "conv3d": nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 2, (1, 3, 3))),
    "transposed": nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1),
    "transposed1d": nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(4, 2, 3, stride=2)),
    "transposed3d": nn.Sequential(nn.Unflatten(1, (2, 2)), nn.ConvTranspose3d(2, 2, (1, 2, 2))),
    "upsample": Constant(lambda x, c: F.interpolate(x, scale_factor=2) * c, 16),
    "bilinear": Constant(lambda x, c: F.interpolate(x, (5, 11), mode="bilinear") * c, 11),
    "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "avg_pool_stride_1": lambda x: F.avg_pool2d(x, 3, 1),
    "avg_pool_overlapping": lambda x: F.avg_pool2d(x, 3, 2, 1),
}
NORMS: dict[str, Op] = {
    "layer_norm": nn.Sequential(nn.LayerNorm([8]), nn.Conv2d(4, 2, 1)),
    "group_norm": nn.GroupNorm(2, 4, eps=0.1),
    "rms_norm": nn.RMSNorm(8, eps=0.1),  # and not one that no number shows
}
GATES: dict[str, Op] = {
    "relu": nn.ReLU(),
    "relu6": lambda x: F.hardtanh(x, 0.0, 0.6),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.6),
    "leaky_relu": nn.LeakyReLU(0.2),
    "prelu": nn.PReLU(4),
    "elu": nn.ELU(0.8),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "hardswish": lambda x: F.hardswish(3 * x),
    "mish": nn.Mish(),
    "softplus": nn.Softplus(beta=2),
    "glu": nn.GLU(1),
    "max_pool": nn.MaxPool2d(2),
    "max_pool_overlapping": nn.MaxPool2d(3, 2, 1),
    "max_of_windows": lambda x: F.adaptive_max_pool2d(40 * x, 3),  # exponentials too large for float32
    "amax": lambda x: (40 * x).amax((2, 3)),
    "max_dim": lambda x: x.max(1).values,
    "maximum": lambda x: torch.maximum(x[:, :2], x[:, 2:]),
    "minimum": lambda x: torch.minimum(x[:, :2], x[:, 2:]),
}
ATTENTION: dict[str, Op] = {f"attention, {form}": Attention(form) for form in ("sdpa", "left", "right")}

PLAIN = {**ARITHMETIC, **FUNCTIONS, **MORE_FUNCTIONS, **COMPARISONS, **SHAPES, **SELECTIONS, **LAYERS}
GATING = {**NORMS, **GATES, **ATTENTION}

NETWORKS: dict[str, Network] = {
    **{name: Network(op) for name, op in {**PLAIN, **GATING}.items()},
    **{f"{name}, hard": Network(op, "hard") for name, op in GATING.items()},
    **{
        f"{name}, relative": Network(GATES[name], "relative")
        for name in ("relu", "relu6", "max_pool_overlapping", "amax")
    },
    "relu, excitation": Network(GATES["relu"], "excitation"),
    "relu, guided": Network(GATES["relu"], "guided"),
    "map": Network(FUNCTIONS["tanh"], program="gradcam", settings={"layer": "stem"}),
    "ascent": Network(
        FUNCTIONS["tanh"], program="pullback_ascent", settings={"epsilon": 30.0, "clamp": "last"}
    ),
    "noise": Network(FUNCTIONS["tanh"], program="smooth_pullback"),
}


def photograph() -> Tensor:
    """A bright sky that darkens upwards, a hill with texture, and a sun; float32 [1, 3, 8, 8] in [-1, 1]."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 8), torch.linspace(0, 1, 8), indexing="ij")
    sky = torch.stack([0.35 + 0.3 * rows, 0.5 + 0.3 * rows, 0.95 - 0.1 * rows])
    ground = torch.stack(
        [0.3 + 0.1 * torch.sin(9 * columns), 0.4 + 0.1 * torch.cos(7 * rows), 0.1 + 0.1 * columns]
    )
    picture = torch.where(rows > 0.6 + 0.1 * torch.sin(4 * columns), ground, sky)
    sun = (rows - 0.2) ** 2 + (columns - 0.7) ** 2 < 0.03
    return (2 * torch.where(sun, torch.ones(()), picture) - 1)[None]


EXAMPLES: dict[str, Tensor] = {
    "random": deterministic.images(0, 1, 8),
    "ones": torch.ones(1, 3, 8, 8),
    "zeros": torch.zeros(1, 3, 8, 8),
    "photograph": photograph(),
}
