from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.pt2_files import changed, entries, written
from torch import Tensor, nn
from torch.export import Dim
from torchvision.models import alexnet, resnet18

import sptrace
from sptrace.artifact.description import Preprocessing
from sptrace.errors import SptraceError
from sptrace.models import resolve

BATCH = {0: Dim("batch")}


class Small(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        self.head = nn.Linear(4, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).flatten(1))


def export(path: Path, module: nn.Module, *inputs: Tensor, dynamic: dict[int, object] | None = BATCH) -> str:
    shapes = None if dynamic is None else tuple(dynamic for _ in inputs)
    torch.export.save(torch.export.export(module, inputs, dynamic_shapes=shapes), path)
    return str(path)


def picture(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_round_trip(tmp_path) -> None:
    trained = resnet18().eval()
    path = export(tmp_path / "net.pt2", trained, picture(2, 3, 64, 48))
    network = resolve(path)
    assert network.name == path
    assert network.preprocessing == Preprocessing(size=(64, 48), resize=None)
    assert network.labels is None  # a thousand classes need not be ImageNet's
    assert network.weights.startswith("net.pt2 sha256:")
    for batch in (1, 3):
        images = picture(batch, 3, 64, 48)
        torch.testing.assert_close(network.module(images), trained(images).detach())


def test_the_module_is_like_any_other_and_keeps_its_names(tmp_path) -> None:
    module = resolve(export(tmp_path / "net.pt2", Small().eval(), picture(2, 3, 16, 16))).module
    assert module.eval() is module
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert set(module.state_dict()) == set(Small().state_dict())
    again = torch.export.export(module, (picture(2, 3, 16, 16),), dynamic_shapes=(BATCH,), strict=False)
    (linear,) = (node for node in again.graph.nodes if node.target is torch.ops.aten.linear.default)
    assert "head" in [path for path, _ in linear.meta["nn_module_stack"].values()]


class Answering(Small):
    """`Small` whose logits come in something else."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, image: Tensor) -> Any:
        return self.answer(super().forward(image))


@pytest.mark.parametrize(
    "answer", [lambda y: (y,), lambda y: {"out": y}, lambda y: {"logits": y, "more": y + 1}]
)
def test_logits_in_a_container(tmp_path, answer: Callable[[Tensor], Any]) -> None:
    trained = Answering(answer).eval()
    network = resolve(export(tmp_path / "net.pt2", trained, picture(2, 3, 16, 16)))
    program = sptrace.compile(network.module, picture(1, 3, 16, 16).tanh(), program="gradient")
    unseen = picture(2, 3, 16, 16).tanh().requires_grad_()
    session = onnxruntime.InferenceSession(program.onnx_model)
    feeds = {"image": unseen.detach().numpy(), "target": np.array([1, 2])}
    attribution, logits = session.run(["attribution", "logits"], feeds)
    wanted = Small.forward(trained, unseen)
    (gradient,) = torch.autograd.grad(wanted[[0, 1], [1, 2]].sum(), unseen)
    np.testing.assert_allclose(logits, wanted.detach(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(attribution, gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()))


def test_dynamic_height_and_width(tmp_path) -> None:
    dynamic = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    path = export(tmp_path / "net.pt2", Small().eval(), picture(2, 3, 16, 24), dynamic=dynamic)
    assert resolve(path).preprocessing.size == (16, 24)
    assert resolve(path, size=32).preprocessing.size == (32, 32)


def test_a_fixed_size_stays(tmp_path) -> None:
    path = export(tmp_path / "net.pt2", Small().eval(), picture(2, 3, 16, 16))
    assert resolve(path, size=16).preprocessing == Preprocessing(size=(16, 16), resize=16)
    with pytest.raises(SptraceError, match="was exported for pictures of 16 x 16: leave --size out"):
        resolve(path, size=32)


def test_a_fixed_batch_is_refused(tmp_path) -> None:
    path = export(tmp_path / "net.pt2", Small().eval(), picture(2, 3, 16, 16), dynamic=None)
    with pytest.raises(SptraceError, match=r"for batches of 2 only: export it with .*Dim\('batch'\)"):
        resolve(path)


@pytest.mark.parametrize("module", [alexnet(), Small()], ids=["dropout", "batch norm"])
def test_training_mode_is_refused(tmp_path, module: nn.Module) -> None:
    path = export(tmp_path / "net.pt2", module.train(), picture(2, 3, 64, 64))
    with pytest.raises(
        SptraceError, match=r"was exported in training mode .*export it with .*model.eval\(\)"
    ):
        resolve(path)


class Sum(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (left + right).flatten(1)


def test_more_memory_than_a_network_needs_is_refused(tmp_path) -> None:
    content = entries(Path(export(tmp_path / "net.pt2", Small().eval(), picture(2, 3, 16, 16))).read_bytes())

    def enlarge(document: dict[str, Any]) -> None:
        node = document["graph_module"]["graph"]["nodes"][0]
        node["inputs"].append({"name": "padding", "arg": {"as_ints": [1 << 17, 1 << 17]}, "kind": 1})

    with pytest.raises(SptraceError, match=r"a tensor of .*conv.* needs \d+ GiB"):
        resolve(written(tmp_path / "net.pt2", changed(content, "models/model.json", enlarge)))


def test_what_takes_no_pictures_is_refused(tmp_path) -> None:
    image = picture(2, 3, 16, 16)
    for path in (
        export(tmp_path / "two.pt2", Sum().eval(), image, image),
        export(tmp_path / "grey.pt2", Small(1).eval(), picture(2, 1, 16, 16)),
    ):
        with pytest.raises(SptraceError, match=r"must take one input, images of \[N, 3, height, width\]"):
            resolve(path)
    double = export(tmp_path / "double.pt2", Small().double().eval(), image.double())
    with pytest.raises(SptraceError, match=r"takes torch\.float64, not float32"):
        resolve(double)


def test_a_file_carries_its_own_weights(tmp_path) -> None:
    with pytest.raises(SptraceError, match="leave --weights out"):
        resolve("net.pt2", weights=tmp_path / "weights.pth")


def test_files_that_are_no_exported_program(tmp_path, capfd) -> None:
    path = tmp_path / "net.pt2"
    with pytest.raises(SptraceError, match=r"net\.pt2: no such file"):
        resolve(str(path))
    path.write_bytes(b"no archive")
    with pytest.raises(
        SptraceError, match=r"net\.pt2 holds no exported program: write it with torch\.export\.save"
    ):
        resolve(str(path))
    torch.save(Small().state_dict(), path)
    with pytest.raises(SptraceError, match=r"net\.pt2 holds no exported program"):
        resolve(str(path))
    assert capfd.readouterr() == ("", "")
