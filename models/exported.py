"""A network that somebody exported: a .pt2 file written by `torch.export.save`.

Such a file is a program, and must be trusted like one. `torch.export.load` of torch 2.14 unpickles example
inputs that are not plain tensors (tried: a file made for it ran a shell command), unpickles custom objects,
evaluates symbolic expressions and loads shared libraries from the archive. sptrace cannot make that safe; a
state dict given with --weights has none of this.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from sptrace.artifact import Preprocessing
from sptrace.errors import SptraceError
from sptrace.models.assembly import assemble
from sptrace.models.libraries import fingerprint, first_line, quiet
from sptrace.models.network import Network

_HOW = (
    "torch.export.export(model.eval(), (image,), "
    "dynamic_shapes=({0: torch.export.Dim('batch')},)) with image of [2, 3, height, width]"
)


def load(name: str, *, weights: Path | None, size: int | None) -> Network:
    """Load the network of a .pt2 file; see `sptrace.models.resolve`.

    Nothing in the file says how its pixels were normalised: mean and std are None, the program takes `image`
    in [-1, 1] as it is. Photographs are scaled to the input size and centre-cropped, or squeezed if oblong.

    Arguments:
        name: path of the file.
        weights: must be None, the file carries its own.
        size: only for a file whose height and width are dynamic; None then takes those of its example input.

    Raises:
        SptraceError: the file is no exported program; it takes something else than pictures in batches of
            any size; it was exported in training mode.
    """
    if weights is not None:
        raise SptraceError(f"{name} carries its own weights: leave --weights out")
    program = _read(Path(name))
    _refuse_training(name, program)
    shape = _input_size(name, program, size)
    height, width = shape
    preprocessing = Preprocessing(size=shape, resize=height if height == width else None)
    return assemble(
        _module(program), model=name, preprocessing=preprocessing, weights=fingerprint(Path(name))
    )


def _read(path: Path) -> ExportedProgram:
    if not path.is_file():
        raise SptraceError(f"{path}: no such file")
    # A compiled package (AOTInductor) has the same suffix, and loading it would run its machine code.
    if not zipfile.is_zipfile(path) or not any(
        "/models/" in entry for entry in zipfile.ZipFile(path).namelist()
    ):
        raise SptraceError(f"{path} holds no exported program: write it with torch.export.save({_HOW}, FILE)")
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:  # whatever the deserialiser of an archive of another torch version trips over
        raise SptraceError(
            f"{path} cannot be loaded ({type(error).__name__}: {first_line(error)}): "
            f"export it again with torch {torch.__version__}"
        ) from error


def _module(program: ExportedProgram) -> nn.Module:
    """Turn the program into a module like any other, with the submodule names of the network it was."""
    module = program.module()
    # Its train() and eval() only raise: they cannot change the graph. After _refuse_training they need not.
    for method in ("train", "eval"):
        vars(module).pop(method, None)
    return module


def _input_size(name: str, program: ExportedProgram, size: int | None) -> tuple[int, int]:
    inputs = program.graph_signature.user_inputs
    images = [
        node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs
    ]
    if (
        len(images) != 1
        or not isinstance(images[0], torch.Tensor)
        or images[0].ndim != 4
        or images[0].shape[1] != 3
    ):
        raise SptraceError(
            f"{name} must take one input, images of [N, 3, height, width]: export it with {_HOW}"
        )
    if images[0].dtype != torch.float32:
        raise SptraceError(
            f"{name} takes {images[0].dtype}, not float32: export the network after model.float()"
        )
    batch, _, *own = images[0].shape
    if not isinstance(batch, torch.SymInt):
        raise SptraceError(f"{name} was exported for batches of {batch} only: export it with {_HOW}")
    fixed = [isinstance(length, int) for length in own]
    if size is not None and any(
        length != size for length, is_fixed in zip(own, fixed, strict=True) if is_fixed
    ):
        raise SptraceError(f"{name} was exported for pictures of {own[0]} x {own[1]}: leave --size out")
    if all(fixed):
        return int(own[0]), int(own[1])
    if size is not None:
        return size, size
    if program.example_inputs is None:
        raise SptraceError(f"{name} takes pictures of any size and names none: choose one with --size")
    height, width = program.example_inputs[0][0].shape[2:]
    return height, width


def _refuse_training(name: str, program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        if _trains(node):
            raise SptraceError(
                f"{name} was exported in training mode ({node.target} of {node.name} acts as in training): "
                f"export it with {_HOW}"
            )


def _trains(node: Node) -> bool:
    """Tell whether a node is a dropout or a batch norm that behaves as in training."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    given = dict(zip((argument.name for argument in node.target._schema.arguments), node.args, strict=False))
    given.update(node.kwargs)
    return given.get("train") is True or given.get("training") is True
