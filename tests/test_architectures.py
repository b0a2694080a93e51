"""A dozen small networks, each of another kind, compiled, verified and run: what the survey does with hundreds."""

from __future__ import annotations

import pytest
import timm
import torchvision
from helpers import deterministic
from torch import nn

import sptrace
from sptrace.compiler.verification.bounds import TOLERANCE

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

SMALL_VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64}

NETWORKS = [
    pytest.param("torchvision", "mobilenet_v3_small", {}, id="Hardswish, squeeze-excite by Hardsigmoid"),
    pytest.param("torchvision", "shufflenet_v2_x0_5", {}, id="channel shuffle"),
    pytest.param("timm", "resnet10t", {}, id="ReLU"),
    pytest.param("timm", "test_efficientnet", {}, id="SiLU, squeeze-excite"),
    pytest.param("timm", "test_convnext", {}, id="GELU, layer norm over channels"),
    pytest.param("timm", "test_nfnet", {}, id="standardised weights"),
    pytest.param("timm", "vit_tiny_patch16_224", SMALL_VIT, id="attention in one op"),
    pytest.param(
        "timm",
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 24, "depths": (1, 2), "num_heads": (2, 3), "img_size": 64, "window_size": 4},
        id="shifted windows, masks, relative positions",
    ),
    pytest.param(
        "timm",
        "cait_xxs24_224",
        {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64},
        id="talking heads",
    ),
    pytest.param("timm", "poolformer_s12", {}, id="group norm"),
    pytest.param("timm", "edgenext_xx_small", {"depths": (1, 1, 1, 1)}, id="attention between channels"),
    pytest.param("timm", "mobilevitv2_050", {}, id="separable attention, resizing"),
    pytest.param("timm", "mambaout_femto", {"depths": (1, 1, 1, 1)}, id="gated convolutions"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("source", "name", "options"), NETWORKS)
def test_architecture(source: str, name: str, options: dict[str, object]) -> None:
    network: nn.Module
    if source == "torchvision":
        network = torchvision.models.get_model(name, weights=None, num_classes=10)
    else:
        network = timm.create_model(name, num_classes=10, **options)
    deterministic.fill(network, 2)
    program = sptrace.compile(network, deterministic.images(2, 1, 64), mean=MEAN, std=STD)
    verification = program.description.verification
    assert [batch.batch for batch in verification.batches] == [1, 2]
    assert max(batch.attribution_to_eager for batch in verification.batches) < TOLERANCE
