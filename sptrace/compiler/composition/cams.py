"""Class activation maps: which places of a layer speak for the target, enlarged to the image.

Grad-CAM: Selvaraju et al., arXiv 1610.02391. With the pullback in place of the gradient: arXiv 2507.22832.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from sptrace.compiler.assemble import Assembled
from sptrace.compiler.composition.composer import Composer, Pulled, aten
from sptrace.compiler.graph.builder import shape, static_shape


def gradcam(assembled: Assembled, settings: Mapping[str, Any]) -> fx.GraphModule:
    """The map, the same in each of the image's channels: it says where, not which colour."""
    composer = Composer(assembled)
    image, neuron = composer.image_and_neuron()
    pulled = composer.pull(image, neuron)
    enlarged = _enlarged(composer, _map(composer, pulled), image, settings["interpolation"])
    repeated = composer.expand(enlarged, shape(image))
    return composer.outputs(attribution=repeated, **pulled.answers)


def guided(assembled: Assembled, settings: Mapping[str, Any]) -> fx.GraphModule:
    """nu(x) times the map: the pullback says what, the map where."""
    composer = Composer(assembled)
    image, neuron = composer.image_and_neuron()
    pulled = composer.pull(image, neuron)
    enlarged = _enlarged(composer, _map(composer, pulled), image, settings["interpolation"])
    product = composer.call(aten.mul.Tensor, pulled.attribution, enlarged)
    return composer.outputs(attribution=product, **pulled.answers)


def _map(composer: Composer, pulled: Pulled) -> fx.Node:
    """relu(sum_c w_c A_c), [N, 1, h, w]: A are the layer's features, w_c the mean of their cotangent over space."""
    weights = composer.call(aten.mean.dim, pulled.at_layer["cotangent"], [2, 3], True)
    weighed = composer.call(aten.mul.Tensor, pulled.at_layer["features"], weights)
    return composer.call(aten.relu.default, composer.call(aten.sum.dim_IntList, weighed, [1], True))


def _enlarged(composer: Composer, small: fx.Node, image: fx.Node, interpolation: str) -> fx.Node:
    """The map in the image's height and width: R map C with constant matrices, the same in every runtime."""
    (height, width), wanted = static_shape(small, [2, 3]), static_shape(image, [2, 3])
    rows = composer.constant("cam_rows", resize_matrix(height, wanted[0], interpolation))
    columns = composer.constant("cam_columns", resize_matrix(width, wanted[1], interpolation).T.contiguous())
    return composer.call(aten.matmul.default, composer.call(aten.matmul.default, rows, small), columns)


def resize_matrix(given: int, wanted: int, interpolation: str) -> Tensor:
    """What resizes a line of `given` numbers to `wanted`, float32 [wanted, given].

    "bilinear" is F.interpolate's linear with align_corners=False, "nearest" its nearest.
    """
    mode = {"bilinear": "linear", "nearest": "nearest"}[interpolation]
    # Every unit vector is a line of its own.
    return F.interpolate(torch.eye(given)[None], size=wanted, mode=mode)[0].T.contiguous()
