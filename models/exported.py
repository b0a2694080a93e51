"""A network that somebody exported: a .pt2 file written by `torch.export.save`, which need not be trusted.

`torch.export.load` runs code of the file: it unpickles example inputs and custom objects, evaluates expressions as
Python, imports what tree specifications name. It is not used here. The archive is read by `pt2_archive`, tensors as
data, its graph is built anew by `pt2_graph` from operators of a list (`pt2_operators`), and the few expressions that
count are worked out by `pt2_sizes`. What needs more than these is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.fx import GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sptrace.artifact.description import Preprocessing
from sptrace.compiler.network import Network
from sptrace.errors import SptraceError
from sptrace.models import pt2_archive, pt2_graph, pt2_sizes
from sptrace.models.libraries import fingerprint, first_line, quiet
from sptrace.models.recording import assemble

_HOW = (
    "torch.export.export(model.eval(), (image,), "
    "dynamic_shapes=({0: torch.export.Dim('batch')},)) with image of [2, 3, height, width]"
)
# A graph has to be right for all batches; these are tried.
_BATCHES = (1, 2, 3, 4, 5, 8, 13, 32, 100, 1000)
_LARGEST_SIDE = 16384
_LARGEST_TENSOR = 1 << 32


def load(name: str, *, weights: Path | None, size: int | None) -> Network:
    """Load the network of a .pt2 file, running nothing of it but operators on tensors; see `sptrace.models.resolve`.

    Nothing in the file says how its pixels were normalised: mean and std are None, the program takes `image`
    in [-1, 1] as it is. Photographs are scaled to the input size and centre-cropped, or squeezed if oblong.

    Arguments:
        name: path of the file.
        weights: must be None, the file carries its own.
        size: only for a file whose height and width are dynamic; None then takes those of its example input.

    Raises:
        SptraceError: the file is no exported program, or holds code; it takes something else than pictures in
            batches of any size; it was exported in training mode.
    """
    if weights is not None:
        raise SptraceError(f"{name} carries its own weights: leave --weights out")
    path = Path(name)
    if not path.is_file():
        raise SptraceError(f"{path}: no such file")
    with _reading(path):
        archive = pt2_archive.read(path)
        if archive is None:
            raise SptraceError(
                f"{path} holds no exported program: write it with torch.export.save({_HOW}, FILE)"
            )
        pictures = _pictures(name, archive.program)
        shape = _input_size(name, pictures, size)
        module = pt2_graph.build(archive)
        _refuse_training(name, module)
        _refuse_huge(name, module, shape)
    height, width = shape
    preprocessing = Preprocessing(size=shape, resize=height if height == width else None)
    with _reading(path):
        return assemble(module, model=name, preprocessing=preprocessing, weights=fingerprint(path))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """One line in place of whatever a file that is damaged, or of another version of torch, makes go wrong."""
    try:
        with quiet():
            yield
    except SptraceError as error:
        raise SptraceError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except Exception as error:  # what lies in the file may be anything
        raise SptraceError(
            f"{path} cannot be loaded ({type(error).__name__}: {ascii(first_line(error))[1:-1][:160]}): "
            f"export it again with torch {torch.__version__}"
        ) from error


def _pictures(name: str, program: pt2_archive.Json) -> pt2_sizes.Pictures:
    """What the file says about its one input."""
    inputs = pt2_graph.inputs(program)
    pictures = pt2_sizes.read(program, inputs[0]) if len(inputs) == 1 and inputs[0] else None
    if pictures is None or len(pictures.sizes) != 4 or pictures.sizes[1] != 3:
        raise SptraceError(
            f"{name} must take one input, images of [N, 3, height, width]: export it with {_HOW}"
        )
    if pictures.dtype != torch.float32:
        raise SptraceError(
            f"{name} takes {pictures.dtype}, not float32: export the network after model.float()"
        )
    return pictures


def _input_size(name: str, pictures: pt2_sizes.Pictures, size: int | None) -> tuple[int, int]:
    batch, _, *own = pictures.sizes
    if isinstance(batch, int):
        raise SptraceError(f"{name} was exported for batches of {batch} only: export it with {_HOW}")
    fixed = [length for length in own if isinstance(length, int)]
    if size is not None and any(length != size for length in fixed):
        raise SptraceError(f"{name} was exported for pictures of {own[0]} x {own[1]}: leave --size out")
    height, width = (length if size is None else size for length in pictures.example[2:])
    if height is None or width is None:
        raise SptraceError(f"{name} takes pictures of any size and names none: choose one with --size")
    if not 0 < min(height, width) <= max(height, width) <= _LARGEST_SIDE:
        raise SptraceError(f"{name} takes pictures of {height} x {width}, which is no size of a photograph")
    for number in _BATCHES:
        try:
            broken = pictures.broken((number, 3, height, width))
        except ValueError as error:
            raise SptraceError(
                f"{name} was exported under a condition that sptrace cannot check ({error}): export it with {_HOW}"
            ) from error
        if broken is not None:
            raise SptraceError(
                f"{name} was exported for other input than {number} pictures of {height} x {width} "
                f"(its condition: {ascii(broken)[1:-1][:160]}): choose --size by that, or export it with {_HOW}"
            )
    return height, width


class _Bounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stops at the first tensor that needs more memory than any network does for one picture."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() > _LARGEST_TENSOR:
                raise SptraceError(f"a tensor of {func} needs {tensor.untyped_storage().nbytes() >> 30} GiB")
        return made


def _refuse_huge(name: str, module: nn.Module, size: tuple[int, int]) -> None:
    """Run the graph without data first: a few bytes of a file can ask for any amount of memory."""
    bounded = _Bounded()  # type: ignore[no-untyped-call]
    undecided = (DataDependentOutputException, DynamicOutputShapeException)
    with (
        contextlib.suppress(*undecided),
        torch.no_grad(),
        FakeTensorMode(allow_non_fake_inputs=True),
        bounded,
    ):
        module(torch.zeros(1, 3, *size))


def _refuse_training(name: str, module: nn.Module) -> None:
    graphs = [inner.graph for inner in module.modules() if isinstance(inner, GraphModule)]
    for node in (node for graph in graphs for node in graph.nodes):
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
