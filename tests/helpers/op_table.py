"""One small network an op: everything that networks for pictures are likely to call, by the names PyTorch gives it.

An op is a module, or a function of x, float32 or float64 [N, 4, 8, 8]; `test_ops.py` puts it between a convolution and
a linear layer, and compares the compiled gradient with autograd.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.mutation_networks import Constant, Op

Ops = dict[str, Op]


def positive(x: Tensor) -> Tensor:
    """Numbers above 0.5."""
    return x * x + 0.5


def gaps(x: Tensor) -> Tensor:
    """Some NaN in every row, but never more than three."""
    return torch.where((torch.arange(8) % 3 == 0) & (x > 0), torch.nan, x)


def row(x: Tensor) -> Tensor:
    """[N, 4, 64], as a sequence."""
    return x.flatten(2)


def tokens(x: Tensor) -> Tensor:
    """[N, 16, 16]."""
    return x.reshape(-1, 16, 16)


def volume(x: Tensor) -> Tensor:
    """[N, 2, 8, 4, 4]."""
    return x.reshape(-1, 2, 8, 4, 4)


def constant(*sizes: int, seed: int = 0) -> Tensor:
    """Random numbers that the network computes: constants of the file."""
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


class Sequenced(nn.Module):
    """A recurrent layer over the columns; its first result."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Of a sequence [N, 8, 8] of a mean over channels."""
        sequence = x.mean(1)
        if not self.layer.batch_first:
            sequence = sequence.transpose(0, 1)
        out = self.layer(sequence)[0]
        return out if self.layer.batch_first else out.transpose(0, 1)


class Itself(nn.Module):
    """nn.MultiheadAttention of tokens with themselves."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        """The mixed tokens."""
        t = tokens(x)
        return self.attention(t, t, t, need_weights=False)[0]


class Unpooled(nn.Module):
    """SegNet: maxima go back to where they were."""

    def forward(self, x: Tensor) -> Tensor:
        """Of the size of x."""
        largest, places = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(largest.sin(), places, 2)


class Filtered(nn.Module):
    """GFNet, AFNO: a product with learnt complex numbers in the spectrum."""

    def __init__(self, norm: str = "ortho") -> None:
        super().__init__()
        self.norm = norm
        self.weight = nn.Parameter(torch.zeros(4, 8, 5, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Filtered."""
        spectrum = torch.fft.rfft2(x, dim=(2, 3), norm=self.norm)
        return torch.fft.irfft2(
            spectrum * torch.view_as_complex(self.weight), s=(8, 8), dim=(2, 3), norm=self.norm
        )


class Localised(nn.Module):
    """A spatial transformer: the grid comes from the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Linear(256, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Warped."""
        theta = self.theta(x.flatten(1)).tanh().reshape(-1, 2, 3) * 0.3 + torch.eye(2, 3, dtype=x.dtype)
        return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


class Bilinear(nn.Module):
    """nn.Bilinear of two halves of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(8, 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 2, 8, 5]."""
        return self.layer(x[:, :2], x[:, 2:])


class Standardised(nn.Conv2d):
    """A convolution whose weights are standardised in forward."""

    def forward(self, x: Tensor) -> Tensor:
        """Of the standardised weights."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        weight = (self.weight - mean) / (variance + 1e-5).sqrt()
        return F.conv2d(x, weight, self.bias, padding=1)


JOINING: Ops = {
    "cat": lambda x: torch.cat([x, x.sin()], 1),
    "stack": lambda x: torch.stack([x, x.sin()], 2),
    "hstack": lambda x: torch.hstack([x, x.sin()]),
    "dstack": lambda x: torch.dstack([x, x.sin()]),
    "column_stack": lambda x: torch.column_stack([x.flatten(1), x.sin().flatten(1)]),
    "chunk": lambda x: torch.chunk(x, 2, 1)[0] * torch.chunk(x, 2, 1)[1],
    "hsplit": lambda x: torch.hsplit(x, 2)[1].sin(),
    "dsplit": lambda x: torch.dsplit(x, 2)[1].sin(),
    "tensor_split": lambda x: torch.tensor_split(x, 3, 1)[0].sin(),
    "tensor_split at": lambda x: torch.tensor_split(x, (1, 3), 1)[1].sin(),
    "unbind": lambda x: x.unbind(1)[2].sin(),
    "diff": lambda x: torch.diff(x, dim=3),
    "diff twice": lambda x: torch.diff(x, n=2, dim=2),
    "diff with ends": lambda x: torch.diff(x, dim=3, prepend=x[..., :1].sin(), append=x[..., :2]),
    "repeat": lambda x: x[:, :, :2].repeat(1, 2, 1, 3).sin(),
    "tile": lambda x: torch.tile(x, (2, 1, 1)).sin(),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=3).sin(),
    "repeat_interleave by counts": lambda x: x.repeat_interleave(torch.tensor([1, 0, 3, 2]), dim=1).sin(),
    "repeat_interleave flat": lambda x: (
        x.mean((1, 2, 3), keepdim=True) * torch.arange(4).repeat_interleave(torch.tensor([2, 0, 1, 3]))
    ),
    "roll": lambda x: torch.roll(x, (1, -2), (2, 3)).sin(),
    "flip": lambda x: x.flip(2, 3).cumsum(3),
    "fliplr": lambda x: torch.fliplr(x).cumsum(1),
    "rot90": lambda x: torch.rot90(x, 1, (2, 3)).cumsum(3),
    "meshgrid": lambda x: x * torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")[0].to(x),
    "block_diag": lambda x: x * torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)).to(x),
    "cartesian_prod": lambda x: (
        x.flatten(2) * torch.cartesian_prod(torch.arange(8), torch.arange(8)).sum(1).to(x)
    ),
    "unique of constants": lambda x: x[:, torch.unique(torch.tensor([2, 0, 0, 2]))].sin(),
    "movedim": lambda x: torch.movedim(x, 1, 3).cumsum(3),
    "movedim of two": lambda x: torch.movedim(x, (1, 2), (3, 1)).cumsum(3),
    "moveaxis": lambda x: torch.moveaxis(x, 1, 3).cumsum(3),
    "swapaxes": lambda x: torch.swapaxes(x, 1, 3).cumsum(3),
    "adjoint": lambda x: x.mT.cumsum(3),
    "unflatten": lambda x: x.unflatten(1, (2, 2)).cumsum(2),
    "squeeze": lambda x: x.mean(3, keepdim=True).squeeze().sin(),
    "squeeze_": lambda x: x.mean(3, keepdim=True).squeeze_(3).unsqueeze_(1).sin(),
    "unsqueeze_, read before": lambda x: (lambda y, z: torch.cat([y.unsqueeze_(1), z[:, None]], 1))(
        *(x.mean(3) + k for k in (0, 1))
    ),
    "broadcast_to": lambda x: torch.broadcast_to(x.mean(1, keepdim=True), (x.shape[0], 3, 8, 8)).cumsum(1),
    "atleast_3d": lambda x: torch.atleast_3d(x.flatten(1)).sin(),
    "ravel": lambda x: torch.stack([x.reshape(-1, 256)[:, :5]], 1).sin(),
    "trace": lambda x: torch.diagonal(x, 0, 2, 3).sum(-1),
    "diag_embed": lambda x: torch.diag_embed(x.mean(3)).cumsum(3),
    "select_scatter": lambda x: x.select_scatter(x[:, 0].sin(), 1, 2),
}
PRODUCTS: Ops = {
    "tensordot": Constant(lambda x, c: torch.tensordot(x, c, dims=([1, 3], [0, 2])), 4, 3, 8),
    "tensordot last": Constant(lambda x, c: torch.tensordot(x, c, dims=1), 8, 3),
    "inner": Constant(lambda x, c: torch.inner(x, c), 3, 8),
    "outer": lambda x: torch.einsum("ni,nj->nij", x.mean((2, 3)), x.mean((1, 2))),
    "addbmm": Constant(
        lambda x, c: torch.addbmm(x[:, 0, 0, :1], x[:, 0].transpose(0, 1), c, beta=0.5, alpha=0.7), 8, 8, 6
    ),
    "baddbmm": lambda x: torch.baddbmm(x[:, 0], x[:, 1], x[:, 2], beta=0.5, alpha=0.7),
    "addmm": Constant(lambda x, c: torch.addmm(c[0], x[:, 0, 0], c), 8, 8),
    "addmv": Constant(lambda x, c: torch.addmv(x[:, 0, 0, 0], x[:, 1, 1], c)[:, None], 8),
    "addr": lambda x: x[:, 0] + torch.einsum("ni,nj->nij", x[:, 1, 0], x[:, 2, 0]),
    "chain_matmul": Constant(lambda x, c: torch.linalg.multi_dot([x[:, 0, 0], c, c.t(), c]), 8, 6),
    "kron": Constant(lambda x, c: torch.kron(x, c), 1, 1, 2, 3),
    "kron of constants": lambda x: x * torch.kron(torch.eye(4), torch.ones(2, 2)).to(x),
    "kron from the left": Constant(lambda x, c: torch.kron(c, x[:, 0]), 1, 2, 3),
    "dot": lambda x: (x[:, 0].flatten(1) * x[:, 1].flatten(1)).sum(1, keepdim=True),
    "vecdot": lambda x: torch.linalg.vecdot(x[:, :2], x[:, 2:]),
    "cross": lambda x: torch.linalg.cross(x[:, :3], x[:, 1:], dim=1),
    "einsum diagonal": lambda x: torch.einsum("ncii->nci", x),
    "einsum trace": lambda x: torch.einsum("ncii->nc", x),
    "einsum ellipsis": lambda x: torch.einsum("...ij,...kj->...ik", x, x.sin()),
    "einsum implicit ellipsis": lambda x: torch.einsum("...cd,...de", x, x.sin()),
    "einsum sum": lambda x: torch.einsum("nchw->nc", x.sin()),
    "einsum three": Constant(lambda x, c: torch.einsum("nchw,hk,wl->nckl", x, c, c.sin()), 8, 3),
    "einsum relative": Constant(lambda x, c: torch.einsum("nchw,whk->nchwk", x, c), 8, 8, 3),
    "einsum capital": lambda x: torch.einsum("NCHW,NDHW->NCD", x, x.sin()),
    "matmul of vectors": Constant(lambda x, c: x @ c, 8),
    "matrix_power": lambda x: torch.matrix_power(x * 0.2, 3),
    "bilinear": Bilinear(),
    "linear without a bias": nn.Sequential(nn.Flatten(), nn.Linear(256, 3, bias=False)),
}
ACCUMULATIONS: Ops = {
    "cumsum": lambda x: x.cumsum(2),
    "cumprod": lambda x: (x + 1).cumprod(3),
    "cumprod of channels": lambda x: x.cumprod(1),
    "cummax": lambda x: x.cummax(3).values,
    "cummin": lambda x: x.cummin(1).values,
    "logcumsumexp": lambda x: torch.logcumsumexp(x, 3),
    "prod": lambda x: x.prod(1),
    "prod of two": lambda x: x.prod(1).prod(1),
    "nansum": lambda x: torch.nansum(torch.where(x > 0.3, torch.nan, x), 1),
    "nanmean": lambda x: torch.nanmean(torch.where(x > 0.3, torch.nan, x), (2, 3)),
    "median": lambda x: x.flatten(2).median(2).values,
    "median of all": lambda x: x.median(3).values.median(2).values,
    "nanmedian": lambda x: torch.nanmedian(gaps(x), 3).values,
    "quantile": lambda x: torch.quantile(x, 0.3, dim=3),
    "quantile of several": lambda x: torch.quantile(
        x, torch.tensor([0.25, 0.6], dtype=x.dtype), dim=2
    ).movedim(0, 1),
    "quantile, lower": lambda x: torch.quantile(x, 0.3, dim=3, interpolation="lower"),
    "quantile, nearest": lambda x: torch.quantile(x, 0.3, dim=3, interpolation="nearest"),
    "quantile, midpoint": lambda x: torch.quantile(x, 0.3, dim=3, interpolation="midpoint", keepdim=True),
    "nanquantile": lambda x: torch.nanquantile(gaps(x), 0.3, dim=3),
    "var_mean": lambda x: torch.cat(torch.var_mean(x, (2, 3)), 1),
    "std_mean": lambda x: torch.cat(torch.std_mean(x, (2, 3)), 1),
    "var": lambda x: x.var((1, 2), unbiased=False),
    "std": lambda x: x.std(1),
    "logsumexp": lambda x: torch.logsumexp(x, (2, 3)),
    "mean": lambda x: x.mean((2, 3)),
    "amin": lambda x: x.amin((2, 3)),
    "amax": lambda x: x.amax((2, 3)),
    "aminmax": lambda x: torch.cat(torch.aminmax(x, dim=3), 1),
    "min of a dim": lambda x: x.min(2).values,
    "max of a dim": lambda x: x.max(2, keepdim=True)[0],
    "trapezoid": lambda x: torch.trapezoid(x, dim=3),
    "cumulative_trapezoid": lambda x: torch.cumulative_trapezoid(x, dim=3),
    "cov": lambda x: (x.flatten(2) - x.flatten(2).mean(2, keepdim=True)) @ x.flatten(2).mT / 63,
    "count_nonzero": lambda x: x * torch.count_nonzero(x > 0.2, (2, 3))[..., None, None],
}
NORMS: Ops = {
    "norm": lambda x: x.norm(dim=1),
    "norm of all": lambda x: x.flatten(1).norm(dim=1, keepdim=True),
    "norm 1": lambda x: x.norm(p=1, dim=1),
    "norm 3": lambda x: x.norm(p=3, dim=(2, 3)),
    "norm infinity": lambda x: x.norm(p=math.inf, dim=1),
    "norm -infinity": lambda x: x.norm(p=-math.inf, dim=1),
    "norm 0": lambda x: x * torch.linalg.vector_norm((x - 0.1).relu(), 0, dim=1, keepdim=True),
    "norm 0.5": lambda x: torch.linalg.vector_norm(positive(x), 0.5, dim=1),
    "norm -1": lambda x: torch.linalg.vector_norm(x, -1, dim=1),
    "norm -2": lambda x: torch.linalg.vector_norm(x, -2, dim=1),
    "frobenius": lambda x: torch.linalg.matrix_norm(x),
    "matrix norm 1": lambda x: torch.linalg.matrix_norm(x, 1),
    "matrix norm infinity": lambda x: torch.linalg.matrix_norm(x, math.inf),
    "matrix norm -1": lambda x: torch.linalg.matrix_norm(x, -1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "normalize 1": lambda x: F.normalize(x, p=1, dim=1),
    "renorm by hand": lambda x: x / x.norm(dim=1, keepdim=True).clamp(min=0.3),
    "cosine_similarity": lambda x: F.cosine_similarity(x[:, :2], x[:, 2:], dim=3),
    "pairwise_distance": lambda x: F.pairwise_distance(x[:, :2], x[:, 2:]),
    "pairwise_distance 1": lambda x: F.pairwise_distance(x[:, :2], x[:, 2:], p=1),
    "cdist": lambda x: torch.cdist(x[:, 0], x[:, 1]),
    "cdist 1": lambda x: torch.cdist(x[:, 0], x[:, 1], p=1),
    "cdist infinity": lambda x: torch.cdist(x[:, 0], x[:, 1], p=math.inf),
    "cdist 0": lambda x: x[:, :1] * torch.cdist(x[:, 0].relu(), x[:, 1].relu(), p=0)[:, None],
    "cdist to centres": Constant(lambda x, c: torch.cdist(x.flatten(2).mT, c), 5, 4),
    "dist": lambda x: (x[:, 0] - x[:, 1]).flatten(1).norm(dim=1, keepdim=True),
    "layer_norm": nn.LayerNorm([4, 8, 8]),
    "group_norm": nn.GroupNorm(2, 4),
    "instance_norm": nn.InstanceNorm2d(4, affine=True),
    "instance_norm 1d": nn.Sequential(nn.Flatten(2), nn.InstanceNorm1d(4)),
    "instance_norm 3d": nn.Sequential(nn.Unflatten(1, (2, 2)), nn.InstanceNorm3d(2)),
    "instance_norm, tracked": nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "batch_norm": nn.BatchNorm2d(4),
    "batch_norm 1d": nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(4)),
    "batch_norm 3d": nn.Sequential(nn.Unflatten(1, (2, 2)), nn.BatchNorm3d(2)),
    "rms_norm": nn.RMSNorm(8),
    "local_response_norm": nn.LocalResponseNorm(3, alpha=1e-1),
    "cross map LRN": lambda x: F.local_response_norm(x, 5, alpha=0.2, beta=0.5, k=2.0),
    "weights standardised": Standardised(4, 3, 3),
    "weight_norm": nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 3, 3)),
    "GRN": lambda x: x * (g := x.norm(dim=(2, 3), keepdim=True)) / (g.mean(1, keepdim=True) + 1e-6) + x,
}
WINDOWS: Ops = {
    "adaptive_max_pool1d, several sizes": lambda x: F.adaptive_max_pool1d(row(x), 7),
    "adaptive_max_pool2d, several sizes": lambda x: F.adaptive_max_pool2d(x, (5, 3), return_indices=True)[0],
    "adaptive_max_pool2d, to more": lambda x: F.adaptive_max_pool2d(x[..., :3, :], (7, None)),
    "adaptive_max_pool3d, several sizes": lambda x: F.adaptive_max_pool3d(volume(x), (3, 2, 3)),
    "max_pool3d, overlapping": lambda x: F.max_pool3d(volume(x), 3, 2, 1),
    "max_pool3d, ceil": lambda x: F.max_pool3d(volume(x), (3, 2, 2), (2, 1, 3), ceil_mode=True),
    "max_pool3d, dilated": lambda x: F.max_pool3d(
        volume(x), 2, 1, (1, 0, 1), dilation=2, return_indices=True
    )[0],
}
POOLS: Ops = {
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(row(x), 16),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, (4, 2)),
    "adaptive_max_pool2d, to 1": lambda x: F.adaptive_max_pool2d(x, 1),
    "adaptive_max_pool3d": lambda x: F.adaptive_max_pool3d(volume(x), (4, 2, 2)),
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(row(x), 5),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
    "adaptive_avg_pool3d": lambda x: F.adaptive_avg_pool3d(volume(x), (3, 2, 3)),
    "max_pool1d": lambda x: F.max_pool1d(row(x), 4),
    "max_pool1d, overlapping": lambda x: F.max_pool1d(row(x), 3, 2, 1),
    "max_pool1d, dilated": lambda x: F.max_pool1d(row(x), 3, 2, 1, dilation=2),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "max_pool2d, overlapping": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool2d, ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "max_pool2d, dilated": lambda x: F.max_pool2d(x, 3, 1, dilation=2),
    "max_pool3d": lambda x: F.max_pool3d(volume(x), 2),
    "avg_pool1d": lambda x: F.avg_pool1d(row(x), 3, 2, 1),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "avg_pool2d, divisor": lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=4),
    "avg_pool3d": lambda x: F.avg_pool3d(volume(x), (2, 3, 3), 2, (0, 1, 1)),
    "avg_pool3d, divisor": lambda x: F.avg_pool3d(volume(x), 2, 2, divisor_override=3),
    "max_unpool2d": Unpooled(),
    "max_unpool1d": lambda x: F.max_unpool1d(*F.max_pool1d(row(x), 2, return_indices=True), 2),
    "max_unpool2d, larger": lambda x: F.max_unpool2d(
        *F.max_pool2d(x[:, :, :7, :7], 2, return_indices=True), 2, output_size=(7, 7)
    ),
    "max_pool2d, its places": lambda x: F.max_pool2d(x, 2, return_indices=True)[1] * F.avg_pool2d(x, 2) / 64,
    "lp_pool1d": lambda x: F.lp_pool1d(row(x), 2, 4),
    "lp_pool2d": lambda x: F.lp_pool2d(x, 2, 2),
    "lp_pool2d 3": lambda x: F.lp_pool2d(positive(x), 3, 3, 2),
    "lp_pool3d": lambda x: F.lp_pool3d(volume(x), 2, 2),
    "GeM": Constant(lambda x, c: F.avg_pool2d(x.clamp(min=1e-6).pow(c + 3), 8).pow(1 / (c + 3)), 1),
}
GATES: Ops = {
    "relu": nn.ReLU(),
    "relu6": lambda x: F.relu6(4 * x),
    "hardtanh": nn.Hardtanh(-0.4, 0.6),
    "leaky_relu": nn.LeakyReLU(0.1),
    "prelu": nn.PReLU(4),
    "rrelu": nn.RReLU(),
    "elu": nn.ELU(0.8),
    "celu": nn.CELU(0.7),
    "selu": nn.SELU(),
    "gelu": nn.GELU(),
    "gelu tanh": nn.GELU("tanh"),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "hardswish": lambda x: F.hardswish(4 * x),
    "hardsigmoid": lambda x: F.hardsigmoid(4 * x),
    "sigmoid": nn.Sigmoid(),
    "logsigmoid": nn.LogSigmoid(),
    "tanh": nn.Tanh(),
    "tanhshrink": nn.Tanhshrink(),
    "softsign": nn.Softsign(),
    "softplus": nn.Softplus(2, 1),
    "softmin": nn.Softmin(1),
    "softmax": nn.Softmax(1),
    "softmax2d": nn.Softmax2d(),
    "log_softmax": nn.LogSoftmax(1),
    "glu": nn.GLU(1),
    "threshold": nn.Threshold(0.1, 0.2),
    "hardshrink": nn.Hardshrink(0.3),
    "softshrink": nn.Softshrink(0.3),
    "clamp": lambda x: x.clamp(-0.3, 0.4),
    "clamp by tensors": Constant(lambda x, c: x.clamp(c - 0.5, c + 0.5), 4, 1, 1),
    "maximum": lambda x: torch.maximum(x[:, :2], x[:, 2:]),
    "max of two": lambda x: torch.max(x[:, :2], x[:, 2:]),
    "min of two": lambda x: torch.min(x[:, :2], x[:, 2:]),
    "fmax": lambda x: torch.fmax(x[:, :2], x[:, 2:]),
    "squared relu": lambda x: x.relu().square(),
    "maxout": lambda x: x.reshape(-1, 2, 2, 8, 8).amax(1),
    "alpha_dropout": nn.AlphaDropout(),
    "dropout2d": nn.Dropout2d(),
}
FUNCTIONS: Ops = {
    "nan_to_num": lambda x: torch.nan_to_num(torch.where(x > 0.4, torch.nan, x), nan=0.2),
    "tril": lambda x: x.tril(-1),
    "triu": lambda x: x.triu(1),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2).cumsum(1),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2).cumsum(2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2).cumsum(1),
    "lerp": lambda x: torch.lerp(x[:, :2], x[:, 2:], 0.3),
    "lerp by a tensor": lambda x: torch.lerp(x[:, :2], x[:, 2:], x[:, 1:3].sigmoid()),
    "addcmul": lambda x: torch.addcmul(x[:, :1], x[:, 1:2], x[:, 2:3], value=0.7),
    "addcdiv": lambda x: torch.addcdiv(x[:, :1], x[:, 1:2], positive(x[:, 2:3]), value=0.7),
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": lambda x: positive(x).log(),
    "log1p": lambda x: positive(x).log1p(),
    "log2": lambda x: positive(x).log2(),
    "log10": lambda x: positive(x).log10(),
    "sqrt": lambda x: positive(x).sqrt(),
    "rsqrt": lambda x: positive(x).rsqrt(),
    "square": torch.square,
    "pow": lambda x: positive(x).pow(1.7),
    "pow of tensors": lambda x: positive(x[:, :2]) ** x[:, 2:],
    "reciprocal": lambda x: positive(x).reciprocal(),
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "acosh": lambda x: (positive(x) + 1).acosh(),
    "atanh": lambda x: (0.4 * x.tanh()).atanh(),
    "asin": lambda x: (0.4 * x.tanh()).asin(),
    "acos": lambda x: (0.4 * x.tanh()).acos(),
    "atan": torch.atan,
    "atan2": lambda x: torch.atan2(x[:, :2], x[:, 2:]),
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": lambda x: (0.3 * x).tan(),
    "sinc": torch.sinc,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "hypot": lambda x: torch.hypot(x[:, :2], x[:, 2:]),
    "logaddexp": lambda x: torch.logaddexp(x[:, :2], x[:, 2:]),
    "logaddexp2": lambda x: torch.logaddexp2(x[:, :2], x[:, 2:]),
    "xlogy": lambda x: torch.xlogy(x[:, :2], positive(x[:, 2:])),
    "ndtr": torch.special.ndtr,
    "expit": torch.special.expit,
    "entr": lambda x: torch.special.entr(positive(x)),
    "xlog1py": lambda x: torch.special.xlog1py(x[:, :2], positive(x[:, 2:])),
    "special.softmax": lambda x: torch.special.softmax(x, 1) + torch.special.log_softmax(x, 2),
    "softmax in float64": lambda x: x.double().softmax(1).to(x.dtype),
    "softmax, dtype float64": lambda x: F.softmax(x, 1, dtype=torch.float64).to(x.dtype),
    "product with float64": lambda x: (x * torch.linspace(0, 1, 8, dtype=torch.float64)).to(x.dtype),
    "norm in float64": lambda x: F.normalize(x.to(torch.float64)).to(x.dtype),
    "logit": lambda x: torch.logit(x.sigmoid(), 1e-3),
    "abs": torch.abs,
    "sign": lambda x: x * x.sign(),
    "fmod": lambda x: torch.fmod(x, 0.3),
    "remainder": lambda x: torch.remainder(x, 0.3),
    "frac": torch.frac,
    "trunc": lambda x: x * (3 * x).trunc(),
    "positive": lambda x: torch.positive(x).sin(),
    "rsub": lambda x: torch.rsub(x, 1.5, alpha=2),
    "deg2rad": torch.deg2rad,
    "masked_fill": lambda x: x.masked_fill(x > 0.2, 0.1),
    "where": lambda x: torch.where(x > 0.1, x.sin(), x.cos()),
    "isnan": lambda x: torch.where(torch.isnan(x.sqrt()), x.sin(), x.cos()),
    "isfinite": lambda x: torch.where(torch.isfinite(x.log()), x.sin(), x.cos()),
    "isinf": lambda x: torch.where(torch.isinf(1 / (x > 0).to(x)), x.sin(), x.cos()),
    "logical_and": lambda x: torch.where(torch.logical_and(x > 0, x < 0.4), x, 0.1),
    "logical_xor": lambda x: torch.where(torch.logical_xor(x > 0, x.flip(3) > 0), x, 0.1),
    "bitwise_and": lambda x: torch.where((x > 0) & (x < 0.4), x, 0.1),
    "bitwise_xor": lambda x: torch.where((x > 0) ^ (x < 0.4), x, 0.1),
    "bitwise_not": lambda x: torch.where(~(x > 0), x, 0.1),
    "any": lambda x: torch.where((x > 0.5).any(1, keepdim=True), x, 0.1),
    "all": lambda x: torch.where((x > -0.5).all(1, keepdim=True), x, 0.1),
    "isclose": lambda x: torch.where(torch.isclose(x.round(), torch.zeros_like(x)), x.sin(), x),
    "complex abs": lambda x: torch.view_as_complex(torch.stack([x, x.sin()], -1)).abs(),
    "complex product": lambda x: torch.view_as_real(torch.complex(x, x.sin()) * torch.complex(x.cos(), x)),
    "complex angle": lambda x: torch.complex(x, x.cos()).angle(),
    "polar": lambda x: torch.polar(positive(x), x).imag,
    "bucketize of constants": lambda x: x * torch.bucketize(torch.arange(8.0), torch.tensor([1.5, 4.0])),
    "bucketize": lambda x: x * torch.bucketize(x, x.new_tensor([-0.2, 0.1, 0.4])),
    "searchsorted": lambda x: x * torch.searchsorted(x.new_tensor([-0.2, 0.1, 0.4]), x),
    "histc of constants": lambda x: x * torch.histc(torch.arange(8.0), 8, 0, 4),
}
SELECTING: Ops = {
    "gather": lambda x: x.gather(3, torch.tensor([3, 0, 7]).expand(x.shape[0], 4, 8, 3)).cumsum(3),
    "take_along_dim": lambda x: torch.take_along_dim(
        x, torch.tensor([3, 0, 7]).reshape(1, 1, 1, 3), 3
    ).cumsum(3),
    "index": lambda x: x[:, torch.tensor([0, 2, 2]), :, torch.tensor([1, 7, 3])].movedim(0, 2).cumsum(2),
    "index of a computed table": lambda x: (
        x * torch.arange(9.0).reshape(3, 3).to(x).cos()[torch.tensor([2, 0])].sum()
    ),
    "index of a stack": lambda x: (
        torch.stack([x, x.sin()])[torch.tensor([1, 0, 1])].transpose(0, 1).cumsum(1)
    ),
    "index by a mask": lambda x: x[:, torch.tensor([True, False, True, True])].cumsum(1),
    "index_select": lambda x: x.index_select(2, torch.tensor([7, 0, 0])).cumsum(2),
    "take": lambda x: x.flatten(1)[:, torch.tensor([3, 9, 100])],
    "one_hot": lambda x: x @ F.one_hot(torch.tensor([1, 0, 2, 2, 5, 3, 3, 1]), 8).to(x),
    "embedding": Constant(
        lambda x, c: x * F.embedding(torch.tensor([0, 3, 3, 1, 2, 0, 1, 3]), c).sum(1), 4, 3
    ),
    "topk": lambda x: x.topk(3, 3).values,
    "sort": lambda x: x.sort(3, descending=True).values * torch.arange(8).to(x),
    "argsort": lambda x: x.gather(3, x.argsort(3)).cumsum(3),
    "kthvalue": lambda x: x.kthvalue(3, 3).values,
    "argmax": lambda x: x * F.one_hot(x.argmax(3), 8),
    "scatter": lambda x: torch.zeros_like(x).scatter(3, x.topk(3, 3).indices, x[..., :3]),
    "index_add": lambda x: x.index_add(1, torch.tensor([0, 0, 3]), x[:, 1:].sin()),
    "index_copy": lambda x: x.index_copy(1, torch.tensor([0, 3]), x[:, 1:3].sin()),
    "index_fill": lambda x: x.index_fill(1, torch.tensor([0, 3]), 0.3).sin(),
    "scatter_add": lambda x: torch.zeros_like(x).scatter_add(
        3, torch.tensor([0, 0, 1, 2, 3, 5, 5, 5]).expand_as(x), x
    ),
    "unfold": lambda x: x.unfold(3, 3, 2).cumsum(2),
    "as_strided": lambda x: x.as_strided((x.shape[0], 4, 4, 4), (256, 64, 16, 2), 3).cumsum(1),
    "frames": lambda x: x.flatten(1).as_strided((x.shape[0], 6, 16), (256, 40, 1)).cumsum(1),
    "F.unfold": lambda x: F.unfold(x, 3, padding=1, stride=2).cumsum(2),
    "F.fold": lambda x: F.fold(F.unfold(x, 3, padding=1), 8, 3, padding=1).cumsum(3),
    "tril_indices": lambda x: x[(slice(None), slice(None), *torch.tril_indices(8, 8).unbind())].cumsum(2),
}
SAMPLING: Ops = {
    **{
        f"grid_sample {mode} {padding} {align}": lambda x, m=mode, p=padding, a=align: F.grid_sample(
            x[:, :2], x[:, 2:].permute(0, 2, 3, 1) * 1.3, m, p, a
        )
        for mode in ("bilinear", "nearest")
        for padding in ("zeros", "border", "reflection")
        for align in (False, True)
    },
    "grid_sample bicubic": lambda x: F.grid_sample(
        x[:, :2], x[:, 2:].permute(0, 2, 3, 1), "bicubic", "border", align_corners=False
    ),
    "grid_sample 3d": lambda x: F.grid_sample(
        volume(x), torch.cat([volume(x), volume(x)[:, :1]], 1).permute(0, 2, 3, 4, 1), align_corners=False
    ),
    "affine_grid": Localised(),
    **{
        f"interpolate {mode} {align}": lambda x, m=mode, a=align: F.interpolate(
            x, (5, 11), mode=m, align_corners=a
        )
        for mode, align in (("nearest", None), ("nearest-exact", None), ("area", None), ("bilinear", False))
    },
    "interpolate bilinear, corners": lambda x: F.interpolate(x, (5, 11), mode="bilinear", align_corners=True),
    "interpolate bicubic": lambda x: F.interpolate(x, (5, 11), mode="bicubic"),
    "interpolate bicubic, corners": lambda x: F.interpolate(x, (5, 11), mode="bicubic", align_corners=True),
    "interpolate bilinear, antialias": lambda x: F.interpolate(x, (5, 3), mode="bilinear", antialias=True),
    "interpolate bicubic, antialias": lambda x: F.interpolate(x, (5, 3), mode="bicubic", antialias=True),
    "interpolate linear": lambda x: F.interpolate(row(x), 50, mode="linear"),
    "interpolate trilinear": lambda x: F.interpolate(volume(x), (5, 6, 3), mode="trilinear"),
    "interpolate nearest 1d": lambda x: F.interpolate(row(x), 50),
    "interpolate nearest 3d": lambda x: F.interpolate(volume(x), (5, 6, 3)),
    "interpolate nearest-exact 3d": lambda x: F.interpolate(volume(x), (5, 6, 3), mode="nearest-exact"),
    "interpolate linear, corners": lambda x: F.interpolate(row(x), 50, mode="linear", align_corners=True),
    "interpolate area 3d": lambda x: F.interpolate(volume(x), (5, 2, 3), mode="area"),
    "interpolate by a factor": lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"),
    "upsample": nn.UpsamplingBilinear2d(scale_factor=2),
    **{
        f"pad {mode} {rank}d": lambda x, m=mode, r=rank: F.pad(
            {1: row, 2: torch.sin, 3: volume}[r](x), (1, 2) * r, mode=m
        ).cumsum(2)
        for mode in ("constant", "reflect", "replicate", "circular")
        for rank in (1, 2, 3)
    },
    "ReflectionPad2d": nn.ReflectionPad2d(2),
    "ZeroPad2d": nn.ZeroPad2d((1, 0, 2, 1)),
}


def per_picture(x: Tensor, *sizes: int) -> Tensor:
    """A kernel for each picture, made of its numbers, [N * the first size, ...]."""
    numbers = x.flatten(1).sin()
    return numbers[:, : math.prod(sizes)].reshape(-1, *sizes[1:])


def joined(x: Tensor) -> Tensor:
    """[1, 4 N, 8, 8]."""
    return x.reshape(1, -1, *x.shape[2:])


def apart(y: Tensor, x: Tensor) -> Tensor:
    """What `joined` has joined."""
    return y.reshape(x.shape[0], -1, *y.shape[2:])


KERNELS: Ops = {
    "CondConv": lambda x: apart(
        F.conv2d(joined(x), per_picture(x, 3, 4, 3, 3), per_picture(x, 3), 2, 1, groups=x.shape[0]),
        x,
    ),
    "CondConv, grouped": lambda x: apart(
        F.conv2d(
            joined(x), per_picture(x, 6, 2, 3, 2), padding=(1, 0), dilation=(1, 2), groups=2 * x.shape[0]
        ),
        x,
    ),
    "cross-correlation": lambda x: apart(
        F.conv2d(joined(x), x[:, :, 2:5, 3:6].reshape(-1, 1, 3, 3), groups=4 * x.shape[0]), x
    ),
    "filters of a sequence": lambda x: apart(
        F.conv1d(row(x).reshape(1, -1, 64), per_picture(x, 4, 1, 5), padding=2, groups=4 * x.shape[0]), x
    ),
    "kernels of a generator": lambda x: apart(
        F.conv_transpose2d(
            joined(x), per_picture(x, 4, 3, 3, 2), per_picture(x, 6), 2, 1, 1, groups=2 * x.shape[0]
        ),
        x,
    ),
    "the same kernel for all": Constant(
        lambda x, c: apart(F.conv2d(joined(x), c.repeat(x.shape[0], 1, 1, 1), groups=x.shape[0]), x),
        3,
        4,
        3,
        3,
    ),
}
CONVOLUTIONS: Ops = {
    "conv1d": nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 3, 5, 2, 1, 2)),
    "conv2d": nn.Conv2d(4, 6, 3, 2, 1, groups=2),
    "conv2d, same": nn.Conv2d(4, 3, (2, 4), padding="same", dilation=(1, 3)),
    "conv2d, circular": nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"),
    "conv3d": nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 3, (2, 3, 3), (1, 2, 1), (1, 0, 1))),
    "convolution": Constant(
        lambda x, c: torch.convolution(x, c, None, [2, 1], [1, 0], [1, 2], False, [0, 0], 2), 6, 2, 3, 3
    ),
    "convolution, transposed": Constant(
        lambda x, c: torch.convolution(x, c, None, [2, 3], [1, 0], [1, 2], True, [1, 2], 2), 4, 3, 3, 3
    ),
    "convolution 1d": Constant(
        lambda x, c: torch.convolution(row(x), c, None, [2], [1], [1], False, [0], 1), 3, 4, 3
    ),
    "convolution 3d": Constant(
        lambda x, c: torch.convolution(volume(x), c, None, [2] * 3, [1] * 3, [1] * 3, True, [1] * 3, 1),
        2,
        3,
        3,
        3,
        3,
    ),
    "transposed 1d": nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(4, 3, 3, 2, 1, 1)),
    "transposed 2d": nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, dilation=2),
    "transposed 3d": nn.Sequential(nn.Unflatten(1, (2, 2)), nn.ConvTranspose3d(2, 3, 3, 2, 1, 1)),
    "lazy conv": nn.Conv2d(4, 3, 1, bias=False),
    "functional conv of the picture": lambda x: F.conv2d(x[:1].detach() * 0 + x, x.new_ones(4, 4, 2, 2)),
}
RECURRENT: Ops = {
    "lstm": Sequenced(nn.LSTM(8, 5, batch_first=True)),
    "lstm, both ways": Sequenced(nn.LSTM(8, 5, 2, batch_first=True, bidirectional=True)),
    "lstm, time first": Sequenced(nn.LSTM(8, 5)),
    "lstm, projected": Sequenced(nn.LSTM(8, 5, proj_size=3, batch_first=True)),
    "gru": Sequenced(nn.GRU(8, 5, 2, batch_first=True, bidirectional=True)),
    "rnn": Sequenced(nn.RNN(8, 5, batch_first=True)),
    "rnn relu": Sequenced(nn.RNN(8, 5, nonlinearity="relu", batch_first=True)),
}
ATTENTION: Ops = {
    "sdpa": lambda x: F.scaled_dot_product_attention(tokens(x), tokens(x).sin(), tokens(x).cos()),
    "sdpa, causal": lambda x: F.scaled_dot_product_attention(tokens(x), tokens(x), tokens(x), is_causal=True),
    "sdpa, mask": Constant(
        lambda x, c: F.scaled_dot_product_attention(tokens(x), tokens(x), tokens(x), c > 0), 16, 16
    ),
    "sdpa, bias": Constant(
        lambda x, c: F.scaled_dot_product_attention(tokens(x), tokens(x), tokens(x), c, scale=0.3), 16, 16
    ),
    "sdpa, gqa": lambda x: F.scaled_dot_product_attention(x, x[:, :2].sin(), x[:, 2:], enable_gqa=True),
    "multihead": Itself(),
    "multihead, bias_kv": Itself(add_bias_kv=True),
    "multihead, zero": Itself(add_zero_attn=True),
    "encoder layer": nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(64, 4, 32, batch_first=True)),
    "encoder layer, norm first": nn.Sequential(
        nn.Flatten(2),
        nn.TransformerEncoderLayer(64, 4, 32, batch_first=True, norm_first=True, activation="gelu"),
    ),
}
SPECTRA: Ops = {
    "global filter": Filtered(),
    "global filter, backward": Filtered("backward"),
    "FNet": lambda x: torch.fft.fft2(x, dim=(1, 3)).real,
    "FNet of two": lambda x: torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real,
    "fftn": lambda x: torch.fft.fftn(x, dim=(2, 3)).imag,
    "rfft": lambda x: torch.view_as_real(torch.fft.rfft(x)),
    "stft": lambda x: torch.stft(
        x.flatten(1), 32, 8, window=torch.hann_window(32).to(x), return_complex=True
    ).abs(),
    "rfft of an odd length": lambda x: torch.fft.irfft(torch.fft.rfft(x[..., :7]), n=7).cumsum(3),
    "rfft, padded": lambda x: torch.fft.rfft(x, n=11, norm="forward").abs(),
    "rfft, cropped": lambda x: torch.fft.rfft(x, n=5, dim=2).abs(),
    "ifft": lambda x: torch.fft.ifft2(torch.fft.fft2(x) * torch.fft.fft2(x.sin()).conj()).real,
    "hfft": lambda x: torch.fft.hfft(torch.complex(x, x.sin())),
    "amplitude and phase": lambda x: torch.cat([torch.fft.rfft2(x).abs(), torch.fft.rfft2(x).angle()], 1),
    "fftshift": lambda x: torch.fft.fftshift(torch.fft.fft2(x, norm="ortho"), (-2, -1)).abs(),
    "AFNO": Constant(
        lambda x, c: torch.fft.irfft2(
            torch.view_as_complex(
                F.softshrink(
                    torch.einsum("nchwk,cd->ndhwk", torch.view_as_real(torch.fft.rfft2(x, norm="ortho")), c),
                    0.01,
                ).contiguous()
            ),
            norm="ortho",
        ),
        4,
        4,
    ),
}
LINEAR_ALGEBRA: Ops = {
    "inv of constants": Constant(lambda x, c: x @ torch.linalg.inv(c + 5 * torch.eye(8).to(c)), 8, 8),
}

SERVED: dict[str, Ops] = {
    "joining": JOINING,
    "products": PRODUCTS,
    "accumulations": ACCUMULATIONS,
    "norms": NORMS,
    "windows": WINDOWS,
    "pools": POOLS,
    "gates": GATES,
    "functions": FUNCTIONS,
    "selecting": SELECTING,
    "sampling": SAMPLING,
    "convolutions": CONVOLUTIONS,
    "kernels": KERNELS,
    "recurrent": RECURRENT,
    "attention": ATTENTION,
    "spectra": SPECTRA,
    "linear algebra": LINEAR_ALGEBRA,
}

_FACTORS = "ONNX has no op that inverts, factorises or decomposes a matrix"

REFUSED: dict[str, tuple[Op, str]] = {
    "places of overlapping maxima": (
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 3, 2, 1, return_indices=True), 3, 2, 1, output_size=(8, 8)),
        "let them lie side by side",
    ),
    "det": (torch.linalg.det, _FACTORS),
    "inv": (lambda x: torch.linalg.inv(x + 3 * torch.eye(8)), _FACTORS),
    "solve": (lambda x: torch.linalg.solve(x + 3 * torch.eye(8), x), _FACTORS),
    "svdvals": (torch.linalg.svdvals, _FACTORS),
    "eigh": (lambda x: torch.linalg.eigh(x @ x.mT + torch.arange(8.0).diag())[0], _FACTORS),
    "cholesky": (lambda x: torch.linalg.cholesky(x @ x.mT + torch.eye(8)), _FACTORS),
    "qr": (lambda x: torch.linalg.qr(x + 3 * torch.eye(8))[1], _FACTORS),
    "nuclear norm": (lambda x: torch.linalg.matrix_norm(x, "nuc"), _FACTORS),
    "spectral norm": (lambda x: torch.linalg.matrix_norm(x, 2), _FACTORS),
    "pinv": (lambda x: torch.linalg.pinv(x + 3 * torch.eye(8)), _FACTORS),
    "slogdet": (lambda x: torch.linalg.slogdet(x + 3 * torch.eye(8))[1], _FACTORS),
    "matrix_exp": (lambda x: torch.matrix_exp(0.1 * x), _FACTORS),
    "mode": (lambda x: x.mode(3).values, "which of equally frequent numbers counts is not defined"),
    "erfinv": (lambda x: torch.erfinv(0.5 * x.tanh()), "ONNX has no such function"),
    "lgamma": (lambda x: torch.lgamma(positive(x)), "ONNX has no such function"),
    "as_strided": (
        lambda x: x.mT.as_strided((x.shape[0], 64), (256, 1)),
        "it reads memory, not numbers at places",
    ),
    "heaviside": (
        lambda x: x * torch.heaviside(x, x.new_tensor(0.5)),
        "PyTorch has no derivative for heaviside|no pullback rule for aten.heaviside",
    ),
    "floor_divide": (lambda x: x * torch.floor_divide(x, 0.3), "PyTorch has no derivative for floor_divide"),
    "native_channel_shuffle": (
        lambda x: torch.native_channel_shuffle(x, 2),
        "PyTorch has no derivative for native_channel_shuffle",
    ),
    "masked_scatter": (
        lambda x: x.masked_scatter((torch.arange(8) > 4).expand_as(x), x.sin()),
        "depends on the others of its batch",
    ),
    "quantile of a batch": (lambda x: x * torch.quantile(x, 0.3), "the batch"),
}
"""Ops, and what of the reason is certain."""
