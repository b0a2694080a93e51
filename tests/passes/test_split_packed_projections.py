from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from helpers.rule_checks import numbers
from helpers.small_networks import assert_same_values, images, nodes, small
from torch import Tensor, fx, nn

from sptrace import passes
from sptrace.artifact.description import Preprocessing
from sptrace.artifact.softening import Softening
from sptrace.compiler.assemble import assemble
from sptrace.compiler.capture.from_torch import capture
from sptrace.compiler.graph.facts import facts

Body = Callable[[Any, Tensor], Tensor]


def timm_like(self: Any, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = self.qkv(tokens).reshape(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return torch.softmax(q @ k.transpose(-2, -1), -1) @ v


def torchvision_like(self: Any, x: Tensor) -> Tensor:
    tokens = x.flatten(2).permute(2, 0, 1)
    packed = self.qkv(tokens).unflatten(-1, (3, 8)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
    return (packed[0] * packed[1] - packed[2]).transpose(0, 1)


def some_unused(self: Any, x: Tensor) -> Tensor:
    packed = self.qkv(x.flatten(2).transpose(1, 2)).reshape(x.shape[0], -1, 3, 8)
    return packed[:, :, -1] + packed[:, :, 0]


def prepared(body: Body, features: int = 24) -> tuple[fx.GraphModule, nn.Module]:
    network = small(body, qkv=nn.Linear(3, features))
    return capture(network, images(1, 8)), network


@pytest.mark.parametrize(("body", "parts"), [(timm_like, 3), (torchvision_like, 3), (some_unused, 2)])
def test_each_part_has_a_layer(body: Body, parts: int) -> None:
    module, network = prepared(body)
    passes.run(passes.PREPARE, module)
    assert len(nodes(module, "aten.linear.default")) == parts
    assert nodes(module, "aten.select.int") == []
    weights = [node for node in module.graph.nodes if node.op == "get_attr" and "weight" in str(node.target)]
    assert [list(module.get_buffer(str(node.target)).shape) for node in weights] == [[8, 3]] * parts
    assert_same_values(module, network, tolerance=1e-6, size=8)


def interleaved(self: Any, x: Tensor) -> Tensor:
    """The parts are not blocks of the features."""
    packed = self.qkv(x.flatten(2).transpose(1, 2)).reshape(x.shape[0], -1, 8, 3)
    return packed[..., 0] + packed[..., 2]


def read_whole(self: Any, x: Tensor) -> Tensor:
    packed = self.qkv(x.flatten(2).transpose(1, 2)).reshape(x.shape[0], -1, 3, 8)
    return packed[:, :, 0] + packed.sum(2)


def another_dimension(self: Any, x: Tensor) -> Tensor:
    packed = self.qkv(x.flatten(2).transpose(1, 2)).reshape(x.shape[0], -1, 3, 8)
    return packed[:, 5]


def split_tokens(self: Any, x: Tensor) -> Tensor:
    packed = self.qkv(x.flatten(2).transpose(1, 2)).reshape(x.shape[0], 4, 16, 24)
    return packed[:, 0] + packed[:, 3]


@pytest.mark.parametrize("body", [interleaved, read_whole, another_dimension, split_tokens])
def test_anything_else_is_left_alone(body: Body) -> None:
    module, network = prepared(body)
    passes.run(passes.PREPARE, module)
    assert len(nodes(module, "aten.linear.default")) == 1
    assert_same_values(module, network, tolerance=1e-6, size=8)


def test_parameters_that_vary_are_sliced() -> None:
    module, network = prepared(timm_like)
    inputs = passes.lift_parameters(module, {name: name for name, _ in network.named_parameters()})
    passes.run(passes.PREPARE, module)
    assert len(nodes(module, "aten.linear.default")) == 3
    own = [module.get_buffer(path) for path in inputs.values()]
    torch.testing.assert_close(module(images(2, 8), *own), network(images(2, 8)))


@pytest.mark.parametrize(
    "network",
    [
        torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=5),
        timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=5, img_size=32),
    ],
    ids=["torchvision", "timm"],
)
def test_only_values_are_pulled_back(network: nn.Module) -> None:
    """No product of the pullback is with the weights of queries and keys, and nothing is padded with zeros."""
    image = numbers(1, 3, 32, 32)
    assembled = assemble(capture(network.eval(), image), Preprocessing((32, 32)), Softening("paper"))
    adjoint = [node for node in assembled.module.graph.nodes if facts(node).adjoint]
    assert not any(
        str(node.target) == "aten.constant_pad_nd.default" and "attn" in facts(node).path for node in adjoint
    )
    read = {
        str(source.target) for node in adjoint for source in node.all_input_nodes if source.op == "get_attr"
    }
    packed = sorted(name for name in read if re.search(r"(qkv|self_attention).folded_weight", name))
    assert len(packed) == 2
    assert all(name.endswith("_2") for name in packed)
