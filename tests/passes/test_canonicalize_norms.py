"""Norms, deviations and distances against torch.autograd in float64, also where they are 0."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.rule_checks import Op, check_all, numbers
from torch import Tensor

from sptrace import passes
from sptrace.compiler.capture.from_torch import capture
from sptrace.errors import UnsupportedError

Function = Callable[[Tensor], Tensor]


def centres(x: Tensor) -> Tensor:
    """[3, 12]; the second lies in the black picture."""
    return torch.stack([torch.arange(12) / 8 - 0.5, torch.zeros(12), torch.ones(12)]).to(x.dtype)


def dead() -> Tensor:
    """[4, 2, 3, 4]: a black channel, constant channels, a black picture, black bars."""
    image = numbers(4, 2, 3, 4, seed=1).double()
    image[0, 1], image[1], image[2], image[3, :, :, :2] = 0.0, 0.5, 0.0, 0.0
    return image


GROUPS: dict[str, list[Function]] = {
    "norms": [
        lambda x: torch.linalg.vector_norm(x, math.inf, dim=1),
        lambda x: torch.linalg.vector_norm(x, -math.inf, dim=(2, 3)),
        lambda x: torch.linalg.vector_norm(x, 1, dim=1),
        lambda x: torch.linalg.vector_norm(x, 1.5, dim=(2, 3)),
        lambda x: torch.linalg.vector_norm(x, 3, dim=1, keepdim=True),
        lambda x: x.norm(p=4, dim=2),
        lambda x: torch.linalg.matrix_norm(x),
        lambda x: torch.linalg.vector_norm(x[:, :1], dim=1),
    ],
    "variances and means": [
        lambda x: torch.cat(torch.var_mean(x, 1), 1),
        lambda x: torch.cat(torch.std_mean(x, (2, 3)), 1),
        lambda x: torch.cat(torch.std_mean(x, (2, 3), correction=0, keepdim=True), 1),
        lambda x: torch.var_mean(x, 1)[1],
        lambda x: x[:, :1].std(1, unbiased=False),
    ],
    "distances": [
        lambda x: F.pairwise_distance(x.flatten(2), centres(x)[1:], eps=0.0),
        lambda x: F.pairwise_distance(x, x.flip(2), p=1),
        lambda x: torch.cdist(x.flatten(2), centres(x)),
        lambda x: torch.cdist(x.flatten(2), centres(x)[None], p=1),
        lambda x: torch.cdist(x.flatten(2), x.flatten(2).flip(1), p=3),
        lambda x: F.cosine_similarity(x.flatten(2), x.flatten(2).flip(1) + 1, dim=2, eps=0.5),
        lambda x: F.cosine_similarity(x, centres(x)[:2].reshape(1, 2, 3, 4), dim=1, eps=1e-2),
    ],
}


@pytest.mark.parametrize("group", GROUPS)
def test_norm(group: str) -> None:
    check_all(dead(), *GROUPS[group])


def test_the_variance_of_one_number_is_refused() -> None:
    module = capture(Op(lambda x: x[:, :1].var(1)), torch.zeros(2, 3, 4, 4))
    with pytest.raises(UnsupportedError, match="the variance of 1 number less 1 is not defined"):
        passes.canonicalize_norms(module)


def test_distances_by_the_largest_difference() -> None:
    # Of several largest differences each has the whole cotangent, and of none that is larger than 0 none has any.
    image = numbers(3, 3, 4, 4, seed=1).double()
    image[1, 0], image[1, 1], image[2, 1] = 0.5, -0.5, image[2, 0]
    check_all(image, lambda x: torch.cdist(x[:, 0], x[:, 1], p=math.inf))


def test_norms_below_1() -> None:
    image = numbers(3, 3, 4, 5, seed=1).double()
    image[1, 0], image[2] = 0.0, 0.0
    check_all(
        image,
        *(lambda x, p=p: torch.linalg.vector_norm(x, p, dim=(1, 3)) for p in (0.5, 0.9, -1, -2, -0.5)),
        lambda x: x[:, 0] * torch.linalg.vector_norm(x, 0, dim=1),
        tolerance=1e-9,  # powers of numbers near 0 leave fewer digits
    )
