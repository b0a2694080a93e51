"""Trigonometric and hyperbolic functions against torch.autograd in float64, the angle in every quadrant."""

from __future__ import annotations

import torch
from helpers.rule_checks import check_all, numbers


def test_functions() -> None:
    check_all(
        numbers(3, 2, 3, 4, seed=1).double().clamp(-3, 3),
        torch.sin,
        torch.cos,
        lambda x: torch.tan(x * 0.4),
        torch.sinh,
        torch.cosh,
        torch.atan,
        torch.asinh,
        lambda x: torch.asin(torch.tanh(x) * 0.9),
        lambda x: torch.acos(torch.tanh(x) * 0.9),
        lambda x: torch.atanh(torch.tanh(x) * 0.9),
        lambda x: torch.acosh(x * x + 1.1),
    )


def test_angle() -> None:
    row = torch.tensor([0.0, 1.0, -1.0, 2.0]).double()
    image = torch.stack(torch.meshgrid(row, row, indexing="ij"))[None].repeat(2, 1, 1, 1)
    check_all(image, lambda x: torch.atan2(x[:, 0], x[:, 1]), lambda x: torch.atan2(x, torch.tensor(0.5)))
