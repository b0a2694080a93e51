"""What the graphs of all stages share: the places of constants, the names of inputs, and what depends on the image."""

from __future__ import annotations

import pytest
import torch
from helpers.small_networks import images, small
from torch import Tensor, fx, nn

import sptrace
from sptrace.compiler.capture.from_torch import capture
from sptrace.compiler.graph.builder import depends_on, parameter, place, placeholder

INPUTS = ("image", "target", "steps", "alpha", "samples", "sigma", "baseline")


class NamedLikeInputs(nn.Module):
    """A network that owns a parameter under the name of every input that an artifact can have."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name in INPUTS:
            setattr(self, name, nn.Parameter(torch.randn(3, 1, 1, generator=generator)))
        self.linear = nn.Linear(192, 5)

    def forward(self, x: Tensor) -> Tensor:
        for name in INPUTS:
            x = x * getattr(self, name) + getattr(self, name)
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("program", ["soft_pullback", "pullback_ascent", "integrated_pullback"])
def test_a_network_whose_parameters_are_called_like_inputs(program: str) -> None:
    compiled = sptrace.compile(NamedLikeInputs().eval(), images(1, 8), program=program)
    assert all(batch.attribution_to_eager < 1e-5 for batch in compiled.description.verification.batches)


def test_an_input_is_found_by_its_own_name() -> None:
    graph = fx.Graph()
    graph.get_attr("image")
    image = graph.placeholder("image")
    assert image.name != "image"
    assert placeholder(graph, "image") is image


def test_constants_whose_path_is_taken_get_a_number() -> None:
    module = fx.GraphModule(nn.Module(), fx.Graph())
    data = {}
    for preferred in ("a", "a", "a.b", "a.b", "a.b.c", "d.e", "d.f", "d"):
        data[place(module, preferred, torch.full((), float(len(data))))] = float(len(data))
    assert list(data) == ["a", "a_1", "a_2.b", "a_2.b_1", "a_2.b_2.c", "d.e", "d.f", "d_1"]
    for path, number in data.items():
        assert parameter(module, module.graph.get_attr(path)) == number


def test_masks_and_places_carry_no_cotangent() -> None:
    network = small(
        lambda self, x: torch.where(x > 0, x, x.max(1, keepdim=True)[0]) * x.argmax(1, keepdim=True)
    )
    graph = capture(network, images(1)).graph
    dependent = {str(node.target) for node in depends_on(graph, placeholder(graph, "image"))}
    assert {"aten.where.self", "aten.max.dim", "aten.mul.Tensor"} <= dependent
    assert not dependent & {"aten.gt.Scalar", "aten.argmax.default"}
