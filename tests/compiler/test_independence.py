"""Networks whose answer to a picture depends on its batch are refused, and networks that only look so are served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.small_networks import images, small
from torch import Tensor, nn

import sptrace
from sptrace.errors import UnsupportedError

Body = Callable[[Any, Tensor], Tensor]


def network(body: Body) -> nn.Module:
    """A convolution to 8 channels, then `body`, then a linear layer."""
    return small(
        lambda self, x: self.head(body(self, self.conv(x))), conv=nn.Conv2d(3, 8, 4, 4), head=nn.Linear(8, 5)
    )


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            lambda self, y: y.mean((2, 3)) - y.mean((2, 3)).mean(0).detach(), id="mean, no gradient"
        ),
        pytest.param(lambda self, y: y.mean((2, 3)) * (y > y[:1]).float().mean((2, 3)), id="mask"),
        pytest.param(
            lambda self, y: (lambda f: f @ f.t() @ f)(y.mean((2, 3))), id="pictures with each other"
        ),
    ],
)
def test_others_of_the_batch(body: Body) -> None:
    with pytest.raises(UnsupportedError, match=r"depends on the others of its batch|pictures of a batch are"):
        sptrace.compile(network(body), images(2))


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        pytest.param(
            lambda self, y: y.mean((2, 3)) / y.shape[0], "number of pictures is computed", id="divided"
        ),
        pytest.param(lambda self, y: y.mean((2, 3))[: y.shape[0] // 2 * 2], "multiple|batch", id="half"),
    ],
)
def test_the_number_of_pictures(body: Body, complaint: str) -> None:
    with pytest.raises(UnsupportedError, match=complaint) as error:
        sptrace.compile(network(body), images(2))
    assert "\n" not in str(error.value)


def attended(self: Any, y: Tensor) -> Tensor:
    tokens = y.flatten(2).transpose(1, 2)
    count, length, width = tokens.shape
    heads = tokens.view(count, length, 2, width // 2).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(heads, heads, heads)
    return mixed.transpose(1, 2).contiguous().view(count, length, width).mean(1)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            lambda self, y: F.adaptive_avg_pool2d(y, 1).squeeze(), id="a batch of one is squeezed too"
        ),
        pytest.param(lambda self, y: y.sum((2, 3)) / (y.numel() / y.shape[0]), id="numbers a picture"),
        pytest.param(attended, id="attention and a view"),
        pytest.param(
            lambda self, y: F.avg_pool2d(y, 1280, ceil_mode=True).flatten(1), id="a pool of 1280 cells"
        ),
    ],
)
def test_as_autograd_of_the_original(body: Body) -> None:
    original = network(body)
    program = sptrace.compile(original, images(2), softening="hard")
    pictures = images(3, seed=5)
    leaf = pictures.double().requires_grad_()
    logits = original.double()(leaf)
    (gradient,) = torch.autograd.grad(logits.amax(1).sum(), leaf)
    original.float()
    attribution, given, *_ = program.module(pictures, torch.full((3,), -1))
    assert torch.allclose(given.double(), logits, atol=1e-5 * logits.abs().max().item())
    assert torch.allclose(attribution.double(), gradient, atol=1e-5 * gradient.abs().max().item())
