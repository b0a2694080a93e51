from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sptrace.errors import SptraceError
from sptrace.runtime import picture

SIZE = (56, 112)  # height, width of the toy panels; drawn four times as large
PHOTO = Image.new("RGB", (SIZE[1], SIZE[0]), (10, 120, 200))


def attribution(fill: float = 0.0) -> np.ndarray:
    return np.full((3, *SIZE), fill, np.float32)


def drawn(values: np.ndarray, label: str = "espresso") -> np.ndarray:
    return np.asarray(picture.draw(PHOTO, [picture.Row(label, 0.5, values)], program="p", network="n"))


def panels(canvas: np.ndarray, row: int = 0) -> list[np.ndarray]:
    """The insides of the three panels of a row."""
    height, width = 4 * SIZE[0], 4 * SIZE[1]
    top = picture.MARGIN + row * (picture.TITLE_HEIGHT + height + picture.ROW_GAP) + picture.TITLE_HEIGHT
    lefts = [picture.MARGIN + column * (width + picture.GAP) for column in range(3)]
    return [canvas[top : top + height, left : left + width] for left in lefts]


def test_zero_is_white_and_mid_grey() -> None:
    photograph, signed, change = panels(drawn(attribution()))
    assert (photograph == (10, 120, 200)).all()
    assert (signed == 255).all()
    assert (change == 128).all()


def test_the_colours_diverge() -> None:
    ramp = np.asarray(picture.diverging(np.linspace(-1, 1, 201)[None])).astype(int)[0]
    red, green, blue = ramp.T
    assert tuple(ramp[100]) == (255, 255, 255)
    assert (np.diff(red[:101]) >= 0).all()
    assert (np.diff(blue[100:]) <= 0).all()
    assert (blue[:95] > red[:95]).all()
    assert (red[106:] > blue[106:]).all()
    assert (green[:101] <= green[100]).all()
    ends = np.asarray(picture.diverging(np.array([[-5.0, -1.0, 1.0, 5.0]])))[0]
    assert tuple(ends[0]) == tuple(ends[1])
    assert tuple(ends[2]) == tuple(ends[3])


def test_nan_free_change_colours() -> None:
    pixels = np.asarray(
        picture.as_change(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]).reshape(1, 1, 5).repeat(3, 0))
    )
    assert pixels[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_positive_is_red_and_negative_blue_where_they_are() -> None:
    values = attribution()
    values[:, : SIZE[0] // 2, : SIZE[1] // 2] = 1
    values[:, SIZE[0] // 2 :, SIZE[1] // 2 :] = -1
    _, signed, change = panels(drawn(values))
    height, width = SIZE[0] * 4, SIZE[1] * 4
    upper, lower = slice(8, height // 2 - 8), slice(height // 2 + 8, height - 8)
    left, right = slice(8, width // 2 - 8), slice(width // 2 + 8, width - 8)
    assert (signed[upper, left] == (178, 24, 43)).all()
    assert (signed[lower, right] == (33, 102, 172)).all()
    assert (signed[upper, right] == 255).all()
    assert (change[upper, left] == 255).all()
    assert (change[lower, right] == 0).all()
    assert (change[lower, left] == 128).all()


def test_the_change_keeps_its_colour_when_the_sum_is_zero() -> None:
    values = attribution()
    values[0], values[1] = 1, -1
    _, signed, change = panels(drawn(values))
    assert (signed == 255).all()
    assert (change == (255, 0, 128)).all()


def test_a_few_extreme_pixels_do_not_make_the_others_pale() -> None:
    values = attribution(0.5)
    values[:, 0, 0] = 1e6
    _, signed, change = panels(drawn(values))
    assert (signed[100:, 100:] == (178, 24, 43)).all()
    assert (change[100:, 100:] == 255).all()


def test_the_scale_does_not_vanish() -> None:
    sparse = np.zeros((100, 100))
    assert picture.magnitude(sparse) == 1
    sparse[0, 0] = -3
    assert picture.magnitude(sparse) == 3


def test_every_class_has_a_row() -> None:
    rows = [picture.Row(f"class {number}", 0.1, attribution(number - 1)) for number in range(3)]
    canvas = picture.draw(PHOTO, rows, program="p", network="n")
    assert canvas.mode == "RGB"
    assert canvas.width == 2 * picture.MARGIN + 3 * picture.PANEL + 2 * picture.GAP
    colours = [tuple(panels(np.asarray(canvas), row)[1][100, 100]) for row in range(3)]
    assert colours == [(33, 102, 172), (255, 255, 255), (178, 24, 43)]


@pytest.mark.parametrize("size", [(224, 224), (299, 299), (30, 60), (60, 30), (512, 512)])
def test_panels_have_one_size_whatever_the_network_takes(size: tuple[int, int]) -> None:
    photo = Image.new("RGB", size)
    row = picture.Row("x", 1.0, np.zeros((3, size[1], size[0]), np.float32))
    canvas = picture.draw(photo, [row], program="p", network="n")
    panel_width = round(size[0] * 448 / max(size))
    assert canvas.width == 2 * picture.MARGIN + 3 * panel_width + 2 * picture.GAP


def test_long_names_are_shortened_and_touch_nothing() -> None:
    short = drawn(attribution(), "espresso")
    title = slice(picture.MARGIN - 10, picture.MARGIN + picture.TITLE_HEIGHT - 2)
    written = (short[title] < 255).any(axis=(0, 2))
    start = 448 + int(written[448:].argmax()) - picture.GAP  # a gap before the colour bar
    for label in ("a very long name " * 30, "mushroom, " + "another name, " * 30, "w" * 500):
        long = drawn(attribution(), label)
        np.testing.assert_array_equal(long[title, start:], short[title, start:])
        assert not np.array_equal(long[title], short[title])
    np.testing.assert_array_equal(
        drawn(attribution(), "mushroom, " + "another name, " * 30), drawn(attribution(), "mushroom")
    )


def test_names_and_numbers_are_written() -> None:
    blank, named = drawn(attribution(), ""), drawn(attribution(), "espresso")
    assert not np.array_equal(blank, named)
    row = picture.Row("espresso", 0.5, attribution())
    other = picture.draw(PHOTO, [row], program="p", network="another network")
    assert not np.array_equal(np.asarray(other), named)


def test_accents_are_taken_off_because_the_font_lacks_them() -> None:
    np.testing.assert_array_equal(drawn(attribution(), "crêpe"), drawn(attribution(), "crepe"))


@pytest.mark.parametrize("extension", picture.FORMATS)
def test_save_writes_the_format_of_the_extension(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"picture{extension}"
    picture.save(PHOTO, path)
    assert os.listdir(tmp_path) == [path.name]
    if extension == ".pdf":
        assert path.read_bytes().startswith(b"%PDF")
    else:
        with Image.open(path) as read:
            assert Image.registered_extensions()[extension] == read.format
            np.testing.assert_allclose(np.asarray(read), np.asarray(PHOTO), atol=3)


@pytest.mark.parametrize("name", ["picture", "picture.txt", "picture.npz", "picture.gif"])
def test_other_extensions_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SptraceError, match=r"end its name in \.png"):
        picture.save(PHOTO, tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_a_failure_while_saving_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise ValueError("broken")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(ValueError, match="broken"):
        picture.save(PHOTO, tmp_path / "picture.png")
    assert os.listdir(tmp_path) == []
