"""Programs in half precision against those in single precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.small_networks import classifier, images, small
from torch import Tensor, nn

import sptrace
from sptrace.compiler import half_precision
from sptrace.errors import SptraceError, VerificationError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CLOSE = 1e-2
"""Of the largest value: half precision has 11 bits. An ascent walks on from what it found."""


def transformer() -> nn.Module:
    def body(self: Any, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        y = self.first(tokens)
        q, k, v = self.qkv(y).chunk(3, -1)
        tokens = tokens + torch.nn.functional.scaled_dot_product_attention(q, k, v)
        tokens = tokens + self.down(self.act(self.up(self.second(tokens))))
        return self.head(self.last(tokens).mean(1))

    return small(
        body,
        stem=nn.Conv2d(3, 16, 4, 4),
        first=nn.LayerNorm(16),
        second=nn.LayerNorm(16),
        last=nn.LayerNorm(16),
        qkv=nn.Linear(16, 48),
        up=nn.Linear(16, 32),
        act=nn.GELU(),
        down=nn.Linear(32, 16),
        head=nn.Linear(16, 7),
    )


def saved(path: Path, network: nn.Module, precision: str, **options: Any) -> sptrace.Explainer:
    program = sptrace.compile(network, images(1), mean=MEAN, std=STD, precision=precision, **options)
    program.save(path)
    return sptrace.load(path)


@pytest.mark.parametrize("network", [classifier, transformer])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"program": "pullback_ascent", "clamp": "every"},
        {"program": "smooth_pullback", "samples": 3},
        {"program": "fusion_pullback", "samples": 2, "draws": 2},
        {"direction": True},
        # With relative temperatures this random network's is steeper than half precision, and refused.
        {"objective": "cross_entropy", "program": "pullback_ascent", "softening": "paper"},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_the_numbers_are_those_of_single_precision(
    network: Callable[[], nn.Module], options: dict[str, Any], tmp_path: Path
) -> None:
    given = {"direction": np.eye(7, dtype=np.float32)[3]} if "direction" in options else {"target": 3}
    answers = []
    for precision in ("fp32", "fp16"):
        explainer = saved(tmp_path / f"{precision}.onnx", network(), precision, **options)
        assert explainer.description.precision == precision
        answers.append(explainer.explain(images(2, seed=3).numpy(), **given))  # type: ignore[arg-type]
    single, half = answers
    for name in ("attribution", "logits"):
        wanted, found = getattr(single, name), getattr(half, name)
        assert found.dtype == np.float32
        error = np.abs(found - wanted).max() / np.abs(wanted).max()
        assert 0 < error < (5 * CLOSE if "clamp" in options else CLOSE), name


def test_gradients_are_verified_by_their_norm(tmp_path: Path) -> None:
    explainer = saved(tmp_path / "gradient.onnx", classifier(), "fp16", program="gradient")
    verification = explainer.description.verification
    assert verification is not None
    assert (verification.measure, verification.tolerance) == ("norm", 5e-2)


def test_weights_are_half_and_norms_are_not(tmp_path: Path) -> None:
    saved(tmp_path / "half.onnx", transformer(), "fp16")
    saved(tmp_path / "single.onnx", transformer(), "fp32")
    half, single = (onnx.load(tmp_path / f"{name}.onnx") for name in ("half", "single"))
    kinds = {item.name: item.data_type for item in half.graph.initializer}
    weights = [
        item for item in single.graph.initializer if len(item.dims) > 1 and item.name != "target_numbers"
    ]
    assert len(weights) >= 6
    for item in weights:
        name = item.name
        wanted = onnx.TensorProto.FLOAT if name.startswith("input.") else item.data_type
        if wanted == onnx.TensorProto.FLOAT and not name.startswith("input."):
            wanted = onnx.TensorProto.FLOAT16
        assert kinds[name] == wanted, name
    casts = {node.output[0]: node for node in half.graph.node if node.op_type == "Cast"}
    norms = [node for node in half.graph.node if node.op_type in ("LayerNormalization", "Softmax")]
    assert len(norms) == 4
    for node in norms:
        attribute = casts[node.input[0]].attribute[0]
        assert (attribute.name, attribute.i) == ("to", onnx.TensorProto.FLOAT)


def faint(scale: float) -> nn.Module:
    """A deep network whose cotangents shrink by `scale` at every layer."""
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Conv2d(8, 8, 1), nn.ReLU()]
    network = small(
        lambda self, x: self.head(self.body_(self.stem(x)).mean((2, 3))),
        stem=nn.Conv2d(3, 8, 3),
        body_=nn.Sequential(*layers),
        head=nn.Linear(8, 5),
    )
    with torch.no_grad():
        for layer in layers[::2]:
            assert isinstance(layer, nn.Conv2d)
            layer.weight.mul_(scale)
            assert layer.bias is not None
            layer.bias.add_(0.5)
    return network


def test_small_cotangents_do_not_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    single = saved(tmp_path / "single.onnx", faint(0.03), "fp32").attribute(images(1).numpy(), 2)
    half = saved(tmp_path / "half.onnx", faint(0.03), "fp16").attribute(images(1).numpy(), 2)
    assert 0 < np.abs(single).max() < 1e-7
    assert np.abs(half - single).max() < 2e-2 * np.abs(single).max()
    monkeypatch.setattr(half_precision, "LARGEST", 1.0)
    monkeypatch.setattr(half_precision, "_refuse_large", lambda largest: None)
    with pytest.raises(VerificationError, match="compile it with precision fp32"):
        saved(tmp_path / "unscaled.onnx", faint(0.03), "fp16")


def test_what_half_precision_cannot_hold(tmp_path: Path) -> None:
    network = classifier()
    with torch.no_grad():
        network.get_submodule("stem")[1].weight.mul_(1e5)  # type: ignore[index]
    with pytest.raises(SptraceError, match="half precision ends at 65504: compile with precision fp32"):
        saved(tmp_path / "large.onnx", network, "fp16")
    with pytest.raises(SptraceError, match="there is no precision 'int8': use fp32 or fp16"):
        saved(tmp_path / "int8.onnx", classifier(), "int8")
    assert not list(tmp_path.iterdir())
