"""Networks that decide in Python by numbers that do not depend on the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.explained import assert_gradient
from helpers.small_networks import images
from helpers.tails import Tail
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import v2

import sptrace

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Prepared(Tail):
    """`Tail` behind a function of itself and the image, with a few buffers."""

    def __init__(self, prepare: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.prepare = prepare
        self.register_buffer("std", torch.tensor(STD))
        self.register_buffer("count", torch.tensor(2))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.attribute = torch.tensor(STD)
        self.eval()

    def logits(self, image: Tensor) -> Tensor:
        return super().logits(self.prepare(self, image))


class Transformed(Tail):
    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform
        self.eval()

    def logits(self, image: Tensor) -> Tensor:
        return super().logits(self.transform(image))


def normalized(data: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """As in kornia.enhance, which compares shapes, and views."""
    if mean.shape[0] == 1:
        mean, std = mean.expand(data.shape[1]), std.expand(data.shape[1])
    if not torch.all(std > 0) or mean.shape[0] != data.shape[1]:
        raise ValueError("std")
    flat = (data.view(data.shape[0], data.shape[1], -1) - mean[:, None]) / std[:, None]
    return flat.view(data.shape)


def made_in_place(self: Any, x: Tensor) -> Tensor:
    mask = torch.zeros(3)
    mask[1:] = self.std[1:]
    return x * 2 if mask[0] == 0 and mask.sum() > 0.4 else x


def overwritten(self: Any, x: Tensor) -> Tensor:
    """What was known is not any longer."""
    scales = torch.zeros(3)
    scales[:2][0] = x.mean()
    return x * (2 if scales[0] > 0 else 3)


DECIDED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "any": lambda self, x: x if (self.std == 0).any() else x / self.std[:, None, None],
    "all": lambda self, x: x * 2 if torch.all(self.std > 0) else x,
    "minimum": lambda self, x: x * 2 if self.std.min() > 0 else x,
    "parameter": lambda self, x: x * 2 if self.fc.weight.norm() > 0 else x,
    "attribute": lambda self, x: x * 2 if (self.attribute > 0).all() else x,
    "made in forward": lambda self, x: x * 2 if (torch.tensor(STD) > 0).all() else x,
    "made in place": made_in_place,
    "equal": lambda self, x: x if torch.equal(self.std, self.attribute * 2) else x * 2,
    "allclose": lambda self, x: x * 2 if torch.allclose(self.std, self.attribute.to(x.dtype)) else x,
    "item": lambda self, x: x * self.std[1].item(),
    "float": lambda self, x: x * float(self.std.sum()),
    "list": lambda self, x: torch.stack([x[:, i] / s for i, s in enumerate(self.std.tolist())], 1),
    "numpy": lambda self, x: x * float(self.std.numpy().max()),
    "range": lambda self, x: sum((x**i for i in range(int(self.count))), x),
    "list index": lambda self, x: [x, x * 2, x * 3][self.count],
    "tensor index": lambda self, x: x * self.std[self.count],
    "mask": lambda self, x: x[:, self.mask].repeat(1, 3, 1, 1)[:, :3],
    "nonzero": lambda self, x: x[:, self.mask.nonzero()[:, 0]].repeat(1, 3, 1, 1)[:, :3],
    "unique": lambda self, x: x * len(torch.unique(self.mask)),
    "assert": lambda self, x: [torch._assert((self.std > 0).all(), "std"), x][1],
    "format": lambda self, x: x * float(f"{self.std[0]:.2f}"),
    "functional": lambda self, x: transforms.functional.normalize(x, MEAN, STD),
    "kornia": lambda self, x: normalized(x, self.std[:1], self.attribute.to(x.dtype)),
}


@pytest.mark.parametrize("name", DECIDED)
def test_decided_by_constants(name: str) -> None:
    twin = Prepared(DECIDED[name]).double()
    assert_gradient(Prepared(DECIDED[name]), twin.logits)


TRANSFORMS: dict[str, Callable[[], nn.Module]] = {
    "Normalize": lambda: transforms.Normalize(MEAN, STD),
    "Normalize in place": lambda: transforms.Normalize(MEAN, STD, inplace=True),
    "Normalize, version 2": lambda: v2.Normalize(MEAN, STD),
    "Compose": lambda: nn.Sequential(
        transforms.CenterCrop(12), transforms.Pad(1), transforms.Normalize(MEAN, STD)
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name: str) -> None:
    assert_gradient(
        Transformed(TRANSFORMS[name]()), lambda x: Transformed(TRANSFORMS[name]()).double().logits(x + 0)
    )


HERE = r"test_known_numbers.py:\d+"
BRANCHES = rf"branches on the values of a tensor at .*{HERE},"


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda self, x: x * 2 if x.sum() > 0 else x, BRANCHES),
        (lambda self, x: x * 2 if self.std.sum() > x.sum() else x, BRANCHES),
        (overwritten, BRANCHES),
        (lambda self, x: x * 2 if torch.rand(1) < 0.5 else x, rf"decides by a random number \(.*{HERE}\)"),
        (lambda self, x: transforms.RandomHorizontalFlip()(x), "decides by a random number"),
        (lambda self, x: x * float(x.detach().numpy().max()), rf"hands a tensor .* to NumPy \(.*{HERE}\)"),
    ],
)
def test_what_depends_on_the_image_or_on_chance(
    prepare: Callable[[Any, Tensor], Tensor], reason: str
) -> None:
    with pytest.raises(sptrace.UnsupportedError, match=reason) as error:
        sptrace.compile(Prepared(prepare), images(1))
    assert "\n" not in str(error.value)


def test_the_network_is_unchanged() -> None:
    network = Prepared(DECIDED["any"])
    state = {name: data.clone() for name, data in network.state_dict().items()}
    hooks = len(network._forward_pre_hooks)
    sptrace.compile(network, images(1))
    assert all(torch.equal(data, state[name]) for name, data in network.state_dict().items())
    assert len(network._forward_pre_hooks) == hooks
