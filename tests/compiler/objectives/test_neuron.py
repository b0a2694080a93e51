"""Every kind of neuron, through its artifact, beside plain autograd on the network itself.

The gates before the layers are smooth (SiLU), so that gradients have no jumps: one number settles what is right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.small_networks import images, small
from torch import Tensor, fx, nn

import sptrace
from sptrace.artifact.neuron import LOGIT, Neuron
from sptrace.compiler.graph.builder import GraphBuilder
from sptrace.compiler.objectives.layout import Layout

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
Load = Callable[..., sptrace.Explainer]


def network() -> nn.Module:
    """Layers whose outputs are maps, tokens and rows; a batch norm and an in-place gate follow directly on two."""

    def body(self: Any, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.normed(x)))
        x = self.overwritten(x).relu_()
        x = self.tokens(x.flatten(2).transpose(1, 2))
        return self.head(F.silu(self.rows(x.mean(1))))

    return small(
        body,
        normed=nn.Conv2d(3, 6, 3, stride=2, padding=1),
        norm=nn.BatchNorm2d(6),
        overwritten=nn.Conv2d(6, 5, 3),
        tokens=nn.Linear(5, 4),
        rows=nn.Linear(4, 8),
        head=nn.Linear(8, 7),
    )


def normalised(image: Tensor) -> Tensor:
    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (MEAN, STD))
    return ((image + 1) / 2 - mean) / std


def values(image: Tensor, layer: str | None, position: tuple[int, ...] | None = None) -> Tensor:
    """What is chosen from, [N, units], differentiable: read before anything overwrites it."""
    net, kept = network(), []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        kept.append(output.clone())
        return output.clone()

    if layer is None:
        return net(normalised(image))
    net.get_submodule(layer).register_forward_hook(keep)
    net(normalised(image))
    (output,) = kept
    if layer == "tokens":
        return output[:, position[0]] if position else output.sum(1)
    if output.ndim == 4:
        return output[:, :, position[0], position[1]] if position else output.sum((2, 3))
    return output


def gradient(image: Tensor, direction: Tensor, layer: str | None, *position: int) -> Tensor:
    leaf = image.clone().requires_grad_()
    (answer,) = torch.autograd.grad((values(leaf, layer, position) * direction).sum(), leaf)
    return answer


def one_hot(indices: list[int], units: int) -> Tensor:
    return F.one_hot(torch.tensor(indices), units).float()


def assert_close(given: Any, wanted: Any) -> None:
    given, wanted = np.asarray(given), np.asarray(wanted)
    np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """The loaded artifact of these options; each is compiled once."""
    folder, loaded = tmp_path_factory.mktemp("neurons"), dict[str, sptrace.Explainer]()

    def load(program: str = "gradient", **options: Any) -> sptrace.Explainer:
        name = f"{program} {options}"
        if name not in loaded:
            path = folder / f"{len(loaded)}.onnx"
            compiled = sptrace.compile(network(), images(1), program=program, mean=MEAN, std=STD, **options)
            compiled.save(path)
            loaded[name] = sptrace.load(path)
        return loaded[name]

    return load


UNITS = {"normed": 6, "norm": 6, "overwritten": 5, "tokens": 4, "rows": 8, "head": 7}
PLACES: list[tuple[str, tuple[int, ...]]] = [
    *((layer, ()) for layer in UNITS),
    ("normed", (3, 5)),
    ("overwritten", (0, 4)),
    ("tokens", (11,)),
]


@pytest.mark.parametrize(("layer", "position"), PLACES)
def test_a_channel(load: Load, layer: str, position: tuple[int, ...]) -> None:
    explainer = load(layer=layer, position=position or None)
    image = images(3, seed=3)
    targets = [1, 3, 2]
    result = explainer.explain(image.numpy(), targets)
    assert_close(result.attribution, gradient(image, one_hot(targets, UNITS[layer]), layer, *position))
    assert_close(result.activation, values(image, layer, position).detach())
    assert_close(result.logits, values(image, None).detach())
    assert explainer.units == UNITS[layer]
    assert result.target.tolist() == targets


@pytest.mark.parametrize(("layer", "position"), PLACES)
def test_unnamed_it_is_the_largest_channel(load: Load, layer: str, position: tuple[int, ...]) -> None:
    image = images(4, seed=5)
    largest = values(image, layer, position).argmax(1).tolist()
    result = load(layer=layer, position=position or None).explain(image.numpy())
    assert result.target.tolist() == largest
    assert_close(result.attribution, gradient(image, one_hot(largest, UNITS[layer]), layer, *position))


def test_unnamed_it_is_the_unit_where_one_was_given(load: Load) -> None:
    explainer, image = load(layer="overwritten", unit=4), images(2, seed=5)
    assert values(image, "overwritten").argmax(1).tolist() != [4, 4]
    result = explainer.explain(image.numpy(), [-1, 2])
    assert result.target.tolist() == [4, 2]
    assert_close(result.attribution, gradient(image, one_hot([4, 2], 5), "overwritten"))
    assert explainer.description.settings["unit"] == 4


def test_the_whole_network_stays_a_classifier(load: Load) -> None:
    """The last layer's channels are the logits: the same explanation, but without class names."""
    image = images(2, seed=6).numpy()
    by_layer, by_class = load(layer="head").explain(image), load().explain(image)
    np.testing.assert_array_equal(by_layer.activation, by_layer.logits)
    assert_close(by_layer.attribution, by_class.attribution)
    assert by_class.activation is None
    assert (by_layer.label(), by_class.label()) == (
        f"channel {by_class.target[0]}",
        f"class {by_class.target[0]}",
    )


@pytest.mark.parametrize(
    ("layer", "position"),
    [(None, ()), ("overwritten", ()), ("normed", (2, 2)), ("tokens", (0,)), ("rows", ())],
)
def test_a_direction(load: Load, layer: str | None, position: tuple[int, ...]) -> None:
    explainer = load(layer=layer, position=position or None, direction=True)
    image = images(3, seed=3)
    direction = torch.randn(3, explainer.units, generator=torch.Generator().manual_seed(1))
    result = explainer.explain(image.numpy(), direction=direction.numpy())
    assert_close(result.attribution, gradient(image, direction, layer, *position))
    assert result.target is None
    assert result.label() == "direction"
    same = explainer.attribute(image.numpy(), direction=direction[0].double().numpy())
    assert_close(same, gradient(image, direction[:1].expand(3, -1), layer, *position))


def test_soft_gates_before_the_layer(load: Load) -> None:
    """SiLU: v sigma(z / 1.6), the gate at a temperature, and not its derivative. What comes after plays no part."""
    image, net = images(2, seed=4), network()
    leaf = image.clone().requires_grad_()
    z = net.norm(net.normed(normalised(leaf)))
    channels = net.overwritten(z * torch.sigmoid(z.detach() / 1.6))
    (wanted,) = torch.autograd.grad(channels[:, 2].sum(), leaf)
    given = load("soft_pullback", layer="overwritten").attribute(image.numpy(), 2)
    assert_close(given, wanted)


@pytest.mark.parametrize(
    "options",
    [{"layer": "overwritten"}, {"layer": "tokens", "position": (7,)}, {"layer": "rows", "direction": True}],
)
def test_an_ascent(load: Load, options: dict[str, Any]) -> None:
    """What is explained is chosen at the image itself, and stays."""
    image, layer = images(2, seed=3), options["layer"]
    position = options.get("position", ())
    start = values(image, layer, position).detach()
    if "direction" in options:
        direction = torch.randn(2, UNITS[layer], generator=torch.Generator().manual_seed(2))
        neuron: dict[str, Any] = {"direction": direction.numpy()}
    else:
        direction, neuron = one_hot(start.argmax(1).tolist(), UNITS[layer]), {}
    point = image
    for _ in range(3):
        step = gradient(point, direction, layer, *position)
        point = point + 4.0 * step / step.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    result = load("gradient_ascent", **options).explain(image.numpy(), steps=3, alpha=4.0, **neuron)
    assert_close(result.attribution, point - image)
    assert_close(result.activation, start)
    assert_close(result.logits, values(image, None).detach())


@pytest.mark.parametrize(
    "program", ["integrated_gradients", "smoothgrad", "double_pullback", "input_x_gradient"]
)
def test_other_programs_agree_with_the_mean_of_the_plain_one(load: Load, program: str) -> None:
    """Each of them reduces to the gradient at the image where its setting leaves nothing else."""
    image = images(2, seed=3)
    settings: dict[str, Any] = {
        "integrated_gradients": {"samples": 1, "baseline": 0.0},
        "smoothgrad": {"samples": 1, "sigma": 0.0},
        "double_pullback": {"alpha": 0.0},
        "input_x_gradient": {},
    }[program]
    direction = one_hot([3, 1], 5)
    at = image / 2 if program == "integrated_gradients" else image
    wanted = gradient(at, direction, "overwritten")
    if program in ("integrated_gradients", "input_x_gradient"):
        wanted = image * wanted
    options: dict[str, Any] = {"softening": "hard"} if program == "double_pullback" else {}
    result = load(program, layer="overwritten", **options).explain(image.numpy(), [3, 1], **settings)
    assert_close(result.attribution, wanted)
    assert_close(result.activation, values(image, "overwritten").detach())


def test_the_artifact_says_what_it_explains(load: Load) -> None:
    settings = load(layer="overwritten", position=(0, 4)).description.settings
    neuron = {"layer": "overwritten", "unit": None, "position": (0, 4), "direction": False}
    assert settings == {**neuron, "channels": 1}
    assert Neuron.of(settings) == Neuron("overwritten", position=(0, 4))
    assert Neuron.of({"layer": None}) == LOGIT


def test_both_references_were_asked_about_the_activation() -> None:
    program = sptrace.compile(network(), images(1), layer="rows")
    assert program.description.verification is not None
    for batch in program.description.verification.batches:
        for error in (batch.activation_to_module, batch.activation_to_eager):
            assert error is not None
            assert 0 <= error < 5e-6


def test_nothing_stays_behind_in_the_network() -> None:
    net = network()
    sptrace.compile(net, images(1), layer="rows")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("name", ["target", "direction", "chosen", "activation"])
@pytest.mark.parametrize("direction", [False, True])
def test_a_constant_of_the_network_may_be_called_like_an_input(name: str, direction: bool) -> None:
    net = small(
        lambda self, x: self.head(x.mean((2, 3)) * getattr(self, name)),
        head=nn.Linear(3, 4),
        **{name: torch.ones(3)},
    )
    program = sptrace.compile(net, images(1), program="pullback_ascent", layer="head", direction=direction)
    inputs = [node.name for node in program.module.graph.nodes if node.op == "placeholder"]
    assert inputs == ["image", "direction" if direction else "target", "steps", "alpha"]


# --- Mistakes ---


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"layer": "overwriten"}, "no layer 'overwriten': did you mean overwritten"),
        ({"layer": "zzz"}, r"no layer 'zzz': give a path of model\.named_modules\(\)"),
        ({"layer": ""}, "layer must be the path of a module"),
        ({"layer": 3}, "layer must be the path of a module"),
        ({"layer": "rows", "unit": 8}, "'rows' has no unit 8: give 0 to 7"),
        ({"layer": "rows", "unit": -1}, "unit must be a whole number of at least 0"),
        ({"unit": 1}, "unit belongs to a layer"),
        ({"position": (1, 1)}, "position belongs to a layer"),
        ({"layer": "rows", "position": (1,)}, r"'rows' gives \[N, 8\], without positions"),
        ({"layer": "tokens", "position": (1, 1)}, r"\(1, 1\) is none .* give the number of one token"),
        ({"layer": "normed", "position": 4}, r"\(4\) is none .* \[N, 6, 8, 8\]: give row and column"),
        ({"layer": "normed", "position": (8, 0)}, r"no position \(8, 0\): the last one is \(7, 7\)"),
        ({"layer": "normed", "position": (-1, 0)}, "position must be row and column"),
        ({"layer": "normed", "position": "1,2"}, "position must be row and column"),
        ({"layer": "rows", "unit": 1, "direction": True}, "leave out one of unit and direction"),
        ({"direction": 1}, "direction must be True or False"),
        (
            {"program": "pullback_ascent", "objective": "cross_entropy", "layer": "rows"},
            "cross_entropy is about a class",
        ),
        (
            {"program": "pullback_ascent", "objective": "cross_entropy", "direction": True},
            "cross_entropy is about a class",
        ),
    ],
)
def test_what_is_no_neuron(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(sptrace.SptraceError, match=complaint) as error:
        sptrace.compile(network(), images(1), **options)
    assert "\n" not in str(error.value)


class Odd(nn.Module):
    """Layers that cannot be explained."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.twice = nn.SiLU()
        self.never = nn.Linear(4, 4)
        self.pair = nn.MultiheadAttention(4, 1, batch_first=True)
        self.windows = nn.Linear(4, 4)
        self.one_row = nn.Linear(4, 4)
        self.whole = nn.Flatten(0)

    def forward(self, image: Tensor) -> Tensor:
        x = self.twice(self.twice(self.conv(image)))
        tokens = x.flatten(2).transpose(1, 2)
        tokens, _ = self.pair(tokens, tokens, tokens)
        windows = self.windows(tokens.reshape(-1, 14, 4)).reshape(tokens.shape)
        self.whole(windows)
        return self.one_row(windows[:, 0, None, None, None])[:, 0, 0, 0]


@pytest.mark.parametrize(
    ("layer", "complaint"),
    [
        ("twice", "calls 'twice' 2 times"),
        ("never", "never calls 'never' as a module: choose another one"),
        ("pair", "'pair' gives no tensor but a tuple"),
        ("windows", r"'windows' gives \[14 N, 14, 4\] torch.float32, not torch.float32 \[N, C, H, W\]"),
        ("one_row", r"'one_row' gives \[N, 1, 1, 1, 4\]"),
        ("whole", r"'whole' gives \[784 N\]"),
    ],
)
def test_layers_that_give_no_channels(layer: str, complaint: str) -> None:
    with pytest.raises(sptrace.SptraceError, match=complaint) as error:
        sptrace.compile(Odd().eval(), images(1), layer=layer)
    assert "\n" not in str(error.value)


def test_an_exported_graph_has_no_layers_any_more() -> None:
    batch = torch.export.Dim("batch")
    graph = torch.export.export(network(), (images(2),), dynamic_shapes=({0: batch},)).module()
    with pytest.raises(
        sptrace.SptraceError, match=r"never calls 'rows' .*: a graph made by torch\.export calls none"
    ):
        sptrace.compile(graph, images(1), layer="rows")


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        (5, "there is no channel 5: give 0 to 4, or -1 for the largest one"),
        ("espresso", "channels of 'overwritten', which have no names: instead of 'espresso' give 0 to 4"),
        (1.5, "1.5 is not a channel: give its index, 0 to 4"),
    ],
)
def test_targets_that_are_no_channels(load: Load, target: Any, complaint: str) -> None:
    with pytest.raises(sptrace.SptraceError, match=complaint):
        load(layer="overwritten").explain(images(1).numpy(), target)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, r"explains a direction: pass direction=, float32 \[N, 8\]"),
        ({"target": 1}, r"takes no target: pass direction=, float32 \[N, 8\]"),
        (
            {"direction": np.ones(7)},
            r"the direction is \[7\]: for 2 images the artifact takes \[2, 8\], or \[8\]",
        ),
        ({"direction": np.ones((3, 8))}, r"the direction is \[3, 8\]"),
        ({"direction": np.ones((2, 8), int)}, "the direction is int64: pass float32"),
        ({"direction": np.full(8, np.nan)}, "NaN or infinite"),
        ({"direction": np.full(8, 1e300)}, "NaN or infinite"),
    ],
)
def test_directions_that_are_refused(load: Load, arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(sptrace.SptraceError, match=complaint) as error:
        load(layer="rows", direction=True).explain(images(2).numpy(), **arguments)
    assert "\n" not in str(error.value)


def test_a_direction_where_a_target_is_taken(load: Load) -> None:
    with pytest.raises(
        sptrace.SptraceError, match=r"takes a target, no direction: compile it with direction=True"
    ):
        load(layer="rows").explain(images(2).numpy(), direction=np.ones(8))


def test_a_wrong_activation_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousandth too large: the attribution, and the channel that is the largest, are right."""
    from sptrace.compiler.objectives import starting_cotangent

    def scaled(module: fx.GraphModule, explained: fx.Node, neuron: Neuron, how: Layout) -> fx.Node:
        builder = GraphBuilder(module)
        return builder.call(torch.ops.aten.mul.Tensor, right(module, explained, neuron, how), 1.001)

    right = starting_cotangent.activation
    monkeypatch.setattr(starting_cotangent, "activation", scaled)
    with pytest.raises(
        sptrace.VerificationError, match=r"^the activation of the ONNX program and of the eager"
    ):
        sptrace.compile(network(), images(1), layer="rows")
