"""What the outputs of a network are, and what artifacts show of it: against the original network in float64."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.small_networks import images
from torch import Tensor, nn

import sptrace
from sptrace.artifact.description import Description
from sptrace.errors import SptraceError, SptraceWarning, UnsupportedError, VerificationError

End = Callable[[Tensor], Tensor]


class Ending(nn.Module):
    """A smooth network of `outputs` logits, then `end`; the logits of picture 5 are apart by `margin`."""

    def __init__(self, end: End, outputs: int = 4, margin: float = 3.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Linear(6, outputs)
        self.end = end
        with torch.no_grad():
            given = self.logits(images(1, seed=5))
            apart = given.max() - given.sort().values[0, -2] if outputs > 1 else given.abs().max()
        self.scale = margin / float(apart)

    def logits(self, image: Tensor) -> Tensor:
        """Before the end and the scale."""
        features: Tensor = self.head(torch.tanh(self.conv(image)).mean((2, 3)))
        return features

    def forward(self, image: Tensor) -> Tensor:
        return self.end(self.scale * self.logits(image))


def explained(
    network: nn.Module, folder: Path, image: Tensor, target: Any = None, **arguments: Any
) -> tuple[sptrace.Explanation, Description]:
    program = sptrace.compile(
        network.eval(), images(1), **{"program": "gradient", "softening": "hard"} | arguments
    )
    program.save(folder / "explainer.onnx")
    return sptrace.load(folder / "explainer.onnx").explain(image.numpy(), target), program.description


def gradient(network: nn.Module, image: Tensor, of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """In float64: what `of` makes of the network's outputs, differentiated, and the outputs."""
    leaf = image.double().requires_grad_()
    outputs = copy.deepcopy(network).double()(leaf)
    return torch.autograd.grad(of(outputs), leaf)[0], outputs.detach()


def close(given: Any, wanted: Any, share: float = 1e-5) -> bool:
    given, wanted = np.asarray(given, np.float64), np.asarray(wanted, np.float64)
    return given.shape == wanted.shape and bool(np.abs(given - wanted).max() <= share * np.abs(wanted).max())


@pytest.mark.parametrize("margin", [3.0, 20.0, 40.0])
@pytest.mark.parametrize("end", [nn.Softmax(dim=1), nn.LogSoftmax(dim=1)], ids=["softmax", "log_softmax"])
def test_a_softmax_at_the_end_is_taken_off(end: nn.Module, margin: float, tmp_path: Path) -> None:
    """The attribution is that of the logits, whatever the margin; probabilities are what the network gives."""
    image = images(2, seed=5)
    given, description = explained(Ending(end, margin=margin), tmp_path, image, [0, 3])
    assert description.link == "softmax"
    assert description.taken_off == ("softmax" if isinstance(end, nn.Softmax) else "log_softmax")
    wanted, logits = gradient(Ending(nn.Identity(), margin=margin), image, lambda z: z[0, 0] + z[1, 3])
    assert close(given.attribution, wanted)
    assert close(given.logits, logits)
    assert given.probabilities is not None
    assert np.abs(given.probabilities - logits.softmax(1).numpy()).max() < 1e-6


@pytest.mark.parametrize("margin", [3.0, 20.0, 40.0])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("end", [nn.Sigmoid(), nn.LogSigmoid()], ids=["sigmoid", "logsigmoid"])
def test_a_sigmoid_at_the_end_is_taken_off(
    end: nn.Module, outputs: int, margin: float, tmp_path: Path
) -> None:
    image = images(2, seed=5)
    given, description = explained(Ending(end, outputs, margin), tmp_path, image)
    assert description.link == "sigmoid"
    assert description.taken_off == type(end).__name__.lower()
    assert description.classes == outputs
    wanted, logits = gradient(Ending(nn.Identity(), outputs, margin), image, lambda z: z.amax(1).sum())
    assert close(given.attribution, wanted)
    assert given.probabilities is not None
    assert np.abs(given.probabilities - logits.sigmoid().numpy()).max() < 1e-6


def both(p: Tensor) -> Tensor:
    return torch.cat([1 - p, p], 1)


WRITTEN_OUT: dict[str, tuple[End, int, str, End]] = {
    "exponentials": (lambda z: z.exp() / z.exp().sum(1, keepdim=True), 4, "softmax", lambda z: z),
    "less the largest": (
        lambda z: (lambda e: e / e.sum(1, keepdim=True))((z - z.amax(1, keepdim=True)).exp()),
        4,
        "softmax",
        lambda z: z,
    ),
    "shifted": (lambda z: (z - z.amax(1, keepdim=True)).softmax(1), 4, "softmax", lambda z: z),
    "logsumexp": (lambda z: z - z.logsumexp(1, keepdim=True), 4, "softmax", lambda z: z),
    "log_softmax twice": (lambda z: z.log_softmax(1).softmax(1), 4, "softmax", lambda z: z),
    "flipped": (lambda z: z.softmax(1).flip(1), 4, "softmax", lambda z: z.flip(1)),
    "in another order": (
        lambda z: z.softmax(1)[:, [2, 0, 1, 3]],
        4,
        "softmax",
        lambda z: z[:, [2, 0, 1, 3]],
    ),
    "in double": (lambda z: z.double().softmax(1).float(), 4, "softmax", lambda z: z),
    "of a dtype": (lambda z: z.softmax(1, dtype=torch.float64).float(), 4, "softmax", lambda z: z),
    "percent": (lambda z: 100 * z.softmax(1), 4, "softmax", lambda z: z),
    "log of a bit more": (lambda z: (z.softmax(1) + 1e-8).log(), 4, "softmax", lambda z: z),
    "sigmoid": (lambda z: 1 / (1 + torch.exp(-z)), 3, "sigmoid", lambda z: z),
    "other way round": (lambda z: 1 - z.sigmoid(), 3, "sigmoid", lambda z: -z),
    "by tanh": (lambda z: (torch.tanh(z / 2) + 1) / 2, 3, "sigmoid", lambda z: z),
    "by tanh of all": (lambda z: (torch.tanh(z) + 1) / 2, 3, "sigmoid", lambda z: 2 * z),
    "by softplus": (lambda z: -F.softplus(-z), 3, "sigmoid", lambda z: z),
    "both of one": (lambda z: both(z.sigmoid()), 1, "sigmoid", lambda z: torch.cat([-z, z], 1)),
    "heads": (
        lambda z: torch.cat([z[:, :1].sigmoid(), z[:, 1:].sigmoid()], 1),
        3,
        "sigmoid",
        lambda z: z,
    ),
    "one of two": (
        lambda z: (z.exp() / z.exp().sum(1)[:, None])[:, 1],
        2,
        "sigmoid",
        lambda z: z[:, 1:] - z[:, :1],
    ),
}
"""The end, outputs, what it is, and the logits."""


@pytest.mark.parametrize("margin", [3.0, 40.0])
@pytest.mark.parametrize("case", WRITTEN_OUT)
def test_it_is_taken_off_however_it_is_written(case: str, margin: float, tmp_path: Path) -> None:
    end, outputs, link, logits = WRITTEN_OUT[case]
    image = images(2, seed=5)
    given, description = explained(Ending(end, outputs, margin), tmp_path, image)
    assert description.link == link
    assert description.taken_off is not None
    wanted, values = gradient(Ending(logits, outputs, margin), image, lambda z: z.amax(1).sum())
    assert close(given.attribution, wanted)
    assert close(given.logits, values)


@pytest.mark.parametrize(
    "options",
    [
        {"program": "pullback_ascent", "clamp": "every", "steps": 2},
        {"program": "guided_gradcam", "layer": "conv"},
        {"program": "soft_pullback", "layer": "conv"},
    ],
    ids=lambda options: options["program"],
)
def test_every_program_explains_the_logits(options: dict[str, Any], tmp_path: Path) -> None:
    """With a softmax at the end of a network that is sure, the same as without."""
    image = images(2, seed=5)
    given, _ = explained(Ending(nn.Softmax(dim=1), margin=20.0), tmp_path, image, 1, **options)
    wanted, description = explained(Ending(nn.Identity(), margin=20.0), tmp_path, image, 1, **options)
    assert description.taken_off is None
    np.testing.assert_array_equal(given.attribution, wanted.attribution)
    np.testing.assert_array_equal(given.logits, wanted.logits)
    if given.image_out is not None:
        with torch.no_grad():
            there = Ending(nn.Softmax(dim=1), margin=20.0).double()(
                torch.from_numpy(given.image_out).double()
            )
        assert given.probabilities_out is not None
        assert np.abs(given.probabilities_out - there.numpy()).max() < 1e-5


def test_kept_it_is_explained_as_it_is(tmp_path: Path) -> None:
    image = images(1, seed=5)
    network = Ending(nn.Softmax(dim=1))
    given, description = explained(network, tmp_path, image, 2, keep_link=True)
    assert (description.link, description.taken_off) == ("identity", None)
    wanted, outputs = gradient(network, image, lambda p: p[0, 2])
    assert close(given.attribution, wanted)
    assert close(given.logits, outputs)
    assert close(given.probabilities, outputs)


@pytest.mark.parametrize(
    ("end", "outputs", "link"),
    [
        pytest.param(lambda z: z, 4, "softmax", id="logits"),
        pytest.param(lambda z: z, 1, "none", id="one"),
        pytest.param(lambda z: z[:, 0], 1, "none", id="one a picture"),
        pytest.param(
            lambda z: torch.stack([z.softmax(1), (z / 2).softmax(1)]).mean(0), 4, "identity", id="mean"
        ),
        pytest.param(
            lambda z: z.softmax(1) * z.new_tensor([1.0, 0.0, 1.0, 1.0]), 4, "none", id="masked softmax"
        ),
        pytest.param(lambda z: torch.nan_to_num(z.sigmoid()), 4, "none", id="nan_to_num"),
        pytest.param(F.hardsigmoid, 4, "none", id="hardsigmoid"),
        pytest.param(lambda z: (torch.tanh(z) + 1.01) / 2.02, 4, "none", id="tanh"),
        pytest.param(lambda z: 30 * torch.tanh(z / 30), 4, "softmax", id="capped logits"),
    ],
)
def test_what_has_no_link_at_its_end_stays(end: End, outputs: int, link: str, tmp_path: Path) -> None:
    image = images(1, seed=5)
    given, description = explained(Ending(end, outputs), tmp_path, image, 0)
    assert (description.link, description.taken_off) == (link, None)
    wanted, values = gradient(Ending(end, outputs), image, lambda z: z.flatten()[0])
    values = values.reshape(1, outputs)
    assert close(given.attribution, wanted)
    assert close(given.logits, values)
    shown = {"softmax": values.softmax(1), "identity": values, "none": None}[link]
    assert given.probabilities is None if shown is None else close(given.probabilities, shown)
    assert given.label() == ("output 0" if link == "none" else "class 0")


@pytest.mark.parametrize(
    "end",
    [lambda z: z.softmax(1)[:, 1], lambda z: z.softmax(1)[:, 1:], lambda z: z.log_softmax(1)[:, 1]],
    ids=["one", "slice", "log"],
)
def test_one_of_two_classes_is_a_sigmoid(end: End, tmp_path: Path) -> None:
    image = images(2, seed=5)
    given, description = explained(Ending(end, 2, 20.0), tmp_path, image, labels=["no", "yes"])
    assert description.link == "sigmoid"
    wanted, logits = gradient(Ending(nn.Identity(), 2, 20.0), image, lambda z: (z[:, 1] - z[:, 0]).sum())
    assert close(given.attribution, wanted)
    assert given.probabilities is not None
    assert np.abs(given.probabilities - logits.softmax(1).numpy()).max() < 1e-6


def test_a_picture_without_a_derivative(tmp_path: Path) -> None:
    """Of a root at 0 PyTorch gives NaN too: that is said, of the picture that it is."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), Squares(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    sptrace.compile(network, images(1), program="gradient").save(tmp_path / "explainer.onnx")
    image = torch.cat([images(1, seed=5), torch.zeros(1, 3, 16, 16)])
    explainer = sptrace.load(tmp_path / "explainer.onnx")
    for explain in (explainer.explain, explainer.bind(2).explain):
        with pytest.warns(SptraceWarning, match="^the attribution of picture 1 is NaN or infinite"):
            given = explain(image.numpy(), 0)
    wanted, _ = gradient(network, image, lambda z: z[:, 0].sum())
    np.testing.assert_array_equal(np.isnan(given.attribution), wanted.isnan())
    assert np.isnan(given.attribution[1]).any()


class Squares(nn.Module):
    """A pool of squares."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x * x, 2).sqrt()


def test_a_probability_that_is_as_good_as_one(tmp_path: Path) -> None:
    """Its slope has few digits: that is said, once; the logit's is explained without a word."""
    image = images(1, seed=5)
    with pytest.warns(
        SptraceWarning, match=r"a probability of (1|0\.999999)\S*: float32 keeps few digits"
    ) as said:
        explained(Ending(nn.Softmax(dim=1), margin=14.0), tmp_path, image, keep_link=True)
    assert len(said) == 1
    explainer = sptrace.load(tmp_path / "explainer.onnx")
    with pytest.warns(SptraceWarning):
        explainer.explain(image.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer.explain(image.numpy())
        explained(Ending(nn.Softmax(dim=1), margin=14.0), tmp_path, image)
        explained(Ending(nn.Softmax(dim=1), margin=3.0), tmp_path, image, keep_link=True)


@pytest.mark.parametrize(
    ("end", "scale"),
    [(lambda z: 100 * z.softmax(1), 20.0), (lambda z: z - z.logsumexp(1, keepdim=True), 20.0)],
    ids=["percent", "log softmax written out"],
)
def test_what_float32_rounds_is_no_error_of_ours(end: End, scale: float, tmp_path: Path) -> None:
    """On one of the pictures that the program is verified with the network is sure, and its slope has few digits."""
    network = Ending(end)
    network.scale = scale
    sptrace.compile(network.eval(), images(2), program="gradient", keep_link=True).save(
        tmp_path / "explainer.onnx"
    )
    image = images(1, seed=5)
    given = sptrace.load(tmp_path / "explainer.onnx").explain(image.numpy(), 2)
    assert close(given.attribution, gradient(network, image, lambda y: y[0, 2])[0])


def test_what_is_smaller_than_float32(tmp_path: Path) -> None:
    """On one of those pictures the class that is explained has a probability that onnxruntime takes for 0."""
    network = Ending(lambda z: z * z.softmax(1), margin=40.0)
    image = images(2, seed=5)
    given, _ = explained(network, tmp_path, image)
    assert close(given.attribution, gradient(network, image, lambda y: y.amax(1).sum())[0])


# --- One logit, two names ---


@pytest.mark.parametrize("end", [nn.Sigmoid(), nn.Identity(), lambda z: z.sigmoid().squeeze(1)])
def test_one_logit_stands_for_two_classes(end: End, tmp_path: Path) -> None:
    image = images(2, seed=5)
    labels = ["healthy", "sick, ill"]
    network = Ending(end, 1, 2.0)
    yes, description = explained(network, tmp_path, image, labels=labels, link="sigmoid")
    assert description.classes == 2
    explainer = sptrace.load(tmp_path / "explainer.onnx")
    wanted, logits = gradient(Ending(nn.Identity(), 1, 2.0), image, torch.sum)
    assert close(yes.attribution, wanted)
    assert yes.target.tolist() == [1, 1]  # type: ignore[union-attr]
    assert close(yes.probabilities, torch.cat([(-logits).sigmoid(), logits.sigmoid()], 1))
    assert close(yes.scores, torch.cat([-logits, logits], 1))
    for target, sign in ((0, -1), ("healthy", -1), (1, 1), ("ill", 1), ([0, 1], None)):
        given = explainer.explain(image.numpy(), target)
        signs = np.array([-1, 1] if sign is None else [sign, sign]).reshape(2, 1, 1, 1)
        np.testing.assert_array_equal(given.attribution, yes.attribution * signs)
        assert given.label(1) == labels[given.target[1]]  # type: ignore[index]
    with pytest.raises(SptraceError, match="there is no class 2: give 0 to 1, or -1 for class 1"):
        explainer.explain(image.numpy(), 2)


def test_one_logit_without_names_or_with_one(tmp_path: Path) -> None:
    image = images(1, seed=5)
    for labels in (None, ["sick"]):
        given, description = explained(Ending(nn.Sigmoid(), 1), tmp_path, image, 0, labels=labels)
        assert description.classes == 1
        assert given.label() == ("sick" if labels else "class 0")
        assert close(given.attribution, gradient(Ending(nn.Identity(), 1), image, torch.sum)[0])


def test_a_direction_of_one_logit(tmp_path: Path) -> None:
    image = images(2, seed=5)
    program = sptrace.compile(
        Ending(nn.Sigmoid(), 1).eval(), images(1), program="gradient", labels=["no", "yes"], direction=True
    )
    program.save(tmp_path / "direction.onnx")
    given = sptrace.load(tmp_path / "direction.onnx").explain(
        image.numpy(), direction=np.array([-2.0], np.float32)
    )
    assert close(given.attribution, gradient(Ending(nn.Identity(), 1), image, lambda z: -2 * z.sum())[0])


# --- The objective ---


@pytest.mark.parametrize(
    ("end", "outputs", "labels", "target", "log_probability"),
    [
        (nn.Softmax(dim=1), 4, None, 2, lambda z: z.log_softmax(1)[:, 2]),
        (nn.Sigmoid(), 3, None, 2, lambda z: F.logsigmoid(z)[:, 2]),
        (nn.Sigmoid(), 1, ["no", "yes"], 1, lambda z: F.logsigmoid(z)[:, 0]),
        (nn.Sigmoid(), 1, ["no", "yes"], 0, lambda z: F.logsigmoid(-z)[:, 0]),
    ],
    ids=["softmax", "several sigmoids", "class 1", "class 0"],
)
def test_cross_entropy_raises_the_links_log_probability(
    end: nn.Module, outputs: int, labels: list[str] | None, target: int, log_probability: End, tmp_path: Path
) -> None:
    """One step of a gradient ascent goes along the gradient of log p."""
    image = images(1, seed=5)
    ascent = {"program": "gradient_ascent", "steps": 1, "alpha": 2.0, "objective": "cross_entropy"}
    given, _ = explained(Ending(end, outputs), tmp_path, image, target, labels=labels, **ascent)
    wanted, _ = gradient(Ending(nn.Identity(), outputs), image, lambda z: log_probability(z).sum())
    assert close(given.attribution, 2 * wanted / wanted.norm())


def test_cross_entropy_needs_a_link() -> None:
    with pytest.raises(SptraceError, match=r"cross_entropy is a log-probability, and .* plain values"):
        sptrace.compile(
            Ending(nn.Identity(), 1).eval(), images(1), program="pullback_ascent", objective="cross_entropy"
        )


# --- What the user says ---


def test_the_user_says_the_link(tmp_path: Path) -> None:
    image = images(1, seed=5)
    given, description = explained(Ending(nn.Identity(), 3), tmp_path, image, link="sigmoid")
    assert (description.link, description.taken_off) == ("sigmoid", None)
    assert close(given.probabilities, torch.from_numpy(given.logits).double().sigmoid())
    given, description = explained(Ending(nn.Sigmoid(), 1), tmp_path, image, link="none")
    assert (description.link, description.taken_off) == ("none", None)
    wanted, outputs = gradient(Ending(nn.Sigmoid(), 1), image, torch.sum)
    assert given.probabilities is None
    assert close(given.logits, outputs)
    assert close(given.attribution, wanted)


@pytest.mark.parametrize(
    ("end", "outputs", "arguments", "message"),
    [
        (nn.Identity(), 4, {"link": "probit"}, "there is no link 'probit': use one of softmax, sigmoid"),
        (nn.Softmax(dim=1), 4, {"link": "sigmoid"}, "the network ends in softmax, which is no sigmoid"),
        (nn.Identity(), 1, {"link": "softmax"}, "the softmax of one output is 1 for every picture"),
        (nn.Identity(), 4, {"link": "identity"}, "the network's outputs are no probabilities"),
        (nn.Identity(), 1, {"labels": ["no", "yes"]}, 'two labels for one output: .* link="sigmoid"'),
        (nn.Sigmoid(), 1, {"labels": ["a", "b", "c"]}, "3 labels for 1 classes"),
    ],
)
def test_what_cannot_be_is_refused(end: End, outputs: int, arguments: Any, message: str) -> None:
    with pytest.raises(SptraceError, match=message):
        sptrace.compile(Ending(end, outputs).eval(), images(1), **arguments)


def test_two_names_for_a_kept_logarithm() -> None:
    with pytest.raises(
        SptraceError, match=r"two labels for the logarithm of one probability.*leave keep_link"
    ):
        sptrace.compile(
            Ending(nn.LogSigmoid(), 1).eval(), images(1), keep_link=True, labels=["healthy", "sick"]
        )


@pytest.mark.parametrize(
    "end",
    [
        lambda z: torch.stack([z.softmax(1), (z / 2).softmax(1)]).mean(0),
        lambda z: z.softmax(1) * z.new_tensor([1.0, 0.0, 1.0, 1.0]),
        lambda z: torch.cat([z[:, :2].softmax(1), z[:, 2:].softmax(1)], 1),
        lambda z: z.softmax(1)[:, :3],
    ],
    ids=["mean", "masked", "two softmaxes", "some of them"],
)
def test_probabilities_that_stay_are_said(end: End) -> None:
    with pytest.warns(
        SptraceWarning, match=r"^the outputs are computed of probabilities \(.*test_outputs.py:\d+"
    ) as said:
        sptrace.compile(Ending(end).eval(), images(1), program="gradient")
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sptrace.compile(Ending(nn.Identity()).eval(), images(1), program="gradient")
        sptrace.compile(Ending(end).eval(), images(1), program="gradient", link="none")


def test_a_softmax_over_one_class_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="softmax over one class"):
        sptrace.compile(Ending(nn.Softmax(dim=1), 1).eval(), images(1))


def test_a_link_that_eager_pytorch_does_not_call_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference finds the link by itself; what the compiler takes off wrongly is not saved."""
    from sptrace.compiler.objectives import outputs
    from sptrace.passes.take_off_link import Tail, answer

    def wrong(module: Any) -> Tail:
        return Tail("softmax", "softmax", answer(module).args[0])

    monkeypatch.setattr(outputs, "find_link", wrong)
    with pytest.raises(VerificationError, match="taken off, but in eager PyTorch the network"):
        sptrace.compile(Ending(nn.Tanh(), 4).eval(), images(1))


# --- Older artifacts ---


def test_artifacts_without_a_link_are_softmaxes(program_description: str) -> None:
    description = Description.from_json(program_description)
    assert (description.link, description.taken_off) == ("softmax", None)


@pytest.fixture(scope="module")
def program_description() -> str:
    """As it was written before there were links."""
    import json

    data = sptrace.compile(Ending(nn.Identity(), 3).eval(), images(1)).description.as_dict()
    del data["link"], data["taken_off"]
    return json.dumps(data)


@pytest.mark.parametrize(("name", "nonsense"), [("link", "probit"), ("link", 3), ("taken_off", "tanh")])
def test_a_link_that_is_none_is_damage(program_description: str, name: str, nonsense: object) -> None:
    import json

    damaged = json.loads(program_description) | {name: nonsense}
    with pytest.raises(SptraceError, match=f"description is damaged .*{name}"):
        Description.from_json(json.dumps(damaged))
