from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model, get_model_weights

from sptrace.artifact.description import Preprocessing
from sptrace.errors import SptraceError
from sptrace.models import resolve, torchvision_models

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise URLError("name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


def random(name: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return get_model(name, **options).eval()


@torch.no_grad()
def logits(module: torch.nn.Module, size: int) -> torch.Tensor:
    return module(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)))


def test_every_format_gives_the_same_logits(tmp_path) -> None:
    trained = random("resnet18")
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    for suffix in ("pth", "pt", "bin"):
        torch.save(trained.state_dict(), tmp_path / f"weights.{suffix}")
    for suffix in ("safetensors", "pth", "pt", "bin"):
        network = resolve("torchvision:resnet18", weights=tmp_path / f"weights.{suffix}")
        assert torch.equal(logits(network.module, 64), logits(trained, 64))


def test_the_record(tmp_path) -> None:
    torch.save(random("resnet18").state_dict(), tmp_path / "weights.pth")
    network = resolve("torchvision:resnet18", weights=tmp_path / "weights.pth")
    assert network.name == "torchvision:resnet18"
    assert network.preprocessing == Preprocessing(
        size=(224, 224), resize=256, interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    assert network.labels is None  # whose classes these are the file does not say
    assert " resnet18, weights.pth sha256:" in network.weights


def test_a_size_scales_the_resize(tmp_path) -> None:
    torch.save(random("mobilenet_v3_small").state_dict(), tmp_path / "weights.pth")
    network = resolve("torchvision:mobilenet_v3_small", weights=tmp_path / "weights.pth", size=112)
    assert network.preprocessing.size == (112, 112)
    assert network.preprocessing.resize == 128


@pytest.mark.slow
def test_a_size_that_the_architecture_is_built_for(tmp_path) -> None:
    trained = random("vit_b_32", num_classes=3, image_size=64)
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    network = resolve("torchvision:vit_b_32", weights=tmp_path / "weights.pth", size=64)
    assert torch.equal(logits(network.module, 64), logits(trained, 64))


def test_a_size_that_the_network_refuses(tmp_path) -> None:
    torch.save(random("squeezenet1_1").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(SptraceError, match="squeezenet1_1 does not take pictures of 8 x 8 pixels"):
        resolve("torchvision:squeezenet1_1", weights=tmp_path / "weights.pth", size=8)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mnasnet0_5", "shufflenet_v2_x0_5"])
def test_fine_tuned_to_other_classes(tmp_path, name: str) -> None:
    trained = random(name, num_classes=7)
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    network = resolve(f"torchvision:{name}", weights=tmp_path / "weights.safetensors")
    assert torch.equal(logits(network.module, 64), logits(trained, 64))
    assert network.labels is None


def test_metadata_overrides_the_normalisation(tmp_path) -> None:
    metadata = {"mean": "0.4850 0.4580 0.4076", "std": "0.00392 0.00392 0.00392"}
    save_file(random("squeezenet1_1").state_dict(), tmp_path / "weights.safetensors", metadata=metadata)
    network = resolve("torchvision:squeezenet1_1", weights=tmp_path / "weights.safetensors")
    assert network.preprocessing.mean == (0.485, 0.458, 0.4076)
    assert network.preprocessing.std == (0.00392, 0.00392, 0.00392)


def test_weights_of_another_architecture(tmp_path) -> None:
    torch.save(random("squeezenet1_1").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(
        SptraceError, match=r"weights.pth does not fit torchvision:resnet18: 102 missing \(conv1.weight"
    ):
        resolve("torchvision:resnet18", weights=tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.parametrize("aux_logits", [True, False])
def test_auxiliary_heads_in_the_file_or_not(tmp_path, name: str, aux_logits: bool) -> None:
    trained = random(name, aux_logits=aux_logits, init_weights=False, transform_input=True)
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    network = resolve(f"torchvision:{name}", weights=tmp_path / "weights.pth", size=96)
    assert torch.equal(logits(network.module, 96), logits(trained, 96))
    assert not any("aux" in key.lower() for key in network.module.state_dict())


def test_a_file_that_gives_its_mean_has_no_second_normalisation(tmp_path) -> None:
    trained = random("googlenet", aux_logits=False, init_weights=False, transform_input=False)
    metadata = {"mean": "0.5 0.5 0.5", "std": "0.5 0.5 0.5"}
    save_file(trained.state_dict(), tmp_path / "weights.safetensors", metadata=metadata)
    network = resolve("torchvision:googlenet", weights=tmp_path / "weights.safetensors", size=64)
    assert torch.equal(logits(network.module, 64), logits(trained, 64))


def test_names_in_torchvisions_own_densenet_files(tmp_path) -> None:
    trained = random("densenet121")
    old = {
        key.replace("norm1", "norm.1").replace("conv2", "conv.2") if "denselayer" in key else key: value
        for key, value in trained.state_dict().items()
    }
    torch.save(old, tmp_path / "weights.pth")
    network = resolve("torchvision:densenet121", weights=tmp_path / "weights.pth", size=32)
    assert torch.equal(logits(network.module, 32), logits(trained, 32))


def test_pretrained_weights_are_downloaded(tmp_path, monkeypatch) -> None:
    trained = random("resnet18")
    monkeypatch.setattr(
        torch.hub,
        "download_url_to_file",
        lambda url, path, checksum, progress: torch.save(trained.state_dict(), path),
    )
    network = resolve("torchvision:resnet18")
    assert torch.equal(logits(network.module, 64), logits(trained, 64))
    assert " resnet18, resnet18-f37072fd.pth sha256:" in network.weights


def test_offline_the_error_tells_what_to_fetch_and_where_to_put_it(capfd) -> None:
    with pytest.raises(SptraceError) as caught:
        resolve("torchvision:resnet18")
    assert str(caught.value) == (
        "the weights of torchvision:resnet18 could not be downloaded from "
        "https://download.pytorch.org/models/resnet18-f37072fd.pth "
        "(<urlopen error name or service not known>): "
        "fetch that file on another machine and give it with --weights FILE"
    )
    assert capfd.readouterr() == ("", "")


def test_every_classifier_has_a_preset_that_can_be_recorded() -> None:
    for name in torchvision_models.names():
        preset = get_model_weights(name).DEFAULT.transforms()
        assert len(preset.crop_size) == len(preset.resize_size) == 1
        assert preset.interpolation.value in ("bilinear", "bicubic")
