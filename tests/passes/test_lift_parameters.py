from __future__ import annotations

import torch
from helpers.small_networks import assert_same_values, classifier, images, nodes, small
from torch import Tensor, nn

from sptrace import passes
from sptrace.compiler.capture.from_torch import capture


def lifted(
    network: nn.Module, names: dict[str, str] | None = None
) -> tuple[torch.fx.GraphModule, dict[str, str]]:
    module = capture(network, images(1))
    inputs = passes.lift_parameters(module, names or {name: name for name, _ in network.named_parameters()})
    module.graph.lint()
    module.recompile()
    return module, inputs


def test_parameters_become_inputs() -> None:
    network = classifier()
    module, inputs = lifted(network)
    places = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    assert places == ["image", *inputs]
    assert set(inputs.values()) == {name for name, _ in network.named_parameters()}
    own = [module.get_buffer(path) for path in inputs.values()]
    torch.testing.assert_close(module(images(2), *own), network(images(2)))
    doubled = [
        2 * data if path == "head.1.bias" else data for path, data in zip(inputs.values(), own, strict=True)
    ]
    torch.testing.assert_close(module(images(2), *doubled), network(images(2)) + network.head[1].bias)


def test_passes_take_them_as_numbers_that_vary() -> None:
    network = classifier()
    module, inputs = lifted(network)
    own = [module.get_buffer(path) for path in inputs.values()]
    wanted = network(images(2)).detach()
    passes.run(passes.PREPARE, module)
    assert nodes(module, "aten.batch_norm.default") == []
    torch.testing.assert_close(module(images(2), *own), wanted)
    doubled = [
        2 * data if path == "stem.1.weight" else data for path, data in zip(inputs.values(), own, strict=True)
    ]
    with torch.no_grad():
        network.stem[1].weight *= 2
    torch.testing.assert_close(module(images(2), *doubled), network(images(2)).detach())


def test_two_paths_of_one_parameter_share_an_input() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(48, 48)
            self.second = nn.Linear(48, 48)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x[:, :, :4, :4].flatten(1)))

    names = {"first.weight": "w", "second.weight": "w"}
    assert lifted(Tied().eval(), names)[1] == {"parameter_0": "first.weight"}


def test_nothing_to_lift() -> None:
    network = small(lambda self, x: torch.relu(x))
    module, inputs = lifted(network)
    assert inputs == {}
    assert_same_values(module, network)
