"""Graphs are built anew as torch.export's own loader would have built them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pt2_files import archive, changed, entries, exported, saved, written
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree
from torchvision.ops import deform_conv2d

from sptrace.errors import SptraceError
from sptrace.models import pt2_archive, pt2_graph, resolve


class Tied(nn.Module):
    """Weights that share memory, are not contiguous, empty, or of other dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("small", torch.tensor([1, 2, 3, 4], dtype=torch.int16))
        self.register_buffer("part", torch.arange(12.0).reshape(4, 3)[1:, 1])
        self.register_buffer("nothing", torch.empty(0, 3))
        self.mask = torch.tensor([True, False, True, True])

    def forward(self, image: Tensor) -> Tensor:
        row = self.second(self.first(self.conv(image).amax((2, 3)))) * self.small
        return torch.where(self.mask, row, self.part.sum() + self.nothing.sum() - float("inf"))


class Counting(nn.Module):
    """Writes into a buffer, and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        self.calls.add_(1)
        row = image.mean((2, 3)).clone()
        row[:, 0] = 2
        return row.relu_() * self.calls


class Regions(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        row = image.mean((2, 3))
        with torch.no_grad():
            least, scale = row.amin(1, keepdim=True), row.std(1, keepdim=True)
        with torch.autocast("cpu", enabled=False):
            row = (row - least) / scale
        return row


class Containers(nn.Module):
    def forward(self, image: Tensor) -> Any:
        row = image.mean((2, 3))
        values, places = row.max(1)
        return {"it's": [row, (values,)], "none": None, 7: (places, row.shape[-1])}


class Sized(nn.Module):
    """Sizes are computed, and decide."""

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        if height % 4:
            image = -image
        enlarged = nn.functional.interpolate(image, size=(height // 2 + 1, int(width * 1.5)))
        return enlarged.reshape(image.shape[0], 3, -1).mean(-1) * height


class Deformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, image: Tensor) -> Tensor:
        offsets = image.mean(1, keepdim=True)[..., 1:-1, 1:-1].expand(-1, 18, -1, -1)
        return deform_conv2d(image, offsets, self.weight).mean((2, 3))


class Padded(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        grid = torch.arange(3, device=image.device, dtype=image.dtype).to(
            memory_format=torch.contiguous_format
        )
        padded = nn.functional.pad(image, [1, 1, 1, 1], mode="reflect")
        return nn.functional.gelu(padded, approximate="tanh").mean((2, 3)) + torch.einsum(
            "ij,j->ij", image[:, :, 0, 0], grid
        )


ALL = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("module", "dynamic"),
    [
        (Tied(), None),
        (Counting(), None),
        (Regions(), None),
        (Containers(), None),
        (Sized(), ALL),
        (Deformed(), None),
        (Padded(), None),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, nn.Module) else "",
)
def test_as_torch_loads_it(tmp_path: Path, module: nn.Module, dynamic: Any, strict: bool) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(exported(module, strict, dynamic))
    theirs = torch.export.load(path).module()
    found = pt2_archive.read(path)
    assert found is not None
    ours = pt2_graph.build(found)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    with torch.no_grad():
        for images in (torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)):
            wanted, answer = theirs(images.clone()), ours(images.clone())
            assert pytree.tree_structure(answer) == pytree.tree_structure(wanted)
            torch.testing.assert_close(pytree.tree_leaves(answer), pytree.tree_leaves(wanted), rtol=0, atol=0)


def test_the_forms_of_older_versions(tmp_path: Path) -> None:
    """State dicts in one pickle: under data/ (torch 2.8), and beside the graph (before)."""
    content = entries(exported())
    now = resolve(written(tmp_path / "now.pt2", content))
    weights = {name: tensor.clone() for name, tensor in now.module.state_dict().items()}
    constants = {name: now.module.get_buffer(name).clone() for name in ("scale", "shift")}
    later = {
        name: data
        for name, data in content.items()
        if not name.startswith(("data/weights", "data/constants"))
    }
    later |= {"data/weights/model.pt": saved(weights), "data/constants/model.pt": saved(constants)}
    oldest = {
        "version": b"8.20",
        "serialized_exported_program.json": content["models/model.json"],
        "serialized_state_dict.pt": saved(weights),
        "serialized_constants.pt": saved(constants),
    }
    images = torch.randn(3, 3, 16, 16)
    (tmp_path / "later.pt2").write_bytes(archive(later))
    (tmp_path / "oldest.pt2").write_bytes(archive(oldest, root=""))
    for name in ("later", "oldest"):
        module = resolve(str(tmp_path / f"{name}.pt2")).module
        torch.testing.assert_close(module(images), now.module(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda graph: graph["nodes"][0].update(target="torch.ops.mine.op.default"), "is none of ATen's"),
        (
            lambda graph: graph["nodes"][0]["inputs"].append(
                {"name": "x", "arg": {"as_custom_obj": {"name": "x", "class_fqn": "y"}}, "kind": 1}
            ),
            "as_custom_obj.*without custom objects",
        ),
        (
            lambda graph: graph["nodes"][0]["outputs"][0]["as_tensor"].update(name="image"),
            "two values of one name",
        ),
        (
            lambda graph: graph["nodes"][0]["inputs"][0].update(arg={"as_tensor": {"name": "z"}}),
            "KeyError: 'z'",
        ),
        (lambda graph: graph["outputs"].pop(), "shorter"),
        (lambda graph: graph["nodes"].clear(), "KeyError"),
    ],
)
def test_damaged_graphs(tmp_path: Path, change: Any, message: str) -> None:
    content = changed(
        entries(exported(Padded())),
        "models/model.json",
        lambda document: change(document["graph_module"]["graph"]),
    )
    with pytest.raises(SptraceError, match=message) as caught:
        resolve(written(tmp_path / "net.pt2", content))
    assert len(str(caught.value).splitlines()) == 1
