import argparse
import re
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sptrace.errors import SptraceError
from sptrace.models import state_dict


def network(classes: int | None = None) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 4, 3),
            norm=nn.BatchNorm2d(4),
            flat=nn.Flatten(),
            head=nn.Linear(4, classes or 1000),
        )
    )


def under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in weights.items()}


def fit(path: Path) -> nn.Module:
    return state_dict.fit(network, state_dict.read(path), model="the network")


def assert_same(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


def refusal(path: Path) -> str:
    with pytest.raises(SptraceError) as caught:
        fit(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda weights: weights,
        lambda weights: {"model": weights, "args": argparse.Namespace(lr=0.1), "epoch": 90},
        lambda weights: {"state_dict": weights, "optimizer": {"state": {}}},
        lambda weights: {"state_dict": {"model": weights}},
        lambda weights: {"model_state_dict": weights, "loss": 0.5},
        lambda weights: {"net": weights, "acc": 0.9},
        lambda weights: {"ema": {"module": weights}, "updates": 7},
        lambda weights: {"state_dict_ema": weights, "epoch": 3},
        lambda weights: {"state_dict": under("model.", weights), "hyper_parameters": {"lr": 0.1}},
        lambda weights: {"state_dict": under("backbone.", weights) | {"loss.weight": torch.ones(5)}},
        lambda weights: under("net.", weights),
        lambda weights: under("model.backbone.", weights),
        lambda weights: OrderedDict((f"module.{key}", value) for key, value in weights.items()),
        lambda weights: OrderedDict((f"_orig_mod.{key}", value) for key, value in weights.items()),
    ],
    ids=[
        "plain",
        "torchvision",
        "timm",
        "nested",
        "model_state_dict",
        "net",
        "ema",
        "state_dict_ema",
        "Lightning",
        "Lightning-backbone",
        "Lightning-net",
        "Lightning-twice",
        "DataParallel",
        "torch.compile",
    ],
)
def test_what_training_scripts_write(tmp_path, wrapped) -> None:
    trained = network()
    torch.save(wrapped(trained.state_dict()), tmp_path / "weights.pth")
    assert_same(fit(tmp_path / "weights.pth"), trained)


def test_safetensors_and_its_metadata(tmp_path) -> None:
    trained = network()
    path = tmp_path / "weights.safetensors"
    save_file(trained.state_dict(), path, metadata={"mean": "0.4850 .4580 .4076", "std": "[0.5, 0.5, 0.25]"})
    file = state_dict.read(path)
    assert file.mean == (0.485, 0.458, 0.4076)
    assert file.std == (0.5, 0.5, 0.25)
    assert re.fullmatch("weights.safetensors sha256:[0-9a-f]{12}", file.fingerprint)
    assert_same(fit(path), trained)


def test_metadata_that_is_no_colour(tmp_path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(network().state_dict(), path, metadata={"std": "0.5"})
    assert "the metadata's std must be three numbers such as '0.5 0.5 0.5', not '0.5'" in refusal(path)


class Code:
    """Unpickling this touches a file."""

    def __init__(self, touches: Path) -> None:
        self.touches = touches

    def __reduce__(self):
        return (Path.touch, (self.touches,))


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path) -> None:
    marker, path = tmp_path / "it ran", tmp_path / "weights.pth"
    torch.save({"model": network().state_dict(), "extra": Code(marker)}, path)
    message = refusal(path)
    assert not marker.exists()
    assert "contains more than tensors" in message
    assert "torch.save(model.state_dict(), FILE)" in message
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file would have run code"


def test_a_whole_pickled_module_is_refused(tmp_path) -> None:
    torch.save(network(), tmp_path / "weights.pth")
    assert "contains more than tensors (torch.nn.modules" in refusal(tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [b"", b"hello, this is no file of weights", b"PK\x03\x04 damaged"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin"])
def test_a_damaged_file(tmp_path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    assert f"{path} cannot be read as" in refusal(path)


def test_a_missing_file(tmp_path) -> None:
    assert refusal(tmp_path / "weights.pth") == f"{tmp_path / 'weights.pth'}: no such file"


@pytest.mark.parametrize(
    ("content", "found"),
    [([1.0], "a list"), ({}, "a dict:"), ({"net": {}, "epoch": 3}, "a dict of net, epoch:")],
)
def test_a_file_without_a_state_dict(tmp_path, content, found: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    assert f"holds no state dict but {found}" in refusal(tmp_path / "weights.pth")


def test_the_number_of_classes_comes_from_the_weights(tmp_path) -> None:
    trained = network(7)
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    assert_same(fit(tmp_path / "weights.pth"), trained)


def test_missing_unexpected_and_reshaped_tensors_are_named(tmp_path) -> None:
    weights = network(7).state_dict()
    del weights["conv.bias"]
    weights["conv.weight"] = torch.zeros(4, 3, 5, 5)
    weights.update({f"blocks.{i}": torch.zeros(1) for i in range(5)})
    torch.save(weights, tmp_path / "my weights.pth")
    assert refusal(tmp_path / "my weights.pth").startswith(
        "my weights.pth does not fit the network: 1 missing (conv.bias), "
        "5 unexpected (blocks.0, blocks.1, blocks.2, ...), "
        "3 of another shape (conv.weight is [4, 3, 5, 5] instead of [4, 3, 3, 3], "
        "head.weight is [7, 4] instead of [1000, 4], head.bias is [7] instead of [1000]); "
    )


def test_another_number_of_classes_does_not_hide_other_faults(tmp_path) -> None:
    weights = network(7).state_dict()
    del weights["conv.bias"]
    torch.save(weights, tmp_path / "weights.pth")
    assert "1 missing (conv.bias)" in refusal(tmp_path / "weights.pth")


def test_batch_norms_older_than_their_counters(tmp_path) -> None:
    trained = network()
    weights = {key: value for key, value in trained.state_dict().items() if key != "norm.num_batches_tracked"}
    save_file(weights, tmp_path / "weights.safetensors")
    assert_same(fit(tmp_path / "weights.safetensors"), trained)


def test_hyper_parameters_in_a_bag_of_lightning(tmp_path, monkeypatch) -> None:
    """The bag's class is there when the file is written, and not when it is read."""
    bag = type("AttributeDict", (dict,), {"__module__": "lightning_fabric.utilities.data"})
    for name in ("lightning_fabric", "lightning_fabric.utilities", "lightning_fabric.utilities.data"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["lightning_fabric.utilities.data"].AttributeDict = bag
    trained = network()
    content = {"state_dict": under("model.", trained.state_dict()), "hyper_parameters": bag(lr=0.1, depth=3)}
    torch.save(content, tmp_path / "last.ckpt")
    monkeypatch.undo()
    assert_same(fit(tmp_path / "last.ckpt"), trained)


def test_a_network_inside_of_which_tensors_are_missing(tmp_path) -> None:
    weights = under("model.", network().state_dict())
    del weights["model.conv.weight"]
    torch.save(weights, tmp_path / "weights.pth")
    assert "1 missing (conv.weight)" in refusal(tmp_path / "weights.pth")


def test_pictures_of_one_channel(tmp_path) -> None:
    weights = network().state_dict() | {"conv.weight": torch.zeros(4, 1, 3, 3)}
    torch.save(weights, tmp_path / "weights.pth")
    assert refusal(tmp_path / "weights.pth") == (
        "weights.pth was trained on pictures of 1 channels (conv.weight is [4, 1, 3, 3]): "
        "sptrace explains networks for red, green and blue"
    )


def test_names_of_several_lines_are_shown_on_one(tmp_path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a\nb": torch.zeros(2)}, path, metadata={"mean": "0.5\n1"})
    with pytest.raises(SptraceError, match=r"not '0\.5\\n1'") as caught:
        state_dict.read(path)
    assert "\n" not in str(caught.value)
    save_file({"a\nb": torch.zeros(2)}, path)
    with pytest.raises(SptraceError, match=r"unexpected \('a\\nb'\)") as caught:
        fit(path)
    assert "\n" not in str(caught.value)
