"""Any image classifier of torchvision, by name."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torchvision
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models

from sptrace.artifact.description import Preprocessing
from sptrace.compiler.network import Network
from sptrace.models import state_dict
from sptrace.models.libraries import downloading, hub_file, is_file_of
from sptrace.models.recording import assemble, at_size

# Auxiliary heads: used in training only, in some files and not in others.
_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
# Names in torchvision's DenseNet files that modules may no longer have (its densenet._load_state_dict).
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


def names() -> list[str]:
    """List every classifier that torchvision knows."""
    return [str(name) for name in list_models(module=torchvision.models)]


def load(name: str, *, weights: Path | None, size: int | None) -> Network:
    """Load a torchvision classifier; see `sptrace.models.resolve`.

    Preprocessing is that of torchvision's own default weights, also when the weights come from a file.
    """
    model = f"torchvision:{name}"
    pretrained = get_model_weights(name).DEFAULT
    preset = pretrained.transforms()
    own_size = preset.crop_size[0]
    pixels = own_size if size is None else size
    link = "softmax" if weights is None else None
    if weights is None:
        with downloading(model, pretrained.url):
            weights = hub_file(pretrained.url)
    file = state_dict.read(weights)
    with at_size(model, (pixels, pixels)):
        module = state_dict.fit(_builder(name, pixels, file), file, model=model, adapt=_rename)
    for head in _AUXILIARY.get(name, ()):
        setattr(module, head, None)
    preprocessing = Preprocessing(
        size=(pixels, pixels),
        resize=round(preset.resize_size[0] * pixels / own_size),
        interpolation=preset.interpolation.value,
        mean=file.mean or tuple(preset.mean),
        std=file.std or tuple(preset.std),
    )
    origin = f"torchvision {torchvision.__version__} {name}, {file.fingerprint}"
    named = _class_names(name, file.fingerprint)
    return assemble(module, model=model, preprocessing=preprocessing, weights=origin, labels=named, link=link)


def _class_names(name: str, fingerprint: str) -> tuple[str, ...] | None:
    """The names that torchvision has for the classes of a file, if that is one of its own."""
    for weights in get_model_weights(name):
        if is_file_of(weights.url, fingerprint):
            return tuple(weights.meta["categories"])
    return None


def _builder(name: str, pixels: int, file: state_dict.WeightsFile) -> Callable[[int | None], nn.Module]:
    arguments: dict[str, Any] = {}
    if name.startswith("vit_"):
        arguments["image_size"] = pixels
    elif name.startswith("maxvit_"):
        arguments["input_size"] = (pixels, pixels)
    elif name in _AUXILIARY:
        # torchvision's own weights expect mean = std = 0.5, and the network turns the preset's normalisation
        # into that; a file that gives its own mean means it.
        arguments["transform_input"] = file.mean is None
        arguments["aux_logits"] = any(key.startswith(_AUXILIARY[name]) for key in file.tensors)
        arguments["init_weights"] = False  # slow, and every weight is replaced

    def build(classes: int | None) -> nn.Module:
        count = 1000 if classes is None else classes
        module: nn.Module = get_model(name, weights=None, num_classes=count, **arguments)
        return module

    return build


def _rename(tensors: state_dict.Tensors, module: nn.Module) -> state_dict.Tensors:
    if not any(_OLD_DENSENET.match(key) for key in tensors):
        return tensors
    return OrderedDict((_OLD_DENSENET.sub(r"\1\2", key), value) for key, value in tensors.items())
