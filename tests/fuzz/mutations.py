"""Changes at random, of bytes and of what has a structure: JSON, protocol buffers, zip archives."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]

_BYTES = [
    b"\0",
    b"\1",
    b"\x7f",
    b"\x80",
    b"\xff",
    b'"',
    b"\\",
    b"{",
    b"[",
    b"]",
    b"}",
    b",",
    b"-",
    b"9",
    b" ",
    b"\n",
]
_VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        7,
        255,
        1 << 31,
        1 << 63,
        -(1 << 63),
        10**30,
        0.5,
        1e308,
        float("inf"),
        float("nan"),
    ),
    *(
        "",
        "x",
        "image",
        "as_int",
        "Symbol('s1')",
        "torch.ops.aten.relu.default",
        "9" * 5000,
        "\0",
        "\ud800",
        "é",
    ),
    *(
        [],
        {},
        [[]],
        [1, 2],
        {"": 1},
        {"as_int": 3},
        {"as_expr": {"expr_str": "s1"}},
        {"as_tensor": {"name": "image"}},
    ),
]


def of_bytes(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + 1 + rng.randrange(300 if rng.random() < 0.1 else 8))
    match rng.randrange(6):
        case 0:
            return (
                data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
                if at < len(data)
                else data
            )
        case 1:
            return data[:at] + rng.choice(_BYTES) + data[at + 1 :]
        case 2:
            return data[:at] + data[end:]
        case 3:
            return data[:at] + rng.choice(_BYTES) * (end - at) + data[at:]
        case 4:
            to = rng.randrange(len(data) + 1)
            return data[:to] + data[at:end] + data[to:]
    other = rng.choice(others)
    return data[:at] + other[rng.randrange(len(other) + 1) :]


def of_json(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change values of a document; one time in eight, its text."""
    if rng.random() < 0.12:
        return of_bytes(rng, data, others)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return of_bytes(rng, data, others)
    if not isinstance(document, dict | list) or not document:
        return json.dumps(rng.choice(_VALUES)).encode()
    parent, key = _place(rng, document)
    match rng.randrange(5):
        case 0:
            del parent[key]
        case 1:
            other, place = _place(rng, document)
            parent[key] = json.loads(json.dumps(other[place]))
        case 2:
            parent[key] = [parent[key]] * rng.randrange(3)
        case 3 if isinstance(parent[key], str):
            parent[key] = of_bytes(rng, parent[key].encode(errors="replace"), others).decode(errors="replace")
        case _:
            parent[key] = rng.choice(_VALUES)
    return json.dumps(document).encode()


def _place(rng: random.Random, value: Any) -> tuple[Any, Any]:
    """A value within a document, as what holds it and where."""
    while True:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        inner = value[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.2:
            return value, key
        value = inner


def of_zip(inner: Callable[[str], Mutation]) -> Mutation:
    """Change an entry of an archive, or which entries there are; `inner` tells how by the entry's name."""

    def change(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                entries = [(name, archive.read(name)) for name in archive.namelist()]
        except Exception:  # damaged by an earlier change
            entries = []
        if not entries or rng.random() < 0.03:
            return of_bytes(rng, data, others)
        index = rng.randrange(len(entries))
        name, content = entries[index]
        match rng.randrange(12):
            case 0:
                del entries[index]
            case 1:
                entries[index] = (name, rng.choice(entries)[1])
            case 2:
                entries[index] = (
                    of_bytes(rng, name.encode(), [name.encode()]).decode(errors="replace"),
                    content,
                )
            case _:
                entries[index] = (name, inner(name)(rng, content, [content]))
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in dict(entries).items():
                archive.writestr(zipfile.ZipInfo(name), content)
        return file.getvalue()

    return change


def of_protobuf(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change a field at any depth, and mend the lengths around it."""
    if rng.random() < 0.2:
        return of_bytes(rng, data, others)
    fields = _fields(data)
    if not fields:
        return of_bytes(rng, data, others)
    index = rng.randrange(len(fields))
    key, value = fields[index]
    match rng.randrange(8):
        case 0:
            del fields[index]
        case 1:
            fields.insert(index, rng.choice(fields))
        case 2:
            fields[index] = (rng.choice(fields)[0], value)
        case 3:
            fields[index] = (
                (key, data) if isinstance(value, bytes) else (key, rng.getrandbits(rng.choice([7, 31, 64])))
            )
        case _:
            fields[index] = (
                key,
                of_protobuf(rng, value, others)
                if isinstance(value, bytes)
                else value ^ 1 << rng.randrange(9),
            )
    return b"".join(
        _varint(key) + (_varint(len(value)) + value if isinstance(value, bytes) else _varint(value))
        for key, value in fields
    )


def _fields(data: bytes) -> list[tuple[int, Any]]:
    """Keys and values of a message; none if it has fields of other kinds than integers and bytes."""
    fields, at = [], 0
    try:
        while at < len(data):
            key, at = _read_varint(data, at)
            value, at = _read_varint(data, at)
            if key & 7 == 2:
                if value > len(data) - at:
                    return []
                fields.append((key, data[at : at + value]))
                at += value
            elif key & 7 == 0:
                fields.append((key, value))
            else:
                return []
    except IndexError:
        return []
    return fields


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        result |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return result, at


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def of_safetensors(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change the header, and mend its length."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.2 or length > len(data) - 8:
        return of_bytes(rng, data, others)
    header = of_json(rng, data[8 : 8 + length], others)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
