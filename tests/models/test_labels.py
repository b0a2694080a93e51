"""Where class names come from: a source that has them, or a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from timm.models import get_pretrained_cfg
from torchvision.models import ResNet50_Weights
from torchvision.models._meta import _IMAGENET_CATEGORIES

from sptrace.errors import SptraceError
from sptrace.models import labels, timm_models, torchvision_models


def test_the_file_holds_torchvisions_names() -> None:
    assert labels.imagenet() == tuple(_IMAGENET_CATEGORIES)


NAMES = ("tench, Tinca tinca", "7", "große Katze")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "\ufefftench, Tinca tinca\r\n7\r\ngroße Katze\r\n\r\n"),
        ("names.csv", "tench, Tinca tinca\n  7\ngroße Katze"),
        ("names.json", json.dumps(NAMES)),
        ("names.json", json.dumps({"2": NAMES[2], "0": NAMES[0], "1": NAMES[1]})),
        ("config.json", json.dumps({"hidden_size": 8, "id2label": dict(enumerate(NAMES))})),
    ],
)
def test_from_a_file(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert labels.read(str(tmp_path / name)) == NAMES


def test_imagenets_by_name() -> None:
    assert labels.read("imagenet") == labels.imagenet()


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("names.txt", "a\n\nb\n", "line 2 of .*names.txt is empty"),
        ("names.txt", "", "line 1 of .*names.txt is empty"),
        ("names.txt", "\xe9", "cannot read the labels .*names.txt"),
        ("names.json", "[1, 2]", "holds no labels: write a list of names"),
        ("names.json", "[]", "holds no labels"),
        ("names.json", '{"0": "a", "2": "b"}', "holds no labels"),
        ("names.json", '{"model_type": "vit"}', "holds no labels"),
        ("names.json", "nothing", "cannot read the labels .*names.json"),
        ("names.json", "[" * 100_000, "cannot read the labels .*names.json"),
    ],
)
def test_what_holds_no_names(name: str, text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(SptraceError, match=complaint) as error:
        labels.read(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_no_such_file() -> None:
    with pytest.raises(SptraceError, match=r"cannot read the labels nowhere\.txt \(No such file"):
        labels.read("nowhere.txt")


def test_torchvisions_own_files_are_known_by_their_checksum() -> None:
    def named(digest: str) -> tuple[str, ...] | None:
        return torchvision_models._class_names("resnet50", f"mine.pth sha256:{digest}")

    assert "11ad3fa6" in ResNet50_Weights.IMAGENET1K_V2.url
    assert named("11ad3fa60123") == labels.imagenet()
    assert named("11ad3fa70123") is None


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18.a1_in1k", 1000),
        ("convnext_nano.in12k", 11821),
        ("vit_tiny_patch16_224.augreg_in21k", 21843),
        ("resmlp_12_224.fb_dino", None),  # 1000 numbers, of which nobody says that they are classes
    ],
)
def test_timm_says_what_its_weights_were_trained_on(name: str, count: int | None) -> None:
    given = timm_models._class_names(get_pretrained_cfg(name))
    assert (None if given is None else len(given)) == count
    assert count != 1000 or given == labels.imagenet()
