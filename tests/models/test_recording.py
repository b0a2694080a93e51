import pytest
import torch
from torch import Tensor, nn

from sptrace.artifact.description import Preprocessing
from sptrace.compiler.network import Network
from sptrace.errors import SptraceError
from sptrace.models.recording import assemble


def assembled(module: nn.Module, size: int = 8, labels: tuple[str, ...] | None = None) -> Network:
    preprocessing = Preprocessing(size=(size, size))
    return assemble(module, model="net", preprocessing=preprocessing, weights="random", labels=labels)


def test_a_network_is_frozen() -> None:
    network = assembled(nn.Sequential(nn.Dropout(), nn.Flatten(), nn.Linear(3 * 8 * 8, 1000)))
    assert not any(module.training for module in network.module.modules())
    assert not any(parameter.requires_grad for parameter in network.module.parameters())
    assert (network.name, network.weights) == ("net", "random")


def test_names_are_not_invented() -> None:
    thousand = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 1000))
    assert assembled(thousand).labels is None
    names = tuple(map(str, range(1000)))
    assert assembled(thousand, labels=names).labels == names
    assert assembled(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)), labels=names).labels is None


def test_a_size_that_the_network_refuses() -> None:
    with pytest.raises(SptraceError, match=r"net does not take pictures of 16 x 16 pixels \(.*mat1 and mat2"):
        assembled(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)), size=16)


class Pair(nn.Module):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return image, image + 1


@pytest.mark.parametrize(
    ("module", "gives"),
    [(nn.Conv2d(3, 4, 1), r"\[1, 4, 8, 8\]"), (Pair(), "tuple"), (nn.Flatten(0), r"\[192\]")],
)
def test_what_is_no_classifier(module: nn.Module, gives: str) -> None:
    with pytest.raises(SptraceError, match=f"net is no image classifier: for one picture it gives {gives}"):
        assembled(module)


def test_trying_the_network_leaves_its_state_alone() -> None:
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    torch.testing.assert_close(dict(assembled(module).module.state_dict()), before, rtol=0, atol=0)
