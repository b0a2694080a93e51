"""A program that takes photographs as they are: uint8 pixels of any size in, and on request an overlay out.

The artifact's first steps are then those of `sptrace.photo.prepare`, as ONNX nodes that every runtime has: an
antialiased resize is a product with one matrix of filter weights for each axis, and those are computed from the
picture's size. Cutting out the centre only leaves rows of these matrices away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from sptrace.artifact.colours import NEGATIVE, PERCENTILE, POSITIVE
from sptrace.artifact.description import Preprocessing
from sptrace.compiler.emission.builder import IR_VERSION, OPSET
from sptrace.errors import SptraceError

PREPARED = "input/prepared"
_STEPS = 2.0**22  # of a weight of 1
_HALF = 2.0**11
_SUMMED = (
    2.0**19
)  # steps of a weight before they are made to add up to 1: float32 adds those of 32 pixels exactly
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's mode L


def take_pictures(model: ir.Model, how: Preprocessing, overlay: bool) -> None:
    """Let a program take uint8 [N, H, W, 3] as `image`, of any H and W, in place of float32.

    Arguments:
        model: a program whose input `image` is float32 [N, 3, height, width]; it is changed.
        how: what is done to photographs for this program.
        overlay: add the output `overlay`, uint8 [N, H, W, 3]: the picture in light grey, red where the attribution
            speaks for the target and blue where it speaks against.

    Raises:
        SptraceError: the interpolation is unknown.
    """
    graph = model.graph
    program_image = graph.inputs[0]
    assert program_image.name == "image"
    program_image.name = "input/replaced"
    image = _pixels()
    writer = _Writer()
    geometry = _Geometry(writer, image, how)
    prepared = geometry.prepare(image)
    ir.convenience.replace_all_uses_with(program_image, prepared)
    graph.inputs[0] = image
    graph.insert_before(graph[0], writer.nodes)
    if overlay:
        painter = _Writer()
        geometry.writer = painter
        graph.outputs.append(geometry.overlay(image, graph.outputs[0]))
        graph.extend(painter.nodes)
        writer.constants += painter.constants
    for constant in writer.constants:
        graph.register_initializer(constant)


def preparation(how: Preprocessing) -> ir.Model:
    """The first steps alone, as a program from `image` to `prepared`, float32 [N, 3, height, width]; for tests.

    Raises:
        SptraceError: the interpolation is unknown.
    """
    image, writer = _pixels(), _Writer()
    prepared = _Geometry(writer, image, how).prepare(image)
    graph = ir.Graph(
        [image],
        [prepared],
        nodes=writer.nodes,
        initializers=writer.constants,
        opset_imports={"": OPSET},
        name="prepare",
    )
    return ir.Model(graph, ir_version=IR_VERSION)


def _pixels() -> ir.Value:
    return ir.val("image", ir.DataType.UINT8, ["N", "H", "W", 3])


class _Writer:
    """Collects nodes and constants, under names that begin with "input/" or "overlay/"."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self.room = "input"

    def __call__(self, op_type: str, *inputs: ir.Value | np.ndarray[Any, Any], **attributes: Any) -> ir.Value:
        (result,) = self.outputs_of(op_type, 1, *inputs, **attributes)
        return result

    def outputs_of(
        self, op_type: str, count: int, *inputs: ir.Value | np.ndarray[Any, Any], **attributes: Any
    ) -> Sequence[ir.Value]:
        """The same for an op with several outputs."""
        name = f"{self.room}/{op_type}_{len(self.nodes)}"
        given = [item if isinstance(item, ir.Value) else self._constant(item) for item in inputs]
        node = ir.node(op_type, given, attributes, num_outputs=count, name=name)
        self.nodes.append(node)
        for index, result in enumerate(node.outputs):
            result.name = f"{name}/{index}" if index else name
        return node.outputs

    def _constant(self, data: np.ndarray[Any, Any]) -> ir.Value:
        name = f"{self.room}/constant_{len(self.constants)}"
        tensor = ir.tensor(data, name=name)
        self.constants.append(ir.val(name, tensor.dtype, data.shape, const_value=tensor))
        return self.constants[-1]


class _Axis:
    """Sizes along one axis, each an int64 [1] that the file computes.

    Arguments:
        given: of the picture.
        resized: of the picture after resizing, before the centre is cut out.
        first: where the cut begins.
        size: of the cut; a number.
    """

    def __init__(self, given: ir.Value, resized: ir.Value, first: ir.Value, size: int) -> None:
        self.given, self.resized, self.first, self.size = given, resized, first, size


class _Geometry:
    """How the pixels of a picture and those of the network's grid lie over each other."""

    def __init__(self, writer: _Writer, image: ir.Value, how: Preprocessing) -> None:
        known = ("nearest", *_FILTERS)
        if how.interpolation not in known:
            raise SptraceError(f"unknown interpolation {how.interpolation!r}: use one of {', '.join(known)}")
        self.writer = writer
        self._how = how
        self._rows, self._columns = self._axes(image)

    def prepare(self, image: ir.Value) -> ir.Value:
        """uint8 [N, H, W, 3] to float32 [N, 3, height, width], as `sptrace.photo.prepare`.

        Pillow resizes along the rows first, and rounds to whole levels after each axis; so does this.
        """
        op, how = self.writer, self._how
        pixels = op("Transpose", op("Cast", image, to=ir.DataType.FLOAT), perm=[0, 3, 1, 2])
        across = op("Transpose", self._cut(self._columns, how.interpolation), perm=[1, 0])
        wide = self._levels(self._exactly(lambda part: op("MatMul", pixels, part), across))
        down = self._cut(self._rows, how.interpolation)
        cut = self._levels(self._exactly(lambda part: op("MatMul", part, wide), down))
        low, high = how.input_range
        scaled = op("Mul", cut, _float((high - low) / 255))
        prepared = op("Add", scaled, _float(low))
        prepared.name = PREPARED
        prepared.dtype, prepared.shape = ir.DataType.FLOAT, ir.Shape(["N", 3, *how.size])
        return prepared

    def overlay(self, image: ir.Value, attribution: ir.Value) -> ir.Value:
        """uint8 [N, H, W, 3]: see `take_pictures`."""
        op = self.writer
        op.room = "overlay"
        summed = op("ReduceSum", attribution, _integers(1), keepdims=1)
        share = op("Clip", op("Div", summed, self._magnitude(summed)), _float(-1.0), _float(1.0))
        across = op("Transpose", self._spread(self._columns), perm=[1, 0])
        over = op("MatMul", op("MatMul", self._spread(self._rows), share), across)
        over = op("Transpose", over, perm=[0, 2, 3, 1])  # [N, H, W, 1]
        pixels = op("Cast", image, to=ir.DataType.FLOAT)
        # In the lighter half of the greys, where both colours can be seen.
        grey = op("Add", op("MatMul", pixels, _GREY.reshape(3, 1) / 2), _float(127.5))
        colour = op("Where", op("Greater", over, _float(0.0)), _colour(POSITIVE), _colour(NEGATIVE))
        strength = op("Abs", over)
        mixed = op("Add", grey, op("Mul", strength, op("Sub", colour, grey)))
        result = op("Cast", self._levels(mixed), to=ir.DataType.UINT8)
        result.name = "overlay"
        result.dtype, result.shape = ir.DataType.UINT8, ir.Shape(["N", "H", "W", 3])
        return result

    def _axes(self, image: ir.Value) -> tuple[_Axis, _Axis]:
        """Rows and columns; in whole numbers what `sptrace.photo.crop` computes."""
        op, (height, width) = self.writer, self._how.size
        rows = op("Shape", image, start=1, end=2)
        columns = op("Shape", image, start=2, end=3)
        if self._how.resize is None:
            nothing = op("Sub", rows, rows)
            return (
                _Axis(rows, op("Add", nothing, _integers(height)), nothing, height),
                _Axis(columns, op("Add", nothing, _integers(width)), nothing, width),
            )
        shorter = op("Min", rows, columns)
        resize = _integers(self._how.resize)

        def axis(this: ir.Value, size: int, other: ir.Value, other_size: int) -> _Axis:
            to_resize = op("Div", op("Mul", this, resize), shorter)
            to_cover = op("Div", op("Mul", this, _integers(other_size)), other)
            resized = op("Max", _integers(size), to_resize, to_cover)
            excess = op("Sub", resized, _integers(size))
            half = op("Div", excess, _integers(2))
            # Half of an odd number is rounded to the even neighbour.
            odd = op("Mul", op("Mod", excess, _integers(2)), op("Mod", half, _integers(2)))
            return _Axis(this, resized, op("Add", half, odd), size)

        return axis(rows, height, columns, width), axis(columns, width, rows, height)

    def _cut(self, axis: _Axis, interpolation: str) -> ir.Value:
        """The weights [size, given] of the picture's pixels in each pixel of the cut."""
        op = self.writer
        wanted = op("Add", self._range(_integers(axis.size)), axis.first)
        return self._weights(axis.given, axis.resized, wanted, interpolation)

    def _spread(self, axis: _Axis) -> ir.Value:
        """The weights [given, size] of the cut's pixels in each pixel of the picture; outside of the cut is 0."""
        op = self.writer
        weights = self._weights(axis.resized, axis.given, self._range(axis.given), "bilinear")
        last = op("Add", axis.first, _integers(axis.size))
        return op("Slice", weights, axis.first, last, _integers(1))

    def _weights(self, given: ir.Value, resized: ir.Value, wanted: ir.Value, interpolation: str) -> ir.Value:
        """Filter weights [wanted, given] that resize an axis from `given` to `resized` pixels, for the `wanted` ones.

        With pixel centres at j + 1/2, output i lies at (i + 1/2) given / resized, and the filter is as wide as one
        pixel of the coarser side. Distances are exact: whole numbers until the one division. Weights are whole
        numbers of 2^-22, as Pillow's.
        """
        op = self.writer
        one, two = _integers(1), _integers(2)
        sources = op("Mul", op("Add", op("Mul", self._range(given), two), one), resized)
        centres = op("Mul", op("Add", op("Mul", wanted, two), one), given)
        if interpolation == "nearest":
            nearest = op("Div", centres, op("Mul", resized, two))
            same = op(
                "Equal", op("Unsqueeze", nearest, one), op("Unsqueeze", self._range(given), _integers(0))
            )
            return op("Cast", same, to=ir.DataType.FLOAT)
        apart = op("Sub", op("Unsqueeze", sources, _integers(0)), op("Unsqueeze", centres, one))
        width = op("Mul", op("Max", given, resized), two)
        distance = op(
            "Abs",
            op("Div", op("Cast", apart, to=ir.DataType.FLOAT), op("Cast", width, to=ir.DataType.FLOAT)),
        )
        weights = self._whole(op("Mul", _FILTERS[interpolation](op, distance), _float(_SUMMED)))
        total = op("ReduceSum", weights, one, keepdims=1)
        shares = self._whole(op("Mul", op("Div", weights, total), _float(_STEPS)))
        return op("Mul", shares, _float(1 / _STEPS))

    def _exactly(self, product: Callable[[ir.Value], ir.Value], weights: ir.Value) -> ir.Value:
        """A product of pixels with `_weights` that all runtimes round alike, in whatever order they add.

        Halves of the weights' digits are multiplied apart: sums of such short numbers are exact in float32.
        """
        op = self.writer
        coarse = op("Mul", self._whole(op("Mul", weights, _float(_HALF))), _float(1 / _HALF))
        return op("Add", product(coarse), product(op("Sub", weights, coarse)))

    def _whole(self, numbers: ir.Value) -> ir.Value:
        return self.writer("Floor", self.writer("Add", numbers, _float(0.5)))

    def _range(self, count: ir.Value | np.ndarray[Any, Any]) -> ir.Value:
        """0 to count - 1, int64 [count]."""
        op = self.writer
        zero, one = np.array(0, np.int64), np.array(1, np.int64)
        return op("Range", zero, op("Squeeze", count), one)

    def _levels(self, numbers: ir.Value) -> ir.Value:
        """Rounded to 0, 1, ... 255, halves upwards as Pillow rounds."""
        return self.writer("Clip", self._whole(numbers), _float(0.0), _float(255.0))

    def _magnitude(self, summed: ir.Value) -> ir.Value:
        """`sptrace.picture.magnitude` of every sample, float32 [N, 1, 1, 1]."""
        op, (height, width) = self.writer, self._how.size
        place = (height * width - 1) * PERCENTILE / 100
        below = int(place)
        count = height * width - below
        flat = op("Reshape", op("Abs", summed), _integers(0, 1, 1, -1))
        top, _ = op.outputs_of("TopK", 2, flat, _integers(count), axis=-1)
        upper, lower = (
            op("Slice", top, _integers(at), _integers(at + 1), _integers(3))
            for at in (max(count - 2, 0), count - 1)
        )
        between = op("Add", lower, op("Mul", op("Sub", upper, lower), _float(place - below)))
        maximum = op("Slice", top, _integers(0), _integers(1), _integers(3))
        some = op("Where", op("Greater", maximum, _float(0.0)), maximum, _float(1.0))
        return op("Where", op("Greater", between, _float(0.0)), between, some)


def _triangle(op: _Writer, distance: ir.Value) -> ir.Value:
    return op("Relu", op("Sub", _float(1.0), distance))


def _cubic(op: _Writer, distance: ir.Value) -> ir.Value:
    """Keys' cubic convolution with a = -1/2: 1.5 x^3 - 2.5 x^2 + 1 up to 1, -x^3/2 + 2.5 x^2 - 4 x + 2 up to 2."""
    x = op("Min", distance, _float(2.0))
    near = op("Add", _horner(op, x, 1.5, -2.5, 0.0), _float(1.0))
    far = op("Add", _horner(op, x, -0.5, 2.5, -4.0), _float(2.0))
    return op("Where", op("Less", x, _float(1.0)), near, far)


def _horner(op: _Writer, x: ir.Value, cubic: float, square: float, linear: float) -> ir.Value:
    """Cubic x^3 + square x^2 + linear x."""
    inner = op("Add", op("Mul", x, _float(cubic)), _float(square))
    return op("Mul", op("Add", op("Mul", inner, x), _float(linear)), x)


def _lanczos(op: _Writer, distance: ir.Value) -> ir.Value:
    """sinc(x) sinc(x / 3) up to 3: 3 sin(pi x) sin(pi x / 3) / (pi x)^2."""
    x = op("Clip", distance, _float(1e-4), _float(3.0))  # sinc(1e-4) is 1 in float32
    angle = op("Mul", x, _float(np.pi))
    third = op("Mul", x, _float(np.pi / 3))
    product = op("Mul", op("Div", op("Sin", angle), angle), op("Div", op("Sin", third), third))
    return op("Where", op("Less", x, _float(3.0)), product, _float(0.0))


_FILTERS: dict[str, Callable[[_Writer, ir.Value], ir.Value]] = {
    "bilinear": _triangle,
    "bicubic": _cubic,
    "lanczos": _lanczos,
}


def _float(number: float) -> np.ndarray[Any, Any]:
    return np.array(number, np.float32)


def _integers(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.int64)


def _colour(rgb: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    return np.array(rgb, np.float32)
