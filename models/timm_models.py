"""Any image classifier of timm, by name, with or without a tag (`resnet50`, `resnet50.a1_in1k`)."""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import timm
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.models import PretrainedCfg, get_pretrained_cfg, model_entrypoint, split_model_name_tag
from torch import nn

from sptrace.artifact.description import Preprocessing
from sptrace.compiler.network import Network
from sptrace.errors import SptraceError
from sptrace.models import labels, state_dict
from sptrace.models.libraries import (
    TIMEOUT_SECONDS,
    downloading,
    fingerprint,
    first_line,
    hub_file,
    is_file_of,
)
from sptrace.models.recording import assemble, at_size

# What a repository of weights calls them; timm asks in this order.
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def names() -> list[str]:
    """List every architecture that timm knows, and every one with the tag of its weights."""
    return [*timm.list_models(), *timm.list_pretrained()]


def load(name: str, *, weights: Path | None, size: int | None) -> Network:
    """Load a timm classifier; see `sptrace.models.resolve`.

    Preprocessing is timm's for the (default) tag of the name, also when the weights come from a file.
    """
    model = f"timm:{name}"
    settings = cast(PretrainedCfg, get_pretrained_cfg(name, allow_unregistered=False))
    # These architectures have position embeddings or windows of a fixed size, and take it as an argument.
    arguments: dict[str, Any] = {"img_size": size} if size is not None and settings.fixed_input_size else {}
    shape = settings.input_size[1:] if size is None else (size, size)
    mean, std = cast(state_dict.Triple, settings.mean), cast(state_dict.Triple, settings.std)
    if weights is None:
        origin = _download(name, model, settings)
        with at_size(model, shape):
            module = timm.create_model(name, pretrained=True, **arguments)
    else:
        file = state_dict.read(weights)
        origin, mean, std = file.fingerprint, file.mean or mean, file.std or std
        with at_size(model, shape):
            build, adapt = _builder(name, settings, arguments), _converter(name, model)
            module = state_dict.fit(build, file, model=model, adapt=adapt)
    preprocessing = Preprocessing(
        size=shape,
        resize=_resize(shape, settings),
        interpolation=settings.interpolation,
        mean=mean,
        std=std,
    )
    origin = f"timm {timm.__version__} {name}, {origin}"
    own = weights is None or (isinstance(settings.url, str) and is_file_of(settings.url, origin))
    return assemble(
        module,
        model=model,
        preprocessing=preprocessing,
        weights=origin,
        labels=_class_names(settings) if own else None,
        link="softmax" if own else None,
    )


def _download(name: str, model: str, settings: PretrainedCfg) -> str:
    """Put the pretrained weights where timm will find them, and give their fingerprint.

    timm lets huggingface_hub try each of two files six times: offline, that takes a minute. So ask once.
    """
    if not settings.has_weights:
        tagged = timm.list_pretrained(f"{split_model_name_tag(name)[0]}.*")
        choice = f"take {' or '.join(f'timm:{other}' for other in tagged[:3])}, or " if tagged else ""
        raise SptraceError(
            f"timm has no pretrained weights for {name}: {choice}give a file with --weights FILE"
        )
    if settings.num_classes == 0:
        raise SptraceError(
            f"timm has {name} only as a feature extractor, without classes: "
            "give the weights of a fine-tuned network with --weights FILE"
        )
    if settings.hf_hub_id is None:
        url = cast(str, settings.url)
        with downloading(model, url):
            return fingerprint(hub_file(url))
    with downloading(model, huggingface_hub.hf_hub_url(settings.hf_hub_id, _HUB_FILES[0])):
        return f"{settings.hf_hub_id} {fingerprint(_hub_snapshot(settings.hf_hub_id))}"


def _hub_snapshot(repository: str) -> Path:
    for file in _HUB_FILES:
        with suppress(LocalEntryNotFoundError):
            return Path(huggingface_hub.hf_hub_download(repository, file, local_files_only=True))
    for file in _HUB_FILES:
        try:
            huggingface_hub.get_hf_file_metadata(
                huggingface_hub.hf_hub_url(repository, file), timeout=TIMEOUT_SECONDS
            )
        except EntryNotFoundError:
            continue
        except Exception as error:  # those of whichever HTTP library huggingface_hub is built on
            raise OSError(first_line(error)) from error
        return Path(huggingface_hub.hf_hub_download(repository, file))
    raise OSError(f"{repository} has neither {' nor '.join(_HUB_FILES)}")


def _builder(
    name: str, settings: PretrainedCfg, arguments: dict[str, Any]
) -> Callable[[int | None], nn.Module]:
    def build(classes: int | None) -> nn.Module:
        # A feature extractor (0 classes) gets a head all the same: a fine-tuned file has one to put into it.
        module: nn.Module = timm.create_model(
            name, num_classes=classes or settings.num_classes or 1000, **arguments
        )
        return module

    return build


def _converter(name: str, model: str) -> Callable[[state_dict.Tensors, nn.Module], state_dict.Tensors]:
    """Find timm's own conversion of published files: other code bases' names, embeddings for another size."""
    architecture = sys.modules[model_entrypoint(split_model_name_tag(name)[0]).__module__]
    convert = getattr(architecture, "checkpoint_filter_fn", None)

    def adapt(tensors: state_dict.Tensors, module: nn.Module) -> state_dict.Tensors:
        if convert is None:
            return tensors
        try:
            return OrderedDict(convert(OrderedDict(tensors), module))
        except Exception as error:  # a conversion trips over a file it was not made for in any way it likes
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise SptraceError(f"the weights are not those of {model} ({reason})") from error

    return adapt


def _resize(shape: tuple[int, int], settings: PretrainedCfg) -> int | None:
    """Give the length to which the shorter side is scaled; None squeezes the whole photograph.

    timm's "squash" may crop a few per cent from the squeezed photograph, its "border" pads instead of
    squeezing (17 of 1800 networks): for them this is the nearest that `Preprocessing` can say.
    """
    return math.floor(min(shape) / settings.crop_pct) if settings.crop_mode == "center" else None


def _class_names(settings: PretrainedCfg) -> tuple[str, ...] | None:
    """The names of the classes of timm's own weights: of the last data set that their tag names (`a1_in1k`)."""
    if settings.label_names:
        return tuple(settings.label_names)
    data_set = next((part for part in (settings.tag or "").split("_")[::-1] if part.startswith("in")), None)
    subset = infer_imagenet_subset({"num_classes": settings.num_classes})
    # Of in21k and in22k there are several versions, told apart by their number of classes.
    if data_set is None or subset is None or not subset.startswith(f"imagenet-{data_set.removeprefix('in')}"):
        return None
    if settings.num_classes == len(labels.imagenet()):
        return labels.imagenet()
    return tuple(ImageNetInfo(subset).label_descriptions())
