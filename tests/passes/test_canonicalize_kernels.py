from __future__ import annotations

import pytest
import torch.nn.functional as F
from helpers.small_networks import assert_same_values, images, ops, small
from torch import Tensor, nn

from sptrace.compiler.capture.from_torch import capture
from sptrace.passes.canonicalize_kernels import canonicalize_kernels


def kernels(self: nn.Module, x: Tensor) -> Tensor:
    """One of each picture's own, [4 N, 3, 3, 3]."""
    return self.kernels(x.mean((2, 3))).reshape(-1, 3, 3, 3)


def convolved(self: nn.Module, x: Tensor) -> Tensor:
    y = F.conv2d(x.reshape(1, -1, 16, 16), kernels(self, x), stride=2, padding=1, groups=x.shape[0])
    return y.reshape(x.shape[0], 4, -1).mean(-1)


def generated(self: nn.Module, x: Tensor) -> Tensor:
    given = x.repeat(1, 4, 1, 1)[:, :4].reshape(1, -1, 16, 16)
    y = F.conv_transpose2d(given, kernels(self, x), stride=2, padding=1, output_padding=1, groups=x.shape[0])
    return y.reshape(x.shape[0], 3, -1).mean(-1)


def correlated(self: nn.Module, x: Tensor) -> Tensor:
    y = F.conv2d(x.reshape(1, -1, 16, 16), x[:, :, 2:5, 3:6].reshape(-1, 1, 3, 3), groups=3 * x.shape[0])
    return y.reshape(x.shape[0], 3, -1).amax(-1)


@pytest.mark.parametrize("body", [convolved, generated, correlated])
def test_kernels_of_each_picture_are_products(body: object) -> None:
    network = small(body, kernels=nn.Linear(3, 108))
    module = capture(network, images(2))
    assert canonicalize_kernels(module) == 1
    assert not [op for op in ops(module) if "conv" in op]
    assert_same_values(module, network, tolerance=1e-5)


def test_kernels_for_all_stay() -> None:
    network = small(lambda self, x: self.conv(x).mean((2, 3)), conv=nn.Conv2d(3, 6, 3, groups=3))
    module = capture(network, images(2))
    assert canonicalize_kernels(module) == 0
    assert_same_values(module, network)
