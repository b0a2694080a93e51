from __future__ import annotations

import pytest
import torch
from torch import nn

from sptrace.errors import SptraceError
from sptrace.models import untrained


def test_torchvision_is_covered_whole() -> None:
    names = untrained.names("torchvision")
    assert len(names) >= 80
    assert {"resnet50", "vit_b_16", "swin_v2_t", "maxvit_t"} <= set(names)


def test_every_family_of_timm_has_one() -> None:
    names = set(untrained.names("timm"))
    assert len(names) >= 60
    for family in (
        "beit",
        "cait",
        "coat",
        "convnext",
        "davit",
        "edgenext",
        "hrnet",
        "levit",
        "mobilevit",
        "pvt_v2",
    ):
        assert any(family in name for name in names)


def test_weights_depend_on_names_alone() -> None:
    first, size = untrained.build("torchvision", "squeezenet1_1")
    second, _ = untrained.build("torchvision", "squeezenet1_1")
    assert size == 224
    assert not first.training
    image = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    torch.testing.assert_close(first(image), second(image), rtol=0, atol=0)
    assert 0.01 < first(image).std() < 10


class Branches(nn.Module):
    """Sums of normalised branches: with any fixed statistics their numbers grow from block to block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(6))
            for _ in range(20)
        )
        self.register_buffer("table", torch.tensor([2.0, -torch.inf]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for branches in self.blocks:
            x = sum(branch(x) for branch in branches)
        return x


def test_batch_norms_keep_the_scale() -> None:
    network = Branches().eval()
    untrained.fill(network)
    picture = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wild = float(network(picture).std())
        assert wild > 1e2
        untrained.settle(network, 32)
        settled = network(picture)
    assert settled.std() < 1e1
    again = Branches().eval()
    untrained.fill(again)
    untrained.settle(again, 32)
    torch.testing.assert_close(again(picture), settled, rtol=0, atol=0)


def test_tables_stay() -> None:
    network = Branches()
    untrained.fill(network)
    assert network.table.tolist() == [2.0, -torch.inf]


def test_an_unknown_source() -> None:
    with pytest.raises(SptraceError, match="there is no source 'keras'"):
        untrained.names("keras")
