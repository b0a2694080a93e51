"""Archives of exported programs, and changes to what lies in them."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

Document = dict[str, Any]
Entries = dict[str, bytes]


class Network(nn.Module):
    """Small, with weights, a buffer, one that is not saved, a constant, and two outputs of one op."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 5)
        self.register_buffer("shift", torch.tensor([0.5]), persistent=False)
        self.scale = torch.tensor([2.0])

    def forward(self, image: Tensor) -> Tensor:
        features = self.features(image).mean((2, 3))
        left, right = features.split([2, 2], 1)
        return self.head(torch.cat([right * self.scale, left + self.shift], 1))


def exported(module: nn.Module | None = None, strict: bool = False, dynamic: Any = None) -> bytes:
    """The file of a network, for pictures of 16 x 16."""
    torch.manual_seed(0)
    module = (Network() if module is None else module).eval()
    dynamic = {0: Dim("batch")} if dynamic is None else dynamic
    program = torch.export.export(
        module, (torch.randn(2, 3, 16, 16),), dynamic_shapes=(dynamic,), strict=strict
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def entries(file: bytes) -> Entries:
    """What lies in an archive, by name without the first folder."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def archive(content: Entries, *, root: str = "archive/", compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as written:
        for name, data in content.items():
            written.writestr(root + name, data)
    return file.getvalue()


def changed(content: Entries, name: str, change: Callable[[Document], object]) -> Entries:
    """The archive with one of its JSON documents changed."""
    document = json.loads(content[name])
    change(document)
    return {**content, name: json.dumps(document).encode()}


class Shell:
    """What runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        import os

        return os.system, (self.command,)


def pickled(command: str) -> bytes:
    return pickle.dumps(Shell(command))


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def written(path: Path, content: Entries) -> str:
    path.write_bytes(archive(content))
    return str(path)
