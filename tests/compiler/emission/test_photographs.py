"""Programs that take photographs: the file's first steps against Pillow, its overlay against slow loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from PIL import Image

from sptrace.artifact.colours import NEGATIVE, POSITIVE
from sptrace.artifact.description import Preprocessing
from sptrace.compiler.emission import saving
from sptrace.compiler.emission.photographs import preparation, take_pictures
from sptrace.errors import SptraceError
from sptrace.runtime import photo, picture

SIZES = [(400, 600), (150, 97), (777, 533), (32, 24), (1, 90), (24, 31), (65, 66)]


def photograph(height: int, width: int) -> np.ndarray:
    """Waves, noise, and a bright corner."""
    rows, columns = np.mgrid[:height, :width]
    noise = np.random.default_rng(1).uniform(-60, 60, (height, width, 3))
    pixels = 128 + 60 * np.sin(rows / 9 + columns / 5)[..., None] + noise
    pixels[: height // 4, : width // 4] = 255
    return np.clip(pixels, 0, 255).astype(np.uint8)


def run(model: ir.Model, **feeds: Any) -> list[np.ndarray]:
    saving.check(model)
    session = onnxruntime.InferenceSession(saving.to_bytes(model), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("size", "resize"), [((24, 32), None), ((24, 32), 40), ((24, 32), 10), ((33, 33), 36)]
)
def test_photographs_are_prepared_as_by_pillow(
    interpolation: str, size: tuple[int, int], resize: int | None
) -> None:
    how = Preprocessing(size, resize, interpolation, input_range=(-1.0, 1.0))
    session = onnxruntime.InferenceSession(saving.to_bytes(preparation(how)))
    for height, width in SIZES:
        if resize is None and (height < size[0]) != (width < size[1]):
            continue  # in which order Pillow then enlarges one axis and shrinks the other depends on its version
        pixels = photograph(height, width)
        (prepared,) = session.run(None, {"image": pixels[None]})
        wanted = photo.prepare(Image.fromarray(pixels), how)
        assert prepared.shape == wanted.shape
        levels = np.abs(prepared - wanted) * 255 / 2
        assert levels.max() <= 1.001, (height, width)
        if interpolation != "bilinear":  # whose weights, small fractions, let many sums end on one half
            assert (levels > 0.001).mean() < 0.01, (height, width)


def test_the_nearest_pixel_is_taken() -> None:
    how = Preprocessing((23, 29), 31, "nearest", input_range=(0.0, 1.0))
    for height, width in ((401, 601), (151, 97), (17, 19)):  # odd: no centre falls between two pixels
        pixels = photograph(height, width)
        (prepared,) = run(preparation(how), image=pixels[None])
        np.testing.assert_allclose(prepared, photo.prepare(Image.fromarray(pixels), how), atol=1e-6)


def test_every_picture_of_a_batch_is_prepared() -> None:
    how = Preprocessing((24, 32), 40)
    pair = np.stack([photograph(60, 80), photograph(60, 80)[::-1]])
    together = run(preparation(how), image=pair)[0]
    for sample in range(2):
        assert (together[sample] == run(preparation(how), image=pair[sample : sample + 1])[0][0]).all()


def test_an_unknown_interpolation_is_refused() -> None:
    with pytest.raises(SptraceError, match="interpolation is 'sinc', none of bilinear"):
        preparation(Preprocessing((24, 32), interpolation="sinc"))


def echo(how: Preprocessing) -> ir.Model:
    """A program whose attribution is the image itself, read within the body of an If as a loop would read it."""
    shape = ["N", 3, *how.size]
    image = ir.val("image", ir.DataType.FLOAT, shape)

    def branch(name: str) -> ir.Graph:
        copy = ir.node("Identity", [image], name=name)
        copy.outputs[0].name = name
        copy.outputs[0].dtype, copy.outputs[0].shape = ir.DataType.FLOAT, ir.Shape(shape)
        return ir.Graph([], [copy.outputs[0]], nodes=[copy], name=name)

    true = ir.node("Constant", [], {"value": ir.tensor(np.array(True), name="true")}, name="true")
    true.outputs[0].name = "true"
    choice = ir.node(
        "If", [true.outputs[0]], {"then_branch": branch("then"), "else_branch": branch("else")}, name="choice"
    )
    (attribution,) = choice.outputs
    attribution.name, attribution.dtype, attribution.shape = "attribution", ir.DataType.FLOAT, ir.Shape(shape)
    graph = ir.Graph([image], [attribution], nodes=[true, choice], opset_imports={"": 21}, name="echo")
    return ir.Model(graph, ir_version=10)


def test_the_program_reads_the_prepared_picture() -> None:
    how = Preprocessing((24, 32), 40)
    model = echo(how)
    take_pictures(model, how, overlay=False)
    pixels = photograph(60, 80)[None]
    (attribution,) = run(model, image=pixels)
    assert (attribution == run(preparation(how), image=pixels)[0]).all()


def spread(values: np.ndarray, given: int, resized: int, first: int) -> np.ndarray:
    """Values on the cut [size] as seen from `given` pixels, along the first axis, one weight after another."""
    size = len(values)
    result = np.zeros((given, *values.shape[1:]))
    width = max(resized / given, 1)
    for pixel in range(given):
        centre = (pixel + 0.5) * resized / given
        weights = [max(0.0, 1 - abs(j + 0.5 - centre) / width) for j in range(resized)]
        for place in range(size):
            result[pixel] += values[place] * weights[first + place] / sum(weights)
    return result


@pytest.mark.parametrize("resize", [None, 40])
@pytest.mark.parametrize(("height", "width"), [(60, 80), (90, 50), (20, 20)])
def test_the_overlay(height: int, width: int, resize: int | None) -> None:
    """Grey, and red or blue as strong as the attribution's share of its 99th percentile."""
    how = Preprocessing((24, 32), resize, input_range=(-1.0, 1.0))
    model = echo(how)
    take_pictures(model, how, overlay=True)
    pixels = photograph(height, width)
    attribution, overlay = run(model, image=pixels[None])
    summed = attribution[0].sum(axis=0)
    share = np.clip(summed / picture.magnitude(summed), -1, 1)
    scale = 0.0 if resize is None else max(resize / min(height, width), 24 / height, 32 / width)
    rows = 24 if resize is None else max(24, math.floor(height * scale + 1e-6))
    columns = 32 if resize is None else max(32, math.floor(width * scale + 1e-6))
    over = spread(share, height, rows, round((rows - 24) / 2))
    over = spread(over.T, width, columns, round((columns - 32) / 2)).T
    grey = 127.5 + pixels @ [0.299, 0.587, 0.114] / 2
    for channel in range(3):
        colour = np.where(over > 0, POSITIVE[channel], NEGATIVE[channel])
        wanted = grey + np.abs(over) * (colour - grey)
        assert np.abs(overlay[0, :, :, channel] - wanted).max() <= 0.51


def test_no_attribution_is_all_grey() -> None:
    how = Preprocessing((24, 32), input_range=(0.0, 1.0))
    model = echo(how)
    take_pictures(model, how, overlay=True)
    _, overlay = run(model, image=np.zeros((1, 60, 80, 3), np.uint8))
    assert (overlay == 128).all()
