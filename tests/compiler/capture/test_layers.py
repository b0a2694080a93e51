"""Finding layers; what is done with them is tested in test_neuron and composition/test_cams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from helpers.small_networks import classifier, images, small
from torch import Tensor, nn

from sptrace.compiler.capture.layers import find, of_maps, reading
from sptrace.errors import SptraceError, UnsupportedError


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4"),
        ("vgg11", "features"),
        ("densenet121", "features"),
        ("mobilenet_v3_small", "features"),
        ("squeezenet1_1", "classifier.1"),
        ("convnext_tiny", "features"),
    ],
)
def test_the_last_map(name: str, layer: str) -> None:
    network = torchvision.models.get_model(name, weights=None).eval()
    assert next(path for path in of_maps(network, torch.rand(1, 3, 64, 64)) if path != "avgpool") == layer
    assert not any(module._forward_hooks for module in network.modules())


def test_it_is_the_last_to_run_and_not_the_last_to_stand_there() -> None:
    network = small(
        lambda self, x: self.second(self.first(x)).mean((2, 3)),
        second=nn.Conv2d(4, 4, 3),
        first=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
    )
    assert of_maps(network, images(1)) == ["second", "first", "first.0"]


def test_layers_that_are_called_twice_or_give_no_map_are_passed_over() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.once(x)))
        return self.gate(x.mean((2, 3), keepdim=True)) * x.mean((2, 3), keepdim=True)

    network = small(
        body, once=nn.Conv2d(3, 4, 3), twice=nn.Conv2d(4, 4, 3), gate=nn.Sequential(nn.Conv2d(4, 4, 1))
    )
    assert of_maps(network, images(1)) == ["once"]


def test_a_network_that_does_not_run() -> None:
    with pytest.raises(
        UnsupportedError, match=r"^the network cannot run the example: .*[Cc]hannels"
    ) as error:
        of_maps(small(lambda self, x: self.conv(x), conv=nn.Conv2d(4, 4, 3)), images(1))
    assert "\n" not in str(error.value)


def test_finding() -> None:
    network = classifier()
    assert find(network, "block.3") is network.get_submodule("block.3")
    with pytest.raises(SptraceError, match=r"no layer 'blok\.3': did you mean block\.3"):
        find(network, "blok.3")


def test_reading_is_over_when_it_is_over() -> None:
    network, image = classifier(), images(2)
    alone = network(image)
    with reading(network, "stem") as read:
        for _ in range(2):  # of two runs the last one counts
            answer, kept = network(image)
        assert read is not None
        read.require()
    assert torch.equal(answer, alone)
    assert torch.equal(kept, network.get_submodule("stem")(image))
    assert torch.equal(network(image), alone)
    with reading(network, None) as nothing:
        assert nothing is None
