from __future__ import annotations

import pytest
import torch
from torch import nn

from sptrace.artifact.description import Preprocessing
from sptrace.compiler import compile as compiler
from sptrace.compiler.autograd import distances, doubt
from sptrace.compiler.compile import example_image
from sptrace.compiler.network import Network
from sptrace.compiler.reference.batch_norms import ContiguousCotangents

PREPROCESSING = Preprocessing(
    size=(16, 16), input_range=(0.0, 255.0), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
)


def network() -> Network:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(392, 5))
    return Network(layers.eval(), "small", PREPROCESSING, None, "random")


def test_a_right_gradient_is_as_near_as_pytorch_is() -> None:
    far = distances(network(), example_image(PREPROCESSING))
    assert 0 < far.program < 1e-5
    assert 0 < far.autograd < 1e-5


class Transposed(nn.Module):
    """A batch norm that is followed by tokens, as in LeViT: its cotangent comes back with transposed strides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Linear(128, 5)
        for numbers in (self.norm.running_mean, self.norm.running_var, self.norm.weight):
            nn.init.uniform_(numbers, 0.5, 1.5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.conv(image).tanh()).flatten(2).transpose(1, 2)
        return self.last(tokens.reshape(len(tokens), 128))


def test_a_batch_norm_before_tokens() -> None:
    """PyTorch's own autograd goes wrong there; a step of finite differences does not."""
    torch.manual_seed(0)
    module = Transposed().eval()
    far = distances(
        Network(module, "transposed", PREPROCESSING, None, "random"), example_image(PREPROCESSING)
    )
    assert 0 < far.program < 1e-5
    assert 0 < far.autograd < 1e-5
    image, way = torch.rand(1, 3, 16, 16).double(), torch.randn(1, 3, 16, 16).double()
    module.double()
    leaf = image.clone().requires_grad_()
    with ContiguousCotangents():
        (gradient,) = torch.autograd.grad(module(leaf)[0, 2], leaf)
    ahead, behind = (float(module(image + step * way).detach()[0, 2]) for step in (1e-5, -1e-5))
    assert (gradient * way).sum() == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("factor", [1.01, -1.0])
def test_a_wrong_gradient_is_told(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is compiled from another last layer."""
    right = compiler.program_of

    def wrong(given: Network, *arguments: object) -> torch.fx.GraphModule:
        layers = given.module
        broken = nn.Sequential(*layers[:-1], nn.Linear(392, 5))
        with torch.no_grad():
            broken[-1].weight.copy_(factor * layers[-1].weight)
        return right(Network(broken.eval(), "broken", PREPROCESSING, None, "random"), *arguments)

    monkeypatch.setattr("sptrace.compiler.autograd.program_of", wrong)
    far = distances(network(), example_image(PREPROCESSING))
    assert far.program == pytest.approx(abs(factor - 1), rel=1e-3)
    assert far.autograd < 1e-5
    assert not far.are_explained


def test_gates_in_doubt_move_the_gradient() -> None:
    """One of four pixels lies on its gate's threshold, and carries half of the gradient's norm squared."""

    class Gated(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return (torch.relu(image[:, :1] - 0.5) * image.new_tensor([[3.0, 1.0], [1.0, 1.0]])).flatten(1)[
                :, :3
            ]

    preprocessing = Preprocessing(size=(2, 2), input_range=(0.0, 1.0))
    given = Network(Gated().eval(), "gated", preprocessing, None, "random")
    clear = torch.full((1, 3, 2, 2), 0.9)
    clear[0, 0, 1, 1] = 0.1
    assert doubt(given.module, given, clear, 0) == 0
    near = clear.clone()
    near[0, 0, 0, 0] = 0.5
    near = torch.nextafter(near, torch.ones(()))
    assert doubt(given.module, given, near, 0) == pytest.approx(1.0)  # all of it is gone
    assert doubt(given.module, given, near, 1) == 0  # this class does not hang on it
