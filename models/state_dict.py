"""Weights from a file: read without running code, and fitted strictly into an architecture."""

from __future__ import annotations

import argparse
import pickle
import posixpath
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from sptrace.errors import SptraceError
from sptrace.models.libraries import fingerprint, first_line, quiet, shown

Triple = tuple[float, float, float]
Tensors = OrderedDict[str, Tensor]

# Where training scripts put the state dict (torchvision's: "model", timm's and Lightning's: "state_dict"). Averaged
# weights stand behind those that were trained, where a file has both.
_NESTED_UNDER = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "weights",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "module",
)
# Under which names programs for training, Lightning's for one, hold the network itself.
_OWNERS = ("model.", "backbone.", "net.", "network.", "encoder.", "module.")
# What hyper-parameters beside the weights are made of, and the plain thing that each is read as.
_BAGS = {
    "lightning_fabric.utilities.data.AttributeDict": dict,
    "lightning.fabric.utilities.data.AttributeDict": dict,
    "pytorch_lightning.utilities.parsing.AttributeDict": dict,
    "lightning.pytorch.utilities.parsing.AttributeDict": dict,
    "pathlib.PosixPath": posixpath.join,
    "pathlib._local.PosixPath": posixpath.join,
}
# What DataParallel and torch.compile put before every name.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
# How many names an error message gives before it only counts.
_NAMED = 3


@dataclass(frozen=True)
class WeightsFile:
    """A state dict, and what its file says about it.

    Arguments:
        tensors: by parameter and buffer name.
        mean, std: of pixels in [0, 1], if the file's metadata gives them.
        fingerprint: file name and short SHA-256.
    """

    tensors: Tensors
    mean: Triple | None
    std: Triple | None
    fingerprint: str


def read(path: Path) -> WeightsFile:
    """Read a state dict; never runs code that the file may carry.

    Arguments:
        path: a .safetensors file, whose metadata may give `mean` and `std` (three numbers each); or a file
            written by `torch.save`, of the state dict or of a dict that has it under a usual name, "state_dict",
            "model", "net" or "ema" for instance.

    Raises:
        SptraceError: no such file; it cannot be read; it contains code; it holds no state dict.
    """
    if not path.is_file():
        raise SptraceError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        tensors, metadata = _read_safetensors(path)
    else:
        tensors, metadata = _state_dict(path, _unpickle(path)), {}
    for prefix in _WRAPPER_PREFIXES:
        consume_prefix_in_state_dict_if_present(tensors, prefix)
    mean, std = (_triple(path, metadata, key) for key in ("mean", "std"))
    return WeightsFile(tensors, mean, std, fingerprint(path))


def fit(
    build: Callable[[int | None], nn.Module],
    file: WeightsFile,
    *,
    model: str,
    adapt: Callable[[Tensors, nn.Module], Tensors] = lambda tensors, module: tensors,
) -> nn.Module:
    """Build an architecture and load a file's weights into it, every one of them.

    Arguments:
        build: the architecture with a given number of classes; None: with its own.
        file: the weights. If they fit but for the number of classes, the architecture is built with theirs.
        model: the architecture's name, for messages.
        adapt: renames or resamples tensors to what the module expects.

    Raises:
        SptraceError: tensors are missing, left over or of other shapes.
    """
    module = build(None)
    own = _of_network(file.tensors, module)
    tensors = adapt(own, module)
    classes = _other_classes(module, tensors)
    mismatch = _load(module, tensors)
    if mismatch and classes is not None:
        resized = build(classes)
        if not _load(resized, adapt(own, resized)):
            return resized
    if mismatch:
        _refuse_other_channels(module, tensors, file)
        name = file.fingerprint.rsplit(maxsplit=1)[0]
        raise SptraceError(
            f"{name} does not fit {model}: {mismatch}; name the architecture (and --size) that was trained, "
            "or export the network itself with torch.export.save and give the .pt2 file"
        )
    return module


def _of_network(tensors: Tensors, module: nn.Module) -> Tensors:
    """Those of the network itself, where a file has them under the name that a program for training gave it."""
    expected = module.state_dict().keys()
    if expected & tensors.keys():
        return tensors
    for prefix in (*_OWNERS, *(outer + inner for outer in _OWNERS for inner in _OWNERS)):
        inner = OrderedDict(
            (key.removeprefix(prefix), value) for key, value in tensors.items() if key.startswith(prefix)
        )
        if 2 * len(expected & inner.keys()) >= len(expected):
            return inner
    return tensors


def _refuse_other_channels(module: nn.Module, tensors: Tensors, file: WeightsFile) -> None:
    """Say so if the network was trained on pictures of another number of channels than three."""
    expected = module.state_dict()
    for key, value in tensors.items():
        ours, theirs = expected.get(key, value).shape, value.shape
        differs = len(ours) == len(theirs) == 4 and ours[1] == 3 != theirs[1]
        if differs and ours[:1] + ours[2:] == theirs[:1] + theirs[2:]:
            raise SptraceError(
                f"{file.fingerprint.rsplit(maxsplit=1)[0]} was trained on pictures of {value.shape[1]} channels "
                f"({shown(key)} is {list(value.shape)}): sptrace explains networks for red, green and blue"
            )


def _read_safetensors(path: Path) -> tuple[Tensors, Mapping[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return OrderedDict((key, file.get_tensor(key)) for key in file.keys()), file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SptraceError(
            f"{path} cannot be read as safetensors ({first_line(error)}): save it again"
        ) from error


def _unpickle(path: Path) -> object:
    """Read the plain data and tensors that `torch.save` wrote.

    argparse.Namespace, a bag of attributes, is let through: the training scripts of timm and torchvision save
    their options with the weights. Other bags become dicts (`_BAGS`).
    """
    harmless: list[Any] = [argparse.Namespace, *((plain, name) for name, plain in _BAGS.items())]
    try:
        with quiet(), torch.serialization.safe_globals(harmless):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        if culprit is None:
            raise _unreadable(path, "torch.save did not write it") from error
        raise SptraceError(
            f"{path} contains more than tensors ({culprit[1]}), and code in a file of weights is not run: "
            "save the weights alone, torch.save(model.state_dict(), FILE)"
        ) from error
    except (RuntimeError, OSError) as error:
        raise _unreadable(path, first_line(error).split(". ")[0]) from error
    except Exception as error:  # anything, for torch.load takes the first bytes for the commands of a pickle
        raise _unreadable(path, "torch.save did not write it") from error


def _unreadable(path: Path, reason: str) -> SptraceError:
    return SptraceError(
        f"{path} cannot be read as weights ({reason}): "
        "save them with torch.save(model.state_dict(), FILE) or as .safetensors"
    )


def _state_dict(path: Path, content: object) -> Tensors:
    whole = content
    while isinstance(content, dict):
        if content and all(isinstance(value, Tensor) for value in content.values()):
            # What Module.state_dict() gives also carries the version of every submodule, for loading.
            return content if isinstance(content, OrderedDict) else OrderedDict(content)
        nested = [content[key] for key in _NESTED_UNDER if isinstance(content.get(key), dict)]
        if not nested:
            break
        content = nested[0]
    keys = f" of {_few(map(str, whole))}" if isinstance(whole, dict) and whole else ""
    raise SptraceError(
        f"{path} holds no state dict but a {type(whole).__name__}{keys}: "
        "save the weights with torch.save(model.state_dict(), FILE)"
    )


def _triple(path: Path, metadata: Mapping[str, str], key: str) -> Triple | None:
    if key not in metadata:
        return None
    try:
        red, green, blue = (float(number) for number in re.split(r"[\s,]+", metadata[key].strip(" []()")))
    except ValueError as error:
        raise SptraceError(
            f"{path}: the metadata's {key} must be three numbers such as '0.5 0.5 0.5', not "
            f"{ascii(metadata[key])[:80]}"
        ) from error
    return red, green, blue


def _other_classes(module: nn.Module, tensors: Tensors) -> int | None:
    """Find the number of classes that would make the tensors fit, if they differ in nothing else."""
    expected = module.state_dict()
    differing = [
        (expected[key].shape, value.shape) for key, value in tensors.items() if _differs(expected, key, value)
    ]
    counts = {(ours[:1], theirs[:1]) for ours, theirs in differing}
    if len(counts) != 1 or any(ours[1:] != theirs[1:] for ours, theirs in differing):
        return None
    ((_, theirs),) = counts
    return theirs[0] if theirs else None


def _load(module: nn.Module, tensors: Tensors) -> str:
    """Load all that fits; says what does not, in words."""
    expected = module.state_dict()
    shapes = {key: expected[key].shape for key, value in tensors.items() if _differs(expected, key, value)}
    fitting = OrderedDict((key, value) for key, value in tensors.items() if key not in shapes)
    # Formats without versions (safetensors) are taken to be as new as the module.
    versions: Any = getattr(tensors, "_metadata", None) or expected._metadata  # type: ignore[attr-defined]
    fitting._metadata = versions  # type: ignore[attr-defined]
    outcome = module.load_state_dict(fitting, strict=False)
    # Batch norms count their training steps since 2018: older files lack that, and inference does not use it.
    missing = [
        key for key in outcome.missing_keys if key not in shapes and not key.endswith("num_batches_tracked")
    ]
    reshaped = [
        f"{shown(key)} is {list(tensors[key].shape)} instead of {list(shape)}"
        for key, shape in shapes.items()
    ]
    parts = {"missing": missing, "unexpected": outcome.unexpected_keys, "of another shape": reshaped}
    return ", ".join(f"{len(keys)} {what} ({_few(keys)})" for what, keys in parts.items() if keys)


def _differs(expected: Mapping[str, Tensor], key: str, value: Tensor) -> bool:
    return key in expected and expected[key].shape != value.shape


def _few(keys: Iterable[str]) -> str:
    listed = list(map(shown, keys))
    return ", ".join(listed[:_NAMED]) + (", ..." if len(listed) > _NAMED else "")
