"""The zip archive that `torch.export.save` writes: its JSON documents, and its tensors read as data.

Nothing in the archive is unpickled but state dicts of the forms before torch 2.9, by `torch.load(weights_only=True)`.
Example inputs, which are pickles, and machine code are left unread. Trusted are Python's zipfile and json, and
what torch does with `weights_only=True`.
"""

from __future__ import annotations

import io
import json
import math
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sptrace.errors import SptraceError
from sptrace.models.libraries import shown

Json = Any
# The number that torch/_export/serde/schema.py, version 8, gives each dtype.
DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    9: torch.complex32,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
    28: torch.uint16,
    34: torch.uint32,
    35: torch.uint64,
}
_STRIDED = 7
# Of a tensor whose numbers lie in the file only once, in bytes.
_LARGEST_EXPANSION = 1 << 30
_VERSION = 8
# Where the forms before torch 2.8 have what is under models/ and data/ since.
_OLD = ("serialized_exported_program.json", "serialized_state_dict.pt", "serialized_constants.pt")


@dataclass(frozen=True)
class Archive:
    """What a file holds that is read.

    Arguments:
        program: the serialised ExportedProgram, as JSON gave it: nothing in it has been checked.
        weights: the state dict.
        constants: other tensors by path, buffers that a state dict leaves out among them.
    """

    program: Json
    weights: dict[str, Tensor]
    constants: dict[str, Tensor]


def read(path: Path) -> Archive | None:
    """Read an exported program's archive without running any of it; None if the file is no such archive.

    Raises:
        SptraceError: it holds what cannot be read as data, or is damaged.
        Exception: in other ways too, if the file was made or damaged by hand.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as file:
        records = _Records(path, file)
        if _OLD[0] in records.entries:
            program = records.json(_OLD[0])
            weights, constants = (_state_dict(path, records.bytes(name)) for name in _OLD[1:])
        elif records.find("models/model.json"):
            program = records.json(records.place("models/model.json"))
            weights, constants = (_tensors(path, records, folder) for folder in ("weights", "constants"))
        else:
            return None
    written = program["schema_version"]["major"]
    if written != _VERSION:
        raise SptraceError(f"{path} is of a form that torch {torch.__version__} does not write")
    return Archive(program, weights, constants)


class _Records:
    """The entries of the zip file. All that is read of it fits in as many bytes as the file has."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        listed = file.infolist()
        self.entries = {entry.filename: entry for entry in listed}
        self._file = file
        self._root = listed[0].filename.split("/")[0] if listed else ""
        if len(self.entries) < len(listed):
            raise SptraceError(f"{path} holds two entries of one name")
        if sum(entry.file_size for entry in listed) > path.stat().st_size:
            raise SptraceError(f"{path} is compressed, as torch.export.save does not write it")
        if self.find("byteorder") and self.bytes(self.place("byteorder")) != sys.byteorder.encode():
            raise SptraceError(f"{path} has its numbers in another order of bytes than this machine")

    def place(self, name: str) -> str:
        return f"{self._root}/{name}"

    def find(self, name: str) -> bool:
        return self.place(name) in self.entries

    def bytes(self, entry: str) -> bytearray:
        content = bytearray(self.entries[entry].file_size)
        with self._file.open(entry) as opened:
            stream: Any = opened  # readinto is no part of what its type says
            if stream.readinto(content) != len(content) or stream.read(1):
                raise ValueError(f"{entry} ends early")
        return content

    def json(self, entry: str) -> Json:
        return json.loads(self.bytes(entry).decode())


def _tensors(path: Path, records: _Records, folder: str) -> dict[str, Tensor]:
    """The tensors of `data/weights` or `data/constants`; those that share memory in the file share it here."""
    old = records.place(f"data/{folder}/model.pt")
    if old in records.entries:
        return _state_dict(path, records.bytes(old))
    memory: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    config: Mapping[str, Json] = records.json(records.place(f"data/{folder}/model_{folder}_config.json"))[
        "config"
    ]
    for name, entry in config.items():
        if entry["use_pickle"] is not False or not entry["tensor_meta"]:
            raise SptraceError(
                f"{path}: {shown(name)} is no plain tensor but an object that only its own code can read, and code in "
                "a file is not run: export a network of ordinary parameters and buffers"
            )
        record = entry["path_name"]
        if record not in memory:
            content = records.bytes(records.place(f"data/{folder}/{record}"))
            memory[record] = (
                torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
            )
        tensor = _strided(memory[record], entry["tensor_meta"])
        tensors[name] = nn.Parameter(tensor, requires_grad=False) if entry["is_param"] is True else tensor
    return tensors


def _strided(memory: Tensor, meta: Json) -> Tensor:
    """The tensor that a description says lies in those bytes.

    Raises:
        ValueError: it does not lie within them.
    """
    dtype = DTYPES[meta["dtype"]]
    sizes, strides = ([_number(size) for size in meta[key]] for key in ("sizes", "strides"))
    offset = _number(meta["storage_offset"])
    if meta["layout"] != _STRIDED or len(sizes) != len(strides):
        raise ValueError("a tensor of another layout than strided")
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if math.prod(sizes) * dtype.itemsize > max(memory.numel(), _LARGEST_EXPANSION):
        raise ValueError(f"a tensor of {sizes} in {memory.numel()} bytes")
    if math.prod(sizes) == 0:
        return torch.empty(sizes, dtype=dtype)
    if (last + 1) * dtype.itemsize > memory.numel():
        raise ValueError(f"a tensor of {sizes} in {memory.numel()} bytes")
    return (
        memory[: memory.numel() // dtype.itemsize * dtype.itemsize]
        .view(dtype)
        .as_strided(sizes, strides, offset)
    )


def _number(size: Json) -> int:
    number = size["as_int"]
    if type(number) is not int or number < 0:
        raise ValueError(f"{number} is no size")
    return number


def _state_dict(path: Path, content: bytearray) -> dict[str, Tensor]:
    """What the forms before torch 2.9 keep in one pickle, which is read as data."""
    if not content:
        return {}
    try:
        tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # in many types, for the first bytes are the commands of a pickle
        raise SptraceError(
            f"{path} holds more than plain tensors, and code in a file is not run: export it again with "
            f"torch {torch.__version__}"
        ) from error
    if not isinstance(tensors, dict) or not all(map(_is_plain, tensors.values())):
        raise SptraceError(f"{path} holds weights that are no plain tensors")
    return {
        name: nn.Parameter(tensor, requires_grad=False)
        if isinstance(tensor, nn.Parameter)
        else tensor.detach()
        for name, tensor in tensors.items()
    }


def _is_plain(value: object) -> bool:
    return type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and not value.is_quantized  # type: ignore[attr-defined]
