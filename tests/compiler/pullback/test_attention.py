"""Attention matrices as constants: against autograd of the same product with the matrix computed beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.rule_checks import Op, check_jacobians, check_ordinary, numbers
from torch import Tensor, nn

from sptrace.artifact.softening import Softening

MASK = numbers(4, 4, seed=5)
HIDDEN = numbers(4, 4, seed=6) > 0.7
HEADS = numbers(3, 3, seed=8)
WEIGHTS = numbers(5, 2, seed=9)

Logits = Callable[[Tensor], Tensor]
Mix = Callable[[Tensor, Tensor], Tensor]


def dot(x: Tensor) -> Tensor:
    return x @ x.mT.flip(1) / math.sqrt(x.shape[-1])


def sdpa(x: Tensor, **options: object) -> Tensor:
    return F.scaled_dot_product_attention(x, x.flip(1), x * 2, **options)  # type: ignore[arg-type]


def plain(matrix: Tensor, x: Tensor) -> Tensor:
    return matrix @ (x * 2)


CASES = [
    pytest.param(sdpa, dot, plain, id="in one op"),
    pytest.param(lambda x: sdpa(x, scale=0.3), lambda x: 0.3 * x @ x.mT.flip(1), plain, id="scale"),
    pytest.param(
        lambda x: sdpa(x, attn_mask=MASK.to(x)), lambda x: dot(x) + MASK, plain, id="mask of numbers"
    ),
    pytest.param(
        lambda x: sdpa(x, attn_mask=~HIDDEN),
        lambda x: dot(x).masked_fill(HIDDEN, -math.inf),
        plain,
        id="mask",
    ),
    pytest.param(
        lambda x: sdpa(x, is_causal=True),
        lambda x: dot(x).masked_fill(~torch.ones(4, 4).tril().bool(), -math.inf),
        plain,
        id="causal",
    ),
    pytest.param(
        lambda x: sdpa(x, attn_mask=torch.ones(x.shape[0], 1, 4, 4, dtype=torch.bool)),
        dot,
        plain,
        id="mask that hides nothing, for each picture",
    ),
    pytest.param(lambda x: F.dropout(dot(x).softmax(-1), 0.1, False) @ (x * 2), dot, plain, id="written out"),
    pytest.param(
        lambda x: torch.einsum("bhij,bhjd->bhid", dot(x).softmax(-1), x * 2), dot, plain, id="by einsum"
    ),
    pytest.param(
        lambda x: torch.bmm(dot(x).softmax(-1).flatten(0, 1), 2 * x.flatten(0, 1)).view(x.shape),
        dot,
        plain,
        id="by bmm",
    ),
    pytest.param(
        lambda x: ((2 * x).mT @ dot(x).softmax(-1).transpose(-2, -1)).mT, dot, plain, id="matrix on the right"
    ),
    pytest.param(
        lambda x: F.linear(dot(x).softmax(-1).permute(0, 2, 3, 1), HEADS.to(x)).permute(0, 3, 1, 2) @ (x * 2),
        dot,
        lambda matrix, x: torch.einsum("oh,bhij->boij", HEADS.to(x), matrix) @ (x * 2),
        id="talking heads",
    ),
    pytest.param(
        lambda x: dot(x).transpose(-1, -2).softmax(2).mT @ (x * 2), dot, plain, id="softmax over another axis"
    ),
]


@pytest.mark.parametrize(("network", "logits", "mix"), CASES)
@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_value(tau: float, network: Callable[[Tensor], Tensor], logits: Logits, mix: Mix) -> None:
    image = numbers(2, 3, 4, 5, seed=2).double()
    softening = Softening("paper", tau={"attention": tau})
    check_jacobians(Op(network), image, frozen(image, logits, mix, tau), softening=softening)


@pytest.mark.parametrize(("network", "logits", "mix"), CASES)
def test_full(network: Callable[[Tensor], Tensor], logits: Logits, mix: Mix) -> None:
    check_ordinary(Op(network), 3, 4, 5)


def frozen(image: Tensor, logits: Logits, mix: Mix, tau: float) -> Tensor:
    """[pictures, outputs, pixels]: the Jacobian with the softened matrix held."""
    jacobians = []
    for picture in image:
        matrix = torch.softmax(logits(picture[None]) / tau, -1)
        rows = torch.autograd.functional.jacobian(
            lambda x, held=matrix: mix(held, x[None]).flatten(), picture
        )
        jacobians.append(rows.flatten(1))
    return torch.stack(jacobians)


def test_queries_that_share_keys() -> None:
    def network(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x[:, :2], x[:, 2:], enable_gqa=True)

    def mix(matrix: Tensor, x: Tensor) -> Tensor:
        return matrix @ x[:, 2:].repeat_interleave(2, 1)

    def logits(x: Tensor) -> Tensor:
        return x @ x[:, :2].repeat_interleave(2, 1).mT / math.sqrt(5)

    image = numbers(2, 4, 3, 5, seed=2).double()
    check_jacobians(Op(network), image, frozen(image, logits, mix, 1.0))
    check_ordinary(Op(network), 4, 3, 5)


@pytest.mark.parametrize("weights", [True, False])
def test_multihead_attention(weights: bool) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            rows = x.flatten(1, 2)
            answer: Tensor = self.attention(rows, rows, rows, need_weights=weights)[0]
            return answer

    check_ordinary(Op(Network()), 2, 2, 6)


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(lambda x: x.softmax(1), id="over channels"),
        pytest.param(lambda x: x.softmax(-1) * x, id="times the same"),
        pytest.param(lambda x: (x.flip(2).softmax(2) * x).sum(2), id="selective kernel"),
        pytest.param(lambda x: x.softmax(-1) @ WEIGHTS.to(x), id="times a constant"),
        pytest.param(lambda x: x.log_softmax(1), id="log softmax"),
    ],
)
def test_a_softmax_that_is_no_attention_is_ordinary(network: Callable[[Tensor], Tensor]) -> None:
    image = numbers(2, 3, 4, 5, seed=2).double()
    jacobians = [
        torch.autograd.functional.jacobian(lambda x: network(x[None]).flatten(), picture).flatten(1)
        for picture in image
    ]
    check_jacobians(Op(network), image, torch.stack(jacobians))
