"""Sampling between pixels becomes reading at whole places, each weighed by how near it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder, shape, static_shape, value
from sptrace.compiler.graph.constants import at_batches
from sptrace.compiler.graph.facts import Target, facts
from sptrace.compiler.graph.sizes import BATCHES
from sptrace.compiler.pullback.term import Term
from sptrace.errors import UnsupportedError

aten = torch.ops.aten

BILINEAR, NEAREST, BICUBIC = range(3)
ZEROS, BORDER, REFLECTION = range(3)
"""The numbers that aten.grid_sampler gives to modes and paddings."""

SHARPNESS = -0.75
"""Of PyTorch's bicubic kernel (Keys, 1981)."""


def canonicalize_sampling(module: fx.GraphModule) -> int:
    """Rewrite; returns how many.

    1. grid_sampler(x, grid, mode, padding, align_corners), of pictures and volumes
         ->  the sum over the corners around each place of gather(x, corner) times its weight
    2. affine_grid_generator(theta, size)  ->  matmul(the places of all pixels, theta's transpose)
    3. torchvision.deform_conv2d           ->  the same sampling of all cells of the kernel, then a product
    4. torchvision.roi_align, boxes alike in every picture  ->  matmul(x, what the op makes of unit vectors)

    Places are whole numbers and carry no cotangent; weights carry that of the grid. `gather`, since runtimes without
    GridSample or DeformConv have it, and its adjoint adds up what fell on one place.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        rewrite = REWRITES.get(node.target) or OF_TORCHVISION.get(str(node.target))
        if rewrite is not None:
            with builder.replacing(node):
                builder.replace(node, rewrite(builder, node, *node.args, **node.kwargs))
            count += 1
    return count


@dataclass(frozen=True)
class _Taps:
    """The whole places along one dimension that a position reads.

    Arguments:
        places: floating point, inside the picture, [N, positions], one a tap.
        weights: the share of each tap, [N, positions]; None for one tap that counts whole.
    """

    places: list[Term]
    weights: list[Term | None]


def _sampled(builder: GraphBuilder, x: fx.Node, taps: Sequence[_Taps]) -> fx.Node:
    """[N, C, positions] of x, [N, C, sizes ...]."""
    sizes = static_shape(x, range(2, value(x).ndim))
    channels = static_shape(x, [1])[0]
    corners, weights = [], []
    for chosen in product(*(range(len(each.places)) for each in taps)):
        place: Term | None = None
        weight: Term | None = None
        for each, tap, size in zip(taps, chosen, sizes, strict=True):
            place = each.places[tap] if place is None else place * float(size) + each.places[tap]
            factor = each.weights[tap]
            if factor is not None:
                weight = factor if weight is None else weight * factor
        assert place is not None
        corners.append(builder.call(aten.to.dtype, place.node, torch.int64))
        weights.append(weight)
    flat = builder.reshape(x, [shape(x)[0], channels, torch.Size(sizes).numel()])
    (positions,) = static_shape(corners[0], [1])
    joint = builder.call(aten.cat.default, corners, 1) if len(corners) > 1 else corners[0]
    column = builder.call(aten.unsqueeze.default, joint, 1)
    index = builder.call(aten.expand.default, column, [-1, channels, -1])
    found = builder.call(aten.gather.default, flat, 2, index)
    if weights[0] is None:
        return found
    apart = builder.reshape(found, [shape(x)[0], channels, len(corners), positions])
    shares = builder.call(aten.stack.default, [weight.node for weight in weights if weight is not None], 1)
    weighed = builder.call(aten.mul.Tensor, apart, builder.call(aten.unsqueeze.default, shares, 1))
    return builder.call(aten.sum.dim_IntList, weighed, [2])


def _taps(position: Term, size: int, mode: int, padding: int, align_corners: bool) -> _Taps:
    """Along one dimension, from a position in pixels."""
    if mode == BICUBIC:
        return _cubic_taps(position, size, padding, align_corners)
    position = _inside(position, size, padding, align_corners)
    if mode == NEAREST:
        nearest = _fixed(_call(position, aten.round.default))
        return _Taps([nearest.clamp(0, size - 1)], [_within(nearest, size) if padding == ZEROS else None])
    low = _fixed(_call(position, aten.floor.default))
    share = position - low
    weights = [share * -1.0 + 1.0, share]
    places = [low, low + 1.0]
    within = [_within(place, size) for place in places]
    return _Taps(
        [place.clamp(0, size - 1) for place in places],
        [weight * inside for weight, inside in zip(weights, within, strict=True)],
    )


def _cubic_taps(position: Term, size: int, padding: int, align_corners: bool) -> _Taps:
    low = _fixed(_call(position, aten.floor.default))
    share = position - low
    distances = [share + 1.0, share, share * -1.0 + 1.0, share * -1.0 + 2.0]
    weights = [
        kernel(distance) for kernel, distance in zip((_far, _near, _near, _far), distances, strict=True)
    ]
    places = [_inside(low + float(step), size, padding, align_corners) for step in (-1, 0, 1, 2)]
    places = [_fixed(place) for place in places]
    if padding == ZEROS:
        weights = [weight * _within(place, size) for weight, place in zip(weights, places, strict=True)]
    return _Taps([place.clamp(0, size - 1) for place in places], list(weights))


def _near(distance: Term) -> Term:
    """Keys' kernel up to a distance of 1."""
    return (distance * (SHARPNESS + 2) - (SHARPNESS + 3)) * distance * distance + 1.0


def _far(distance: Term) -> Term:
    """Keys' kernel between distances of 1 and 2."""
    return ((distance * SHARPNESS - 5 * SHARPNESS) * distance + 8 * SHARPNESS) * distance - 4 * SHARPNESS


def _inside(position: Term, size: int, padding: int, align_corners: bool) -> Term:
    """The position that padding reads in place of one beyond the border."""
    if padding == ZEROS:
        return position
    if padding == REFLECTION:
        low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
        if low == high:
            return position * 0.0
        distance = position - low if low else position
        distance = (distance > 0).where(distance, distance * -1.0)
        rounds = _fixed(_call(distance * (1 / (high - low)), aten.floor.default))
        rest = distance - rounds * (high - low)
        half = rounds * 0.5
        odd = half - _call(half, aten.floor.default) > 0
        position = odd.where(rest * -1.0 + high, rest + low if low else rest)
    # One op, not two: PyTorch lets no cotangent through on either bound.
    return _call(position, aten.clamp.default, 0.0, size - 1.0)


def _within(place: Term, size: int) -> Term:
    """1 inside the picture, 0 beyond its border."""
    inside = _call(place > -0.5, aten.logical_and.default, _call(place, aten.lt.Scalar, size - 0.5))
    return _call(inside, aten.to.dtype, value(place.node).dtype)


def _fixed(x: Term) -> Term:
    return _call(x, aten.detach.default)


def _call(x: Term, target: Target, *arguments: object) -> Term:
    read = [argument.node if isinstance(argument, Term) else argument for argument in arguments]
    return Term(x.pull, x.pull.call(target, x.node, *read))


def _grid_sampler(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, grid: fx.Node, mode: int, padding: int, align: bool
) -> fx.Node:
    sizes = static_shape(x, range(2, value(x).ndim))
    places = torch.Size(static_shape(grid, range(1, value(grid).ndim - 1))).numel()
    flat = builder.reshape(grid, [shape(grid)[0], places, len(sizes)])
    taps = []
    for index, size in enumerate(sizes):
        # The grid's last dimension lists x, y (, z).
        given = Term(builder, builder.call(aten.select.int, flat, 2, len(sizes) - 1 - index))
        position = given * ((size - 1) / 2) + (size - 1) / 2 if align else given * (size / 2) + (size - 1) / 2
        taps.append(_taps(position, size, mode, padding, align))
    return builder.reshape(_sampled(builder, x, taps), shape(node))


def _affine_grid(
    builder: GraphBuilder, node: fx.Node, theta: fx.Node, size: Sequence[int | fx.Node], align_corners: bool
) -> fx.Node:
    sizes = static_shape(node, range(1, value(node).ndim - 1))
    sides = [_side(count, align_corners) for count in sizes]
    columns = torch.stack([*torch.meshgrid(*sides, indexing="ij")][::-1], -1).flatten(0, -2)
    pixels = torch.cat([columns, torch.ones(len(columns), 1, dtype=torch.float64)], 1).float()
    base = builder.constant("affine_grid.pixels", pixels)
    moved = builder.call(aten.matmul.default, base, builder.call(aten.transpose.int, theta, 1, 2))
    return builder.reshape(moved, shape(node))


def _side(count: int, align_corners: bool) -> torch.Tensor:
    """The pixels of one side in [-1, 1]."""
    if count == 1:
        return torch.zeros(1, dtype=torch.float64)
    side = torch.linspace(-1, 1, count, dtype=torch.float64)
    return side if align_corners else side * (count - 1) / count


def _deform_conv(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    offset: fx.Node,
    mask: fx.Node,
    bias: fx.Node,
    *options: int,
) -> fx.Node:
    """Each cell of the kernel reads where its offset sends it; `options` as torchvision's op has them."""
    *numbers, groups, parts, masked = options
    steps, pads, spreads = numbers[:2], numbers[2:4], numbers[4:6]
    channels, kernel = static_shape(x, [1])[0], static_shape(weight, [2, 3])
    sizes, outputs = static_shape(x, [2, 3]), static_shape(node, [2, 3])
    cells, pixels = kernel[0] * kernel[1], outputs[0] * outputs[1]
    moved = builder.reshape(offset, [-1, cells, 2, pixels])
    taps = []
    for index in range(2):
        start = torch.arange(outputs[index]) * steps[index] - pads[index]
        cell = torch.arange(kernel[index]) * spreads[index]
        rows = (cell[:, None] + start).double()
        grid = rows[:, None, :, None] if index == 0 else rows[None, :, None, :]
        where = grid.expand(*kernel, *outputs).reshape(1, cells * pixels).float()
        given = builder.reshape(builder.call(aten.select.int, moved, 2, index), [-1, cells * pixels])
        base = builder.constant("deform_conv.positions", where.contiguous())
        position = Term(builder, builder.call(aten.add.Tensor, given, base))
        taps.append(_taps(position, sizes[index], BILINEAR, ZEROS, True))
    several = builder.reshape(x, [-1, channels // parts, *sizes])
    read = builder.reshape(_sampled(builder, several, taps), [-1, channels // parts, cells, pixels])
    if masked:
        share = builder.reshape(mask, [-1, 1, cells, pixels])
        read = builder.call(aten.mul.Tensor, read, share)
    columns = builder.reshape(read, [shape(x)[0], groups, channels // groups * cells, pixels])
    matrices = builder.reshape(weight, [groups, value(weight).shape[0] // groups, channels // groups * cells])
    product_ = builder.reshape(builder.call(aten.matmul.default, matrices, columns), shape(node))
    return builder.call(aten.add.Tensor, product_, builder.reshape(bias, [1, -1, 1, 1]))


def _roi_align(builder: GraphBuilder, node: fx.Node, x: fx.Node, boxes: fx.Node, *options: object) -> fx.Node:
    """Linear in x: a matrix, made by the op itself."""
    (single, count) = _boxes_of_a_picture(builder, node, boxes)
    channels, height, width = static_shape(x, [1, 2, 3])
    units = torch.eye(height * width).reshape(1, -1, height, width)
    assert callable(node.target)
    given = node.target(units, single, *options)  # [boxes, height * width, rows, columns]
    matrix = given.permute(1, 0, 2, 3).reshape(height * width, -1).contiguous()
    flat = builder.reshape(x, [shape(x)[0], channels, height * width])
    read = builder.call(aten.matmul.default, flat, builder.constant("roi_align.matrix", matrix))
    apart = builder.reshape(
        read, [shape(x)[0], channels, count, torch.Size(static_shape(node, [2, 3])).numel()]
    )
    return builder.reshape(builder.call(aten.permute.default, apart, [0, 2, 1, 3]), shape(node))


def _boxes_of_a_picture(builder: GraphBuilder, node: fx.Node, boxes: fx.Node) -> tuple[torch.Tensor, int]:
    """The first picture's boxes, float32 [K, 5], where all have the same; how many they are."""
    found = at_batches(builder.module, boxes)
    where = facts(node).source
    if found is None:
        raise UnsupportedError(
            f"{node.target} ({where}) reads boxes that are computed from the image: only boxes that are the same "
            "for every picture have a pullback"
        )
    count, rest = divmod(len(found[0]), BATCHES[0])
    first = found[0][:count]
    for given, batch in zip(found, BATCHES, strict=True):
        wanted = first.repeat(batch, 1)
        wanted[:, 0] = torch.arange(batch, dtype=wanted.dtype).repeat_interleave(count)
        if rest or given.shape != wanted.shape or not torch.equal(given, wanted):
            raise UnsupportedError(
                f"{node.target} ({where}) has other boxes for some pictures than for others: give each the same, "
                "picture after picture"
            )
    return first, count


REWRITES: dict[Target, Callable[..., fx.Node]] = {
    aten.grid_sampler.default: _grid_sampler,
    aten.grid_sampler_2d.default: _grid_sampler,
    aten.grid_sampler_3d.default: _grid_sampler,
    aten.affine_grid_generator.default: _affine_grid,
}

OF_TORCHVISION: dict[str, Callable[..., fx.Node]] = {
    "torchvision.deform_conv2d.default": _deform_conv,
    "torchvision.roi_align.default": _roi_align,
}
"""By name, since sptrace does without torchvision where a network does."""
