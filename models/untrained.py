"""Architectures without weights: what the coverage sweep compiles.

Weights are random but sane (activations keep their scale through the layers), the same on every machine.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sptrace.errors import SptraceError

SOURCES = ("torchvision", "timm", "transformers", "smp")

# Classifiers of transformers that take no picture [N, 3, H, W]: tokens, or a text beside it.
_NO_PICTURES = ("ImageGPTForImageClassification", "ShieldGemma2ForImageClassification")

# Where a configuration's defaults build no network, or one that is larger than any that is used.
_PERCEIVER = {"num_cross_attention_heads": 1, "d_latents": 256, "num_latents": 64, "num_blocks": 2}
_CONFIGURED: dict[str, dict[str, Any]] = {
    "EfficientNetForImageClassification": {
        "image_size": 224,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "hidden_dim": 1280,
    },
    "PerceiverForImageClassificationLearned": _PERCEIVER,
    "PerceiverForImageClassificationFourier": {**_PERCEIVER, "image_size": 224},
    "PerceiverForImageClassificationConvProcessing": {**_PERCEIVER, "image_size": 224},
    "TextNetForImageClassification": {"image_size": 224},
}
_SMALL = (
    "test",
    "atto",
    "femto",
    "pico",
    "zepto",
    "nano",
    "xxs",
    "xxtiny",
    "xs",
    "tiny",
    "_s",
    "small",
    "b0",
    "18",
    "050",
)


def names(source: str) -> list[str]:
    """The architectures of a source.

    All classifiers of torchvision; one of every module of timm; all image classifiers of transformers; one encoder of
    every family of segmentation_models_pytorch ("smp").

    Raises:
        SptraceError: there is no such source, or its library is not installed.
    """
    if source not in SOURCES:
        raise SptraceError(f"there is no source {source!r}: use one of {', '.join(SOURCES)}")
    try:
        if source == "torchvision":
            import torchvision

            return [str(name) for name in torchvision.models.list_models(module=torchvision.models)]
        if source == "timm":
            import timm

            return sorted(
                {_smallest(timm.list_models(module=module)) for module in timm.list_modules()} - {""}
            )
        if source == "smp":
            from segmentation_models_pytorch.encoders import get_encoder_names

            families: dict[str, list[str]] = {}
            for name in get_encoder_names():
                families.setdefault(re.sub(r"([-_][a-z])?\d.*", "", name), []).append(name)
            return sorted(map(_smallest, families.values()))
        return sorted(_transformers_classes())
    except ModuleNotFoundError as error:
        raise SptraceError(f"the package {error.name} is not installed: pip install {error.name}") from error


def _smallest(architectures: list[str]) -> str:
    """By its name: the one that is called small, else the one with the smallest numbers in it."""

    def rank(name: str) -> tuple[int, int, int, str]:
        small = next((place for place, word in enumerate(_SMALL) if word in name), len(_SMALL))
        return small, sum(int(number) for number in re.findall(r"\d+", name)), len(name), name

    return min(architectures, key=rank, default="")


def build(source: str, name: str) -> tuple[nn.Module, int]:
    """An untrained network in eval mode with random weights, and the height and width of its input."""
    module, size = _BUILDERS[source](name)
    module.eval().requires_grad_(False)
    fill(module)
    settle(module, size)
    return module, size


def fill(module: nn.Module) -> None:
    """Overwrite parameters and the statistics of norms by random numbers that depend on their names alone.

    Other buffers are tables and limits that belong to the architecture.
    """
    statistics = [
        item for item in module.named_buffers() if _leaf(item[0]) in ("running_mean", "running_var")
    ]
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *statistics]:
            if tensor.is_floating_point():
                draw = np.random.default_rng(zlib.crc32(name.encode()))
                tensor.copy_(torch.from_numpy(_random(draw, name, tuple(tensor.shape))))


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def settle(module: nn.Module, size: int) -> None:
    """Scale the statistics of batch norms at which large numbers arrive, as training does.

    Else sums of many branches, each with a batch norm of its own, grow from block to block to numbers in the hundreds,
    where float32 leaves gates fewer digits than they have in any trained network. The mean square of the whole layer
    is the scale, and small numbers stay small: statistics a channel, or growth, would make a random network chaotic,
    and multiply every rounding error.
    """

    def scale(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean, variance = norm.running_mean, norm.running_var
        square = float(inputs[0].square().mean())
        if isinstance(mean, Tensor) and isinstance(variance, Tensor) and 1 < square < float("inf"):
            mean.mul_(square**0.5)
            variance.mul_(square)

    norms = [norm for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    draw = np.random.default_rng(0)
    coarse, fine = (
        torch.from_numpy(draw.standard_normal((1, 3, cells, cells))).float() for cells in (16, size)
    )
    hooks = [norm.register_forward_pre_hook(scale) for norm in norms]
    with torch.no_grad():
        module(nn.functional.interpolate(coarse, (size, size), mode="bilinear") + 0.3 * fine)
    for hook in hooks:
        hook.remove()


def _random(draw: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    leaf = _leaf(name)
    if leaf == "running_var":
        values = draw.uniform(0.5, 1.5, shape)
    elif len(shape) >= 2:
        values = draw.standard_normal(shape) * np.sqrt(1.5 / np.prod(shape[1:]))
    elif leaf in (
        "weight",
        "gamma",
        "scale",
        "lambda1",
        "lambda2",
    ):  # norms and the scales of residual branches
        values = draw.uniform(0.4, 0.8, shape)
    else:
        values = 0.1 * draw.standard_normal(shape)
    return np.asarray(values, dtype=np.float32)


def _torchvision(name: str) -> tuple[nn.Module, int]:
    from torchvision.models import get_model, get_model_weights

    auxiliary = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module = get_model(name, weights=None, **auxiliary)
    # Weights for larger pictures are fine-tuned ones. A vision transformer is built for one size.
    size = min(weights.transforms().crop_size[0] for weights in get_model_weights(name))
    return module, int(getattr(module, "image_size", size))


def _timm(name: str) -> tuple[nn.Module, int]:
    import timm

    module: Any = timm.create_model(name, pretrained=False)
    return module, int(module.default_cfg["input_size"][-1])


def _transformers_classes() -> dict[str, str]:
    """The class of each image classifier of transformers -> the type of its configuration."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    return {
        name: kind
        for kind, classes in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items()
        for name in ([classes] if isinstance(classes, str) else classes)
        if name not in _NO_PICTURES
    }


def _transformers(name: str) -> tuple[nn.Module, int]:
    import transformers

    kind = _transformers_classes()[name]
    configuration = transformers.AutoConfig.for_model(kind, num_labels=10, **_CONFIGURED.get(name, {}))
    of_pictures = getattr(configuration, "vision_config", configuration)
    size = getattr(of_pictures, "image_size", None) or 224
    return getattr(transformers, name)(configuration), int(size if isinstance(size, int) else size[0])


class _Encoded(nn.Module):
    """An encoder's last features [N, C, h, w], averaged and classified."""

    def __init__(self, encoder: nn.Module, channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(channels, 10)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(image)[-1].mean((2, 3)))
        return logits


def _smp(name: str) -> tuple[nn.Module, int]:
    from segmentation_models_pytorch.encoders import get_encoder

    encoder = get_encoder(name, weights=None)
    return _Encoded(encoder, encoder.out_channels[-1]), 224


_BUILDERS: dict[str, Callable[[str], tuple[nn.Module, int]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
    "smp": _smp,
}
