import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from sptrace.artifact.description import Preprocessing
from sptrace.errors import SptraceError
from sptrace.models import resolve

REVISION = "0" * 40


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def random(name: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


@torch.no_grad()
def logits(module: torch.nn.Module, size: int) -> torch.Tensor:
    return module(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)))


def test_weights_from_a_file(tmp_path) -> None:
    trained = random("resnet10t")
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    network = resolve("timm:resnet10t", weights=tmp_path / "weights.safetensors")
    assert torch.equal(logits(network.module, 64), logits(trained, 64))
    assert network.name == "timm:resnet10t"
    assert network.labels is None  # whose classes these are the file does not say
    assert network.weights.startswith(f"timm {timm.__version__} resnet10t, weights.safetensors sha256:")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "resnet10t",
            Preprocessing(
                size=(176, 176),
                resize=201,
                interpolation="bicubic",
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
            ),
        ),
        (
            "vit_tiny_patch16_224",
            Preprocessing(
                size=(224, 224),
                resize=248,
                interpolation="bicubic",
                mean=(0.5, 0.5, 0.5),
                std=(0.5, 0.5, 0.5),
            ),
        ),
    ],
)
def test_preprocessing_is_timms(tmp_path, name: str, expected: Preprocessing) -> None:
    torch.save(random(name).state_dict(), tmp_path / "weights.pth")
    assert resolve(f"timm:{name}", weights=tmp_path / "weights.pth").preprocessing == expected


def test_a_squashing_network_gets_the_whole_photograph(tmp_path) -> None:
    torch.save(random("efficientnet_b5").state_dict(), tmp_path / "weights.pth")
    network = resolve("timm:efficientnet_b5", weights=tmp_path / "weights.pth", size=64)
    assert network.preprocessing.resize is None


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "pvt_v2_b0", "mobilenetv3_small_050"])
def test_fine_tuned_to_other_classes(tmp_path, name: str) -> None:
    trained = random(name, num_classes=7)
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    network = resolve(f"timm:{name}", weights=tmp_path / "weights.safetensors")
    size = network.preprocessing.size[0]
    assert torch.equal(logits(network.module, size), logits(trained, size))
    assert network.labels is None


def test_a_feature_extractor_with_a_head_of_ones_own(tmp_path) -> None:
    trained = random("vit_small_patch14_dinov2", num_classes=3, img_size=56)
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    network = resolve("timm:vit_small_patch14_dinov2", weights=tmp_path / "weights.safetensors", size=56)
    assert torch.equal(logits(network.module, 56), logits(trained, 56))


def test_a_size_resamples_position_embeddings(tmp_path) -> None:
    torch.save(random("vit_tiny_patch16_224").state_dict(), tmp_path / "weights.pth")
    network = resolve("timm:vit_tiny_patch16_224", weights=tmp_path / "weights.pth", size=96)
    assert network.preprocessing.size == (96, 96)
    assert network.preprocessing.resize == 106
    assert logits(network.module, 96).shape == (2, 1000)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_weights_of_another_architecture(tmp_path, name: str) -> None:
    torch.save(random("mobilenetv3_small_050").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(SptraceError, match=f"weights.pth does not fit timm:{name}: .* missing .* unexpected"):
        resolve(f"timm:{name}", weights=tmp_path / "weights.pth")


def test_pretrained_weights_from_the_cache(tmp_path) -> None:
    trained = random("resnet10t")
    repository = tmp_path / "hub" / "models--timm--resnet10t.c3_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    (repository / "snapshots" / REVISION).mkdir(parents=True)
    save_file(trained.state_dict(), repository / "snapshots" / REVISION / "model.safetensors")
    network = resolve("timm:resnet10t.c3_in1k")
    assert torch.equal(logits(network.module, 64), logits(trained, 64))
    expected = f"timm {timm.__version__} resnet10t.c3_in1k, timm/resnet10t.c3_in1k model.safetensors sha256:"
    assert network.weights.startswith(expected)


def test_offline_the_error_tells_what_to_fetch_and_asks_once(monkeypatch, capfd) -> None:
    asked = []

    def refuse(url: str, **options: object) -> None:
        asked.append(url)
        raise ConnectionError("name or service not known")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    with pytest.raises(SptraceError) as caught:
        resolve("timm:resnet10t.c3_in1k")
    url = "https://huggingface.co/timm/resnet10t.c3_in1k/resolve/main/model.safetensors"
    assert asked == [url]
    assert str(caught.value) == (
        f"the weights of timm:resnet10t.c3_in1k could not be downloaded from {url} "
        "(name or service not known): fetch that file on another machine and give it with --weights FILE"
    )
    assert capfd.readouterr() == ("", "")


def test_an_architecture_without_pretrained_weights() -> None:
    with pytest.raises(
        SptraceError, match="no pretrained weights for coatnet_0_224: give a file with --weights FILE"
    ):
        resolve("timm:coatnet_0_224")


def test_pretrained_features_are_no_classifier() -> None:
    with pytest.raises(SptraceError, match="only as a feature extractor, without classes"):
        resolve("timm:vit_small_patch14_dinov2")
