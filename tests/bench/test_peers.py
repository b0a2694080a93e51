"""The fast peer against the reference: every gate, as a module and as a function, alone and in networks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import small_networks
from torch import Tensor, nn

from sptrace.artifact.description import Preprocessing
from sptrace.artifact.programs import program_kind
from sptrace.artifact.softening import Softening
from sptrace.bench.peers import PROGRAMS, Peer, calls_gates
from sptrace.compiler.network import Network
from sptrace.compiler.reference.eager import reference
from sptrace.compiler.reference.eager_explainer import Eager
from sptrace.errors import SptraceError

PREPROCESSING = Preprocessing(size=(16, 16), mean=(0.5, 0.4, 0.45), std=(0.2, 0.25, 0.3))
NORMALISATION = {"mean": PREPROCESSING.mean, "std": PREPROCESSING.std}
TARGET = torch.tensor([2, 0, 1])


def distance(given: Tensor, wanted: Tensor) -> float:
    return float((given - wanted).abs().max() / wanted.abs().max())


def assert_agrees(network: nn.Module, softening: Softening | None = None) -> None:
    rules = (softening or Softening("paper")).gates()
    image = small_networks.images(3)
    wanted, wanted_logits, _ = reference(network, image, TARGET, rules=rules, **NORMALISATION)
    attribution, logits = Peer(copy.deepcopy(network), PREPROCESSING, rules)(image, TARGET)
    assert wanted.abs().max() > 0
    assert distance(attribution, wanted) < 1e-5
    assert distance(logits, wanted_logits) < 1e-5


MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(0.0, 6.0),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU("tanh"),
    "hardswish": nn.Hardswish,
    "mish": nn.Mish,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "elu": lambda: nn.ELU(0.5),
    "softplus": nn.Softplus,
    "max_pool": lambda: nn.MaxPool2d(2),
    "padded max_pool": lambda: nn.MaxPool2d(3, 2, 1),
    "dilated max_pool": lambda: nn.MaxPool2d((3, 2), (1, 2), (1, 0), dilation=(2, 1)),
    "ceil max_pool": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "short max_pool": lambda: nn.MaxPool2d(3, 3),
    "layer_norm": lambda: nn.LayerNorm([8, 16, 16]),
    "plain layer_norm": lambda: nn.LayerNorm(16, elementwise_affine=False),
    "group_norm": lambda: nn.GroupNorm(2, 8),
}


@pytest.mark.parametrize("name", MODULES)
def test_gates_as_modules(name: str) -> None:
    network = small_networks.small(
        lambda self, x: self.head(self.gate(self.stem(x)).flatten(2).mean(2)),
        stem=nn.Conv2d(3, 8, 3, padding=1),
        gate=MODULES[name](),
        head=nn.Linear(8, 5),
    )
    assert_agrees(network)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "torch.relu": torch.relu,
    "Tensor.relu": Tensor.relu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "leaky_relu": lambda x: F.leaky_relu(x, negative_slope=0.3),
    "max_pool": lambda x: F.max_pool2d(x, 3, stride=2, padding=1),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x),
    "causal attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3),
    "masked attention": lambda x: F.scaled_dot_product_attention(x, x, x, torch.eye(16) > 0),
    "biased attention": lambda x: F.scaled_dot_product_attention(x, x, x, torch.eye(16)),
    "attention written out": lambda x: torch.softmax(x @ x.transpose(-2, -1), -1) @ x,
    "channel attention": lambda x: torch.softmax(x, 1) * x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gates_as_functions(name: str) -> None:
    gate = FUNCTIONS[name]
    network = small_networks.small(
        lambda self, x: self.head(gate(self.act(self.stem(x))).flatten(2).mean(2)),
        stem=nn.Conv2d(3, 8, 3, padding=1),
        act=nn.ReLU(),
        head=nn.Linear(8, 5),
    )
    assert_agrees(network)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("between", [lambda x: x, F.relu])
def test_multi_head_attention(batch_first: bool, between: Callable[[Tensor], Tensor]) -> None:
    def body(self, x: Tensor) -> Tensor:
        tokens = between(self.stem(x)).flatten(2).transpose(1, 2)
        tokens = tokens if batch_first else tokens.transpose(0, 1)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head(mixed.mean(1 if batch_first else 0))

    network = small_networks.small(
        body,
        stem=nn.Conv2d(3, 8, 4, 4),
        attention=nn.MultiheadAttention(8, 2, batch_first=batch_first),
        head=nn.Linear(8, 5),
    )
    assert_agrees(network)


@pytest.mark.parametrize(
    "softening",
    [
        Softening("excitation"),
        Softening("guided"),
        Softening("hard"),
        Softening("paper", rule={"relu6": "relu"}),
    ],
)
def test_other_rules(softening: Softening) -> None:
    assert_agrees(small_networks.classifier(), softening)


def test_a_mode_only_where_it_is_needed() -> None:
    rules, size = Softening("paper").gates(), (16, 16)
    network = small_networks.classifier()
    before = [type(module) for module in network.modules()]
    assert not calls_gates(network, rules, size)
    assert [type(module) for module in network.modules()] == before
    called = small_networks.small(lambda self, x: F.relu(self.stem(x)), stem=nn.Conv2d(3, 2, 3))
    assert calls_gates(called, rules, size)
    assert not calls_gates(called, Softening("hard").gates(), size)


def test_no_gradient_of_weights_is_computed() -> None:
    network = small_networks.classifier().requires_grad_(True)
    peer = Peer(network, PREPROCESSING, Softening("paper").gates())
    peer(small_networks.images(3), TARGET)
    assert not any(parameter.requires_grad for parameter in peer.network.parameters())
    assert all(parameter.grad is None for parameter in peer.network.parameters())


def test_exported_graphs() -> None:
    network = small_networks.classifier()
    exported = torch.export.export(
        network, (small_networks.images(2),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    rules, image = Softening("paper").gates(), small_networks.images(3)
    wanted, _, _ = reference(network, image, TARGET, rules=rules, **NORMALISATION)
    attribution, _ = Peer(exported.module(), PREPROCESSING, rules)(image, TARGET)
    assert distance(attribution, wanted) < 1e-5


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs(program: str) -> None:
    network, kind = small_networks.classifier(), program_kind(program)
    few = {name: 3 for name in ("steps", "samples") if name in kind.options}
    if "clamp" in kind.options:
        few |= {"clamp": "every", "epsilon": 30.0}
    settings, softening = kind.settings(few), kind.softening(Softening("paper"))
    image = small_networks.images(3)
    wanted, wanted_logits = Eager(program, settings, network, PREPROCESSING, softening)(image, TARGET)
    peer = Peer(copy.deepcopy(network), PREPROCESSING, softening.gates(), program, settings)
    attribution, logits = peer(image, TARGET)
    assert distance(attribution, wanted) < 1e-3
    assert distance(logits, wanted_logits) < 1e-5


def test_programs_without_a_peer() -> None:
    with pytest.raises(SptraceError, match=r"gradcam was not written for this side: it has soft_pullback, "):
        Peer(small_networks.classifier(), PREPROCESSING, Softening("paper").gates(), "gradcam")


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_torch_compile(whole: bool) -> None:
    network, rules = small_networks.classifier(), Softening("paper").gates()
    image = small_networks.images(3)
    wanted, _ = Peer(copy.deepcopy(network), PREPROCESSING, rules)(image, TARGET)
    peer = Peer(network, PREPROCESSING, rules)
    peer.compile(whole=whole)
    attribution, _ = peer(image, TARGET)
    torch._dynamo.reset()
    assert distance(attribution, wanted) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "mobilenet_v3_small", "convnext_tiny", "vit_b_32", "swin_t"]
)
def test_architectures(name: str) -> None:
    from sptrace.bench.prepare import random_network

    network: Network = random_network(f"torchvision:{name}")
    image = small_networks.images(1, 224)
    rules, target = Softening("paper").gates(), torch.tensor([3])
    how = network.preprocessing
    wanted, _, _ = reference(network.module, image, target, rules=rules, mean=how.mean, std=how.std)
    attribution, _ = Peer(network.module, how, rules)(image, target)
    assert distance(attribution, wanted) < 1e-4
