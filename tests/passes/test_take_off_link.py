from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.small_networks import assert_same_values, images, ops, small
from torch import Tensor, fx, nn

from sptrace.compiler.capture.from_torch import capture
from sptrace.errors import UnsupportedError
from sptrace.passes.take_off_link import find_link, made_of, take_off_link

End = Callable[[Tensor], Tensor]


def ending(end: End, outputs: int = 4) -> nn.Module:
    """A small network: a linear map of the picture's means, and `end`, whose result is left in its own shape."""

    class Ending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small(lambda self, x: self.head(x.mean((2, 3))), head=nn.Linear(3, outputs))

        def forward(self, image: Tensor) -> Tensor:
            return end(20 * self.body(image))

    return Ending().eval()


def captured(end: End, outputs: int = 4) -> fx.GraphModule:
    return capture(ending(end, outputs), images(2))


# What the network ends in: the end, its link and name, and what the logits then are.
ENDS: dict[str, tuple[End, str, str, End]] = {
    "softmax": (lambda z: z.softmax(1), "softmax", "softmax", lambda z: z),
    "last dimension": (lambda z: torch.softmax(z, -1), "softmax", "softmax", lambda z: z),
    "temperature": (lambda z: F.softmax(z / 2.5, dim=1), "softmax", "softmax", lambda z: z / 2.5),
    "module": (nn.Softmax(dim=1), "softmax", "softmax", lambda z: z),
    "softmin": (nn.Softmin(dim=1), "softmax", "softmax", lambda z: -z),
    "log softmax": (nn.LogSoftmax(dim=1), "softmax", "log_softmax", lambda z: z),
    "exp of it": (lambda z: F.log_softmax(z, 1).exp(), "softmax", "softmax", lambda z: z),
    "log of it": (lambda z: z.softmax(1).log(), "softmax", "log_softmax", lambda z: z),
    "as a map": (lambda z: z[:, :, None, None].softmax(1).flatten(1), "softmax", "softmax", lambda z: z),
    "of tokens": (
        lambda z: torch.stack([z, -z], 1).softmax(-1)[:, 0],
        "softmax",
        "softmax",
        lambda z: z,
    ),
    "transposed": (
        lambda z: z.transpose(0, 1)[None].softmax(1)[0].transpose(0, 1),
        "softmax",
        "softmax",
        lambda z: z,
    ),
    "dropout": (lambda z: F.dropout(z.softmax(1), 0.5, False), "softmax", "softmax", lambda z: z),
    "sigmoid": (torch.sigmoid, "sigmoid", "sigmoid", lambda z: z),
    "in place": (lambda z: z.sigmoid_(), "sigmoid", "sigmoid", lambda z: z),
    "log sigmoid": (nn.LogSigmoid(), "sigmoid", "logsigmoid", lambda z: z),
    "special": (torch.special.expit, "sigmoid", "sigmoid", lambda z: z),
    "exponentials": (lambda z: z.exp() / z.exp().sum(1, keepdim=True), "softmax", "softmax", lambda z: z),
    "less the largest": (
        lambda z: (lambda e: e / e.sum(1, keepdim=True))((z - z.max(1, keepdim=True)[0]).exp()),
        "softmax",
        "softmax",
        lambda z: z,
    ),
    "less the largest of all": (
        lambda z: (lambda e: e / e.sum(-1)[:, None])(torch.exp(z - z.max().detach())),
        "softmax",
        "softmax",
        lambda z: z,
    ),
    "in place written out": (
        lambda z: (lambda e: e.div_(e.sum(1).view(-1, 1)))(z.clone().sub_(z.amax(1, keepdim=True)).exp_()),
        "softmax",
        "softmax",
        lambda z: z,
    ),
    "times the reciprocal": (
        lambda z: z.exp() * (1 / z.exp().sum(1, keepdim=True)),
        "softmax",
        "softmax",
        lambda z: z,
    ),
    "kept off 0": (
        lambda z: z.exp() / z.exp().sum(1, keepdim=True).clamp_min(1e-30),
        "softmax",
        "softmax",
        lambda z: z,
    ),
    "normalised": (lambda z: F.normalize(z.exp(), p=1, dim=1), "softmax", "softmax", lambda z: z),
    "shifted": (lambda z: (z - z.amax(1, keepdim=True)).softmax(1), "softmax", "softmax", lambda z: z),
    "twice": (lambda z: z.log_softmax(1).softmax(1), "softmax", "softmax", lambda z: z),
    "logsumexp": (lambda z: z - z.logsumexp(1, keepdim=True), "softmax", "log_softmax", lambda z: z),
    "logsumexp of one dimension": (
        lambda z: z - torch.logsumexp(z, 1).unsqueeze(1),
        "softmax",
        "log_softmax",
        lambda z: z,
    ),
    "log of the sum": (
        lambda z: z - torch.log(torch.sum(torch.exp(z), dim=1, keepdim=True)),
        "softmax",
        "log_softmax",
        lambda z: z,
    ),
    "log of the sum less the largest": (
        lambda z: (lambda m: z - (m + (z - m).exp().sum(1, keepdim=True).log()))(z.amax(1, keepdim=True)),
        "softmax",
        "log_softmax",
        lambda z: z,
    ),
    "log of the quotient": (
        lambda z: torch.log(z.exp() / z.exp().sum(1, keepdim=True)),
        "softmax",
        "log_softmax",
        lambda z: z,
    ),
    "percent": (lambda z: 100 * z.softmax(1), "softmax", "softmax", lambda z: z),
    "kept off 0 and 1": (lambda z: z.softmax(1).clamp(1e-7, 1 - 1e-7), "softmax", "softmax", lambda z: z),
    "log kept off 0": (lambda z: (z.softmax(1) + 1e-20).log(), "softmax", "log_softmax", lambda z: z),
    "flipped": (lambda z: z.softmax(1).flip(1), "softmax", "softmax", lambda z: z.flip(1)),
    "rolled": (lambda z: z.softmax(1).roll(1, 1), "softmax", "softmax", lambda z: z.roll(1, 1)),
    "in another order": (
        lambda z: z.softmax(1)[:, [2, 0, 1, 3]],
        "softmax",
        "softmax",
        lambda z: z[:, [2, 0, 1, 3]],
    ),
    "index_select": (
        lambda z: z.softmax(1).index_select(1, torch.tensor([3, 2, 0, 1])),
        "softmax",
        "softmax",
        lambda z: z[:, [3, 2, 0, 1]],
    ),
    "other way round": (lambda z: 1 - z.sigmoid(), "sigmoid", "sigmoid", lambda z: -z),
    "from ones": (lambda z: torch.ones_like(z) - z.sigmoid(), "sigmoid", "sigmoid", lambda z: -z),
    "sigmoid written out": (lambda z: 1 / (1 + torch.exp(-z)), "sigmoid", "sigmoid", lambda z: z),
    "as a power": (lambda z: (1 + torch.exp(-z)) ** -1, "sigmoid", "sigmoid", lambda z: z),
    "as a quotient": (lambda z: z.exp() / (1 + z.exp()), "sigmoid", "sigmoid", lambda z: z),
    "by tanh": (lambda z: (torch.tanh(z / 2) + 1) / 2, "sigmoid", "sigmoid", lambda z: z),
    "by tanh, falling": (lambda z: 0.5 - 0.5 * torch.tanh(0.5 * z), "sigmoid", "sigmoid", lambda z: -z),
    "by softplus": (lambda z: -F.softplus(-z), "sigmoid", "logsigmoid", lambda z: z),
    "two heads": (
        lambda z: torch.cat([z[:, :3].sigmoid(), z[:, 3:].sigmoid()], 1),
        "sigmoid",
        "sigmoid",
        lambda z: z,
    ),
    "some of them": (lambda z: z.sigmoid()[:, 1:3], "sigmoid", "sigmoid", lambda z: z[:, 1:3]),
    "one of them": (lambda z: z.sigmoid()[:, 2], "sigmoid", "sigmoid", lambda z: z[:, 2:3]),
}
OF_TWO: dict[str, tuple[End, str, str, End]] = {
    "second": (lambda z: z.softmax(1)[:, 1], "sigmoid", "sigmoid", lambda z: z[:, 1:] - z[:, :1]),
    "first": (lambda z: z.softmax(1)[:, 0:1], "sigmoid", "sigmoid", lambda z: z[:, :1] - z[:, 1:]),
    "last": (lambda z: z.softmax(1)[:, -1:], "sigmoid", "sigmoid", lambda z: z[:, 1:] - z[:, :1]),
    "unbound": (lambda z: z.softmax(1).unbind(1)[1], "sigmoid", "sigmoid", lambda z: z[:, 1:] - z[:, :1]),
    "written out": (
        lambda z: (z.exp() / z.exp().sum(1)[:, None])[:, 1],
        "sigmoid",
        "sigmoid",
        lambda z: z[:, 1:] - z[:, :1],
    ),
    "the other one's": (
        lambda z: 1 - z.softmax(1)[:, 1],
        "sigmoid",
        "sigmoid",
        lambda z: z[:, :1] - z[:, 1:],
    ),
    "both of one": (
        lambda z: (lambda p: torch.cat([1 - p, p], 1))(z[:, :1].sigmoid()),
        "sigmoid",
        "sigmoid",
        lambda z: torch.cat([-z[:, :1], z[:, :1]], 1),
    ),
    "both stacked": (
        lambda z: (lambda p: torch.stack([p, 1 - p], 1))(z[:, 1].sigmoid()),
        "sigmoid",
        "sigmoid",
        lambda z: torch.cat([z[:, 1:], -z[:, 1:]], 1),
    ),
    "log": (lambda z: z.log_softmax(1)[:, 1], "sigmoid", "logsigmoid", lambda z: z[:, 1:] - z[:, :1]),
}
FORMS: dict[str, End] = {
    "softmax": lambda z: z.softmax(1),
    "log_softmax": lambda z: z.log_softmax(1),
    "sigmoid": torch.sigmoid,
    "logsigmoid": F.logsigmoid,
}


@pytest.mark.parametrize(
    ("outputs", "case"), [*((4, case) for case in ENDS), *((2, case) for case in OF_TWO)]
)
def test_it_is_taken_off(outputs: int, case: str) -> None:
    end, link, name, logits = (ENDS if outputs == 4 else OF_TWO)[case]
    module = captured(end, outputs)
    tail = find_link(module)
    assert tail is not None
    assert (tail.link, tail.name) == (link, name)
    take_off_link(module, tail)
    assert not {"softmax", "log_softmax", "sigmoid", "log_sigmoid", "exp", "log", "tanh"} & {
        op.split(".")[1] for op in ops(module)
    }
    network = ending(end, outputs)
    assert_same_values(module, ending(logits, outputs), tolerance=1e-6)
    with torch.no_grad():
        image = images(3, seed=7)
        wanted = network.double()(image.double())
        given = FORMS[name](module(image).double()) * (100 if case == "percent" else 1)
    assert (given - wanted.reshape(given.shape)).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda z: z, id="logits"),
        pytest.param(lambda z: z.softmax(1) * z.new_tensor([1.0, 0.0, 1.0, 1.0]), id="masked"),
        pytest.param(lambda z: torch.stack([z.softmax(1), (z / 2).softmax(1)]).mean(0), id="mean over crops"),
        pytest.param(lambda z: z.softmax(1)[:, :3], id="three of four classes"),
        pytest.param(lambda z: z.softmax(1)[:, 2:3], id="one of four classes"),
        pytest.param(lambda z: z.reshape(-1, 2, 2).softmax(2).flatten(1), id="groups of classes"),
        pytest.param(lambda z: z.softmax(1).exp(), id="exp"),
        pytest.param(lambda z: z.exp() / (1 + z.exp().sum(1, keepdim=True)), id="one class more"),
        pytest.param(lambda z: z.exp() / z.sum(1, keepdim=True), id="another sum"),
        pytest.param(lambda z: z.exp() / (2 * z).exp().sum(1, keepdim=True), id="a sum of others"),
        pytest.param(lambda z: z.exp() / z.exp().sum(0, keepdim=True), id="a sum over the batch"),
        pytest.param(lambda z: z - z.logsumexp(0, keepdim=True), id="logsumexp over the batch"),
        pytest.param(lambda z: z - (2 * z).logsumexp(1, keepdim=True), id="logsumexp of others"),
        pytest.param(lambda z: z - z.logsumexp(1, keepdim=True).clamp_min(0), id="logsumexp above 0"),
        pytest.param(lambda z: 1 / (2 + torch.exp(-z)), id="not quite a sigmoid"),
        pytest.param(lambda z: (torch.tanh(z) + 2) / 2, id="a tanh"),
        pytest.param(lambda z: 1 - z.softmax(1), id="1 - softmax"),
        pytest.param(lambda z: 2 - z.sigmoid(), id="2 - sigmoid"),
        pytest.param(lambda z: z.softmax(1).clamp(0.01, 0.99), id="clamp"),
        pytest.param(lambda z: z.softmax(1)[:, [0, 0, 1, 3]], id="a class twice"),
        pytest.param(lambda z: torch.cat([z[:, :2].softmax(1), z[:, 2:].softmax(1)], 1), id="two softmaxes"),
        pytest.param(lambda z: torch.cat([z[:, :2].sigmoid(), z[:, 2:]], 1), id="half of it"),
        pytest.param(lambda z: z.softmax(0), id="over the batch"),
        pytest.param(lambda z: z.softmax(1) @ z.new_ones(4, 3), id="a layer after"),
        pytest.param(lambda z: F.hardsigmoid(z), id="hardsigmoid"),
        pytest.param(lambda z: z * z.sigmoid(), id="gate"),
    ],
)
def test_something_else_stays(end: End) -> None:
    module = captured(end)
    assert find_link(module) is None
    assert_same_values(module, ending(end), tolerance=1e-6)


def test_a_layer_beside_it_stays() -> None:
    network = nn.Sequential(ending(lambda z: z), nn.Softmax(dim=1)).eval()
    module = capture(network, images(2), "1")
    tail = find_link(module)
    assert tail is not None
    take_off_link(module, tail)
    logits, kept = module(images(3))
    torch.testing.assert_close(logits.softmax(1), kept)


def test_a_softmax_over_one_class_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"a softmax over one class .* is 1 for every picture"):
        find_link(captured(lambda z: z.softmax(1), 1))


@pytest.mark.parametrize(
    ("end", "wanted"),
    [
        (lambda z: z.softmax(1) * z.new_tensor([1.0, 0.0, 1.0, 1.0]), True),
        (lambda z: torch.stack([z.sigmoid(), (z / 2).sigmoid()]).mean(0), True),
        (lambda z: z, False),
        (lambda z: z * z.softmax(1), False),
        (lambda z: z.softmax(1) @ z.new_ones(4, 3), False),
    ],
    ids=["masked", "mean", "logits", "attention over classes", "a layer after"],
)
def test_what_made_of(end: End, wanted: bool) -> None:
    assert bool(made_of(captured(end))) is wanted
