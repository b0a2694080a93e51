from __future__ import annotations

import pytest
import torch

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


def test_an_unknown_source() -> None:
    with pytest.raises(SptraceError, match="there is no source 'keras'"):
        untrained.names("keras")
