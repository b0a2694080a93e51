"""An ONNX model as one file; or as two, where its weights exceed what the format takes in one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

from sptrace.artifact.files import replacing
from sptrace.errors import SptraceError

LARGEST = 2**31 - 2**26
"""Bytes of weights. A protobuf message ends at 2 GiB; 64 MiB are left for the nodes."""

SMALL = 2**28
"""Bytes of weights up to which a file that is only loaded need not be written."""

EXTERNAL = ".data"
"""What is added to the name of the file for the name of its weights."""


def weights_size(model: ir.Model) -> int:
    """Bytes of all constants, those in the bodies of loops among them."""
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def to_bytes(model: ir.Model) -> bytes:
    """The one file.

    Raises:
        SptraceError: the weights do not fit into it.
    """
    size = weights_size(model)
    if size > LARGEST:
        raise SptraceError(
            f"the weights take {size / 1e9:.1f} GB, more than one ONNX file holds: save the program, which makes two"
        )
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def check(model: ir.Model) -> None:
    """Let the ONNX checker pass it."""
    with loadable(model) as given:
        onnx.checker.check_model(given, full_check=True)


@contextmanager
def loadable(model: ir.Model) -> Iterator[bytes | str]:
    """What onnxruntime and the ONNX checker load: the serialized model, or the path of a temporary file.

    A session keeps the bytes that it was given for as long as it lives, but of a file only what it needs.
    """
    size = weights_size(model)
    if size <= min(SMALL, LARGEST):
        yield to_bytes(model)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        if size <= LARGEST:
            path.write_bytes(to_bytes(model))
        else:
            ir.save(model, path, external_data=f"{path.name}{EXTERNAL}")
        yield str(path)


def save(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Write the file, and beside it PATH.data if the weights take more than 1.9 GB; each appears when it is whole.

    Raises:
        SptraceError: a file cannot be written.
    """
    target = Path(os.path.realpath(path))
    with replacing(path) as temporary:
        if weights_size(model) <= LARGEST:
            temporary.write_bytes(to_bytes(model))
            return
        # The file names its weights, so both are written under their final names, in a folder of their own.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".sptrace-") as folder:
            whole, weights = Path(folder) / target.name, Path(folder) / f"{target.name}{EXTERNAL}"
            ir.save(model, whole, external_data=weights.name)
            os.replace(weights, target.with_name(weights.name))
            os.replace(whole, temporary)
