"""What an ONNX file holds, read without the `onnx` package.

ONNX files are protocol buffers: a message is a sequence of fields, each a key (field number and wire type)
and a value. The field numbers below are those of onnx.proto. Weights are length-prefixed like everything
else, so they are stepped over and never read from the disk.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sptrace.errors import SptraceError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_TYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"},
    **{8: "string", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16"},
}


@dataclass(frozen=True)
class Value:
    """An input or output of the graph.

    A dimension is a number, or the name of one that is free, "?" if it has no name.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class OnnxFile:
    """The outline of an ONNX file.

    Arguments:
        size: of the file, in bytes.
        ir_version: version of the file format.
        opsets: version of every operator set by its domain; "" is ONNX's own.
        metadata: the free-form entries.
        inputs, outputs: of the graph.
        operators: number of nodes by operator type, most frequent first; nodes in the bodies of `Loop` and
            `If` are counted once.
        most_outputs: the largest number of outputs that a node of the operator type has.
    """

    size: int
    ir_version: int
    opsets: dict[str, int]
    metadata: dict[str, str]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    operators: dict[str, int]
    most_outputs: dict[str, int]


def outline(path: str | os.PathLike[str]) -> OnnxFile:
    """Read the outline of an ONNX file.

    Raises:
        SptraceError: the file is missing or unreadable, or is not ONNX.
    """
    with _reading(path):
        with open(path, "rb") as file:
            # Not closed by hand: a memoryview that an exception still refers to would forbid it.
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        model = _message(view)
        [graph] = model[7]
        return _outline(model, _message(graph), len(view))


@contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """An SptraceError in place of whatever a file that is missing, or no ONNX file, makes go wrong."""
    try:
        yield
    except OSError as error:
        raise SptraceError(f"cannot read {path}: {error.strerror}") from error
    except (IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise SptraceError(f"{path} is not an ONNX file: give a file that `sptrace compile` wrote") from error


def without_defaults(path: str | os.PathLike[str], names: Collection[str]) -> bytes:
    """The file, with inputs that have defaults made inputs that must be given.

    Arguments:
        path: an ONNX file.
        names: of the inputs.

    Raises:
        SptraceError: as in `outline`.
    """
    with _reading(path):
        with open(path, "rb") as file:
            model = memoryview(file.read())
        parts = []
        for number, start, end, value in _fields(model):
            if number == 7 and isinstance(value, memoryview):
                graph = b"".join(
                    value[first:last]
                    for field, first, last, item in _fields(value)
                    if not (field == 5 and _text(_message(item), 8) in names)
                )
                parts += [_as_varint(7 << 3 | _BYTES), _as_varint(len(graph)), graph]
            else:
                parts.append(bytes(model[start:end]))
        return b"".join(parts)


Field = int | memoryview
Message = dict[int, list[Field]]


def _outline(model: Message, graph: Message, size: int) -> OnnxFile:
    opsets = [_message(opset) for opset in model.get(8, [])]
    entries = [_message(entry) for entry in model.get(14, [])]
    nodes = list(_nodes(graph))
    operators = Counter(_text(node, 4) for node in nodes)
    most_outputs = dict.fromkeys(operators, 0)
    for node in nodes:
        most_outputs[_text(node, 4)] = max(most_outputs[_text(node, 4)], len(node.get(2, [])))
    return OnnxFile(
        size=size,
        ir_version=_integer(model, 1),
        opsets={_text(opset, 1): _integer(opset, 2) for opset in opsets},
        metadata={_text(entry, 1): _text(entry, 2) for entry in entries},
        inputs=tuple(_value(_message(value)) for value in graph.get(11, [])),
        outputs=tuple(_value(_message(value)) for value in graph.get(12, [])),
        operators=dict(operators.most_common()),
        most_outputs=most_outputs,
    )


def _nodes(graph: Message) -> Iterator[Message]:
    """Every node, and those in graphs that nodes hold as attributes."""
    for node in map(_message, graph.get(1, [])):
        yield node
        for attribute in map(_message, node.get(5, [])):
            for subgraph in attribute.get(6, []) + attribute.get(11, []):
                yield from _nodes(_message(subgraph))


def _value(value: Message) -> Value:
    kind = _message(_message(value[2][0])[1][0])
    dimensions = [
        _message(dimension) for shape in kind.get(2, []) for dimension in _message(shape).get(1, [])
    ]
    shape = tuple(_integer(size, 1) if 1 in size else _text(size, 2) or "?" for size in dimensions)
    element = _integer(kind, 1)
    return Value(_text(value, 1), _TYPES.get(element, f"type {element}"), shape)


def _integer(message: Message, number: int) -> int:
    value = message[number][-1] if number in message else 0
    if not isinstance(value, int):
        raise TypeError(f"field {number} is not an integer")
    return value


def _text(message: Message, number: int) -> str:
    value = message[number][-1] if number in message else memoryview(b"")
    if isinstance(value, int):
        raise TypeError(f"field {number} is not a text")
    return bytes(value).decode()


def _message(data: Field) -> Message:
    """The fields of a message by number; repeated fields have more than one value."""
    if isinstance(data, int):
        raise TypeError("an integer where a message should be")
    fields: Message = {}
    for number, _, _, value in _fields(data):
        fields.setdefault(number, []).append(value)
    return fields


def _fields(data: memoryview) -> Iterator[tuple[int, int, int, Field]]:
    """Number, start, end and value of every field."""
    position = 0
    while position < len(data):
        start = position
        key, position = _varint(data, position)
        wire = key & 7
        value: Field
        if wire == _VARINT:
            value, position = _varint(data, position)
        else:
            length, position = _length(wire, data, position)
            value = data[position : position + length]
            position += length
            if len(value) != length:
                raise ValueError("a field ends beyond its message")
        yield key >> 3, start, position, value


def _as_varint(number: int) -> bytes:
    """An integer from 0 on, as `_varint` reads it."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def _length(wire: int, data: memoryview, position: int) -> tuple[int, int]:
    """Length in bytes of a field that is not a varint, and where it starts."""
    if wire == _BYTES:
        return _varint(data, position)
    return {_FIXED64: 8, _FIXED32: 4}[wire], position


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """An integer in groups of seven bits, lowest first; the top bit of a byte says that another follows."""
    result = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise ValueError("an integer of more than 64 bits")
