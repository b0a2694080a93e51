from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sptrace.artifact.description import Preprocessing
from sptrace.errors import SptraceError
from sptrace.runtime.photo import crop, in_folder, prepare, read, restore

ORIENTATION = 0x0112


def colours(height: int = 6, width: int = 10) -> np.ndarray:
    """uint8 [height, width, 3], no two pixels alike."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([20 * rows, 20 * columns, 255 - 20 * columns], axis=-1).astype(np.uint8)


# How a camera stores the upright picture under each EXIF orientation.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_the_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(STORED[orientation](colours()))
    Image.fromarray(stored).save(tmp_path / "photo.png", exif=exif)
    picture = read(tmp_path / "photo.png")
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), colours())


def grey(values: list[int], mode: str) -> Image.Image:
    dtype = {"L": np.uint8, "I;16": np.uint16, "I;16B": ">u2", "I": np.int32}[mode]
    row = np.array([values], dtype=dtype)
    return Image.frombytes(mode, (len(values), 1), row.tobytes())


def with_alpha(mode: str) -> Image.Image:
    """Opaque, half transparent and wholly transparent black."""
    black = (0,) * (len(mode) - 1)
    picture = Image.new(mode, (3, 1))
    for column, alpha in enumerate((255, 128, 0)):
        picture.putpixel((column, 0), (*black, alpha))
    return picture


def palette() -> Image.Image:
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    for column in range(3):
        picture.putpixel((column, 0), column)
    return picture


GREYS = [[0] * 3, [127] * 3, [255] * 3]
COMPOSED = [[0] * 3, [127] * 3, [255] * 3]
MODES = {
    "RGB": (Image.fromarray(colours()[:1, :3]), "png", colours()[0, :3].tolist()),
    "L": (grey([0, 127, 255], "L"), "png", GREYS),
    "1": (grey([0, 0, 255], "L").convert("1"), "png", [[0] * 3, [0] * 3, [255] * 3]),
    "I;16": (grey([0, 127 * 257, 65535], "I;16"), "png", GREYS),
    "I;16 TIFF": (grey([0, 127 * 257 - 100, 65535], "I;16"), "tiff", GREYS),
    "I;16B": (grey([0, 127 * 257 + 100, 65535], "I;16B"), "tiff", GREYS),
    "I": (grey([0, 127 * 257, 65535], "I"), "tiff", GREYS),
    "P": (palette(), "png", [[255, 0, 0], [0, 255, 0], [10, 20, 30]]),
    "GIF": (palette(), "gif", [[255, 0, 0], [0, 255, 0], [10, 20, 30]]),
    "RGBA": (with_alpha("RGBA"), "png", COMPOSED),
    "LA": (with_alpha("LA"), "png", COMPOSED),
    "CMYK": (
        Image.frombytes("CMYK", (3, 1), bytes([0, 255, 255, 0, 0, 0, 0, 255, 0, 0, 0, 0])),
        "tiff",
        [[255, 0, 0], [0, 0, 0], [255, 255, 255]],
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    picture, extension, expected = MODES[mode]
    path = tmp_path / f"photo.{extension}"
    picture.save(path)
    read_back = read(path)
    assert read_back.mode == "RGB"
    np.testing.assert_allclose(np.asarray(read_back)[0], expected, atol=1)


def test_a_transparent_palette_entry_becomes_white(tmp_path: Path) -> None:
    palette().save(tmp_path / "photo.png", transparency=1)
    np.testing.assert_array_equal(
        np.asarray(read(tmp_path / "photo.png"))[0], [[255, 0, 0], [255, 255, 255], [10, 20, 30]]
    )


def test_a_jpeg_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / "photo.jpg")
    np.testing.assert_allclose(np.asarray(read(tmp_path / "photo.jpg"))[8, 8], (200, 100, 50), atol=3)


def test_the_file_may_be_deleted_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(colours()).save(path)
    picture = read(path)
    path.unlink()
    np.testing.assert_array_equal(np.asarray(picture), colours())


def broken(tmp_path: Path, case: str) -> Path:
    path = tmp_path / "photo.png"
    if case == "text":
        path.write_text("not a picture")
    elif case == "truncated":
        noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif case == "float":
        path = tmp_path / "photo.tiff"
        Image.new("F", (4, 4)).save(path)
    elif case == "32 bit":
        path = tmp_path / "photo.tiff"
        grey([0, 1, 100_000], "I").save(path)
    elif case == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "there is no file"),
        ("text", "is not a picture"),
        ("truncated", "cannot read"),
        ("float", "no agreed black and white"),
        ("32 bit", "no agreed black and white"),
        ("folder", "cannot read"),
    ],
)
def test_what_is_no_photograph_is_refused(tmp_path: Path, case: str, message: str) -> None:
    path = broken(tmp_path, case)
    with pytest.raises(SptraceError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# Picture (width, height), resize, size (height, width); then what torchvision's Resize and CenterCrop make
# of it: the resized (width, height) and the left upper corner of the cut.
GEOMETRY = [
    ((500, 375), 256, (224, 224), (341, 256), (58, 16)),
    ((375, 500), 256, (224, 224), (256, 341), (16, 58)),
    ((300, 300), 224, (224, 224), (224, 224), (0, 0)),
    ((50, 40), 232, (224, 224), (290, 232), (33, 4)),
    ((97, 300), 40, (24, 32), (40, 123), (4, 50)),
    # too small for the cut, so that it is scaled till it covers it
    ((400, 200), 100, (224, 224), (448, 224), (112, 0)),
    ((200, 400), 224, (224, 448), (448, 896), (0, 336)),
]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("picture", "resize", "size", "resized", "corner"), GEOMETRY)
def test_the_centre_is_cut_out(
    picture: tuple[int, int],
    resize: int,
    size: tuple[int, int],
    resized: tuple[int, int],
    corner: tuple[int, int],
    interpolation: str,
) -> None:
    original = noise(*picture)
    cut = crop(original, Preprocessing(size, resize, interpolation))
    left, top = corner
    full = np.asarray(original.resize(resized, Image.Resampling[interpolation.upper()]))
    np.testing.assert_array_equal(np.asarray(cut), full[top : top + size[0], left : left + size[1]])


def test_without_resize_the_whole_picture_is_squeezed() -> None:
    original = noise(90, 50)
    squeezed = crop(original, Preprocessing((24, 32), None, "bicubic"))
    np.testing.assert_array_equal(
        np.asarray(squeezed), np.asarray(original.resize((32, 24), Image.Resampling.BICUBIC))
    )


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = np.asarray(crop(Image.fromarray(stripes), Preprocessing((40, 40), 40)))
    assert pixels.min() > 100
    assert pixels.max() < 155


def test_unknown_interpolation_is_refused() -> None:
    with pytest.raises(SptraceError, match="interpolation is 'cubist'"):
        crop(noise(9, 9), Preprocessing((4, 4), 4, "cubist"))


def test_a_line_is_refused() -> None:
    with pytest.raises(SptraceError, match="too thin"):
        crop(noise(1, 101), Preprocessing((4, 4), 4))


@pytest.mark.parametrize("low_high", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
def test_prepare_gives_the_artifacts_input(low_high: tuple[float, float]) -> None:
    low, high = low_high
    pixels = colours(24, 12)
    image = prepare(Image.fromarray(pixels), Preprocessing((24, 12), None, "nearest", low_high))
    assert image.dtype == np.float32
    assert image.shape == (1, 3, 24, 12)
    assert image.flags.c_contiguous
    for channel in range(3):
        expected = low + (high - low) * pixels[:, :, channel] / 255
        np.testing.assert_allclose(image[0, channel], expected, rtol=1e-5, atol=1e-6)


def test_black_and_white_are_the_ends_of_the_range() -> None:
    preprocessing = Preprocessing((4, 4), 4, input_range=(-1.0, 1.0))
    assert (prepare(Image.new("RGB", (9, 9), "black"), preprocessing) == -1).all()
    assert (prepare(Image.new("RGB", (9, 9), "white"), preprocessing) == 1).all()


@pytest.mark.parametrize("limits", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
def test_restoring_undoes_preparing(limits: tuple[float, float]) -> None:
    preprocessing = Preprocessing(size=(16, 24), resize=20, input_range=limits)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    original = Image.fromarray(pixels)
    restored = restore(prepare(original, preprocessing), preprocessing)
    np.testing.assert_array_equal(restored[0], np.asarray(crop(original, preprocessing)))
    low, high = limits
    beyond = np.full((1, 3, 1, 1), low - 5 * (high - low), np.float32)
    assert (restore(beyond, preprocessing) == 0).all()
    assert (restore(-beyond + 2 * high, preprocessing) == 255).all()


def test_the_pictures_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "c.txt", "d"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in in_folder(tmp_path)] == ["a.png", "b.JPG"]
    with pytest.raises(SptraceError, match="there is no folder"):
        in_folder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SptraceError, match="holds no pictures"):
        in_folder(tmp_path / "empty")
