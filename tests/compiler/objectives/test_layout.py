"""Channels last, tokens, and where maps are taken; beside autograd in float64 with dimensions named by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from helpers.small_networks import Attention, images, small
from torch import Tensor, nn

import sptrace
from sptrace.compiler.capture.from_torch import capture
from sptrace.compiler.objectives.cam_layer import choose
from sptrace.compiler.objectives.layout import Layout, Tokens, layout


class Windows(nn.Module):
    """A block of a Swin transformer on [N, H, W, C]: attention in shifted windows, and an MLP."""

    def __init__(self, width: int, window: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 2)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.window, self.shift = window, shift

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        size = self.window
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = (
            y.view(n, h // size, size, w // size, size, c)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(-1, size * size, c)
        )
        y = self.attention(y)
        y = y.view(n, h // size, w // size, size, size, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.mlp(self.norm2(x))


class Merging(nn.Module):
    """Four neighbours' channels side by side, then mixed: [N, H, W, C] to [N, H/2, W/2, 2C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


def swin() -> nn.Module:
    """Rows, columns and channels are eight each after the first stage, so that sizes tell nothing."""

    def body(self: Any, x: Tensor) -> Tensor:
        x = self.stages(self.patches(x).permute(0, 2, 3, 1))
        return self.head(self.norm(x).permute(0, 3, 1, 2).mean((2, 3)))

    return small(
        body,
        patches=nn.Conv2d(3, 8, 2, 2),
        stages=nn.Sequential(Windows(8, 4, 0), Windows(8, 4, 2), Merging(8), Windows(16, 4, 2)),
        norm=nn.LayerNorm(16),
        head=nn.Linear(16, 5),
    )


class ConvNextBlock(nn.Module):
    """A depthwise convolution on [N, C, H, W], then norm and MLP with the channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return small(
        lambda self, x: self.head(self.stages(self.stem(x)).mean((2, 3))),
        stem=nn.Conv2d(3, 8, 2, 2),
        stages=nn.Sequential(ConvNextBlock(8), ConvNextBlock(8)),
        head=nn.Linear(8, 5),
    )


class Block(nn.Module):
    """A block of a vision transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 2)
        self.mlp = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def vit(prefix: int, pooled: bool) -> nn.Module:
    """`prefix` tokens before those of the picture; the head reads the mean of the others, or the first token."""

    def body(self: Any, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        if prefix:
            x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.position
        x = self.norm(self.blocks(x))
        return self.head(x[:, prefix:].mean(1) if pooled else x[:, 0])

    generator = torch.Generator().manual_seed(3)
    return small(
        body,
        patches=nn.Conv2d(3, 8, 4, 4),
        prefix=torch.randn(1, max(prefix, 1), 8, generator=generator),
        position=torch.randn(1, prefix + 16, 8, generator=generator),
        blocks=nn.Sequential(Block(8), Block(8)),
        norm=nn.LayerNorm(8),
        head=nn.Linear(8, 5),
    )


def at_layer(network: nn.Module, layer: str, image: Tensor, targets: list[int]) -> tuple[Tensor, Tensor]:
    """The layer's output and the gradient of the targets' logits there, by autograd in float64."""
    network, kept = copy.deepcopy(network).double(), []
    network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = network(image.double().requires_grad_())
    (gradient,) = torch.autograd.grad(logits[range(len(targets)), targets].sum(), kept[0])
    return kept[0].detach(), gradient


def by_hand(features: Tensor, gradient: Tensor, image: Tensor) -> Tensor:
    """Grad-CAM of a map [N, C, h, w], enlarged to the picture."""
    weights = gradient.mean((2, 3), keepdim=True)
    small_map = (features * weights).sum(1, keepdim=True).relu()
    return F.interpolate(small_map, image.shape[2:], mode="bilinear").expand(-1, 3, -1, -1)


def compiled(network: nn.Module, path: Path, program: str = "gradcam", **options: Any) -> sptrace.Explainer:
    sptrace.compile(network, images(1), program=program, **options).save(path)
    return sptrace.load(path)


def assert_close(given: Any, wanted: Tensor) -> None:
    assert float(wanted.abs().max()) > 0
    np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


IMAGE, TARGETS = images(3, seed=7), [4, 0, 2]


@pytest.mark.parametrize("layer", [None, "stages.0", "stages.1.norm2", "stages.2", "stages.1.mlp.0"])
def test_channels_last(layer: str | None, tmp_path: Path) -> None:
    """Swin's stages give [N, H, W, C]."""
    network = swin()
    explainer = compiled(network, tmp_path / "cam.onnx", layer=layer)
    settings = explainer.description.settings
    assert (settings["layer"], settings["channels"]) == (layer or "stages", 3)
    parts = at_layer(network, settings["layer"], IMAGE, TARGETS)
    wanted = by_hand(*(part.permute(0, 3, 1, 2) for part in parts), IMAGE)
    assert_close(explainer.attribute(IMAGE.numpy(), TARGETS), wanted)


@pytest.mark.parametrize(
    ("layer", "last"), [(None, False), ("stages.0.norm", True), ("stages.1.depthwise", False)]
)
def test_permutes_inside_of_a_block(layer: str | None, last: bool, tmp_path: Path) -> None:
    network = convnext()
    explainer = compiled(network, tmp_path / "cam.onnx", layer=layer)
    assert explainer.description.settings["layer"] == (layer or "stages")
    parts = at_layer(network, layer or "stages", IMAGE, TARGETS)
    wanted = by_hand(*(part.permute(0, 3, 1, 2) if last else part for part in parts), IMAGE)
    assert_close(explainer.attribute(IMAGE.numpy(), TARGETS), wanted)


def test_beside_captum(tmp_path: Path) -> None:
    """Captum takes channels first; a wrapper turns the layer's output round for it."""

    class Turned(nn.Module):
        def __init__(self, stages: nn.Module) -> None:
            super().__init__()
            self.stages, self.seen = stages, nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.seen(self.stages(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    network = swin()
    explainer = compiled(network, tmp_path / "cam.onnx")
    network.stages = Turned(network.stages)
    small_map = LayerGradCam(network, network.stages.seen).attribute(
        IMAGE, torch.tensor(TARGETS), relu_attributions=True
    )
    wanted = F.interpolate(small_map.detach(), IMAGE.shape[2:], mode="bilinear").expand(-1, 3, -1, -1)
    assert_close(explainer.attribute(IMAGE.numpy(), TARGETS), wanted)


@pytest.mark.parametrize(("prefix", "pooled"), [(0, True), (1, True), (1, False), (3, False)])
def test_tokens_make_a_map(prefix: int, pooled: bool, tmp_path: Path) -> None:
    """Where the head reads the class token alone, the last block's other tokens speak for nothing."""
    network = vit(prefix, pooled)
    explainer = compiled(network, tmp_path / "cam.onnx")
    settings = explainer.description.settings
    assert settings["layer"] == ("blocks" if pooled else "blocks.0")
    assert settings["prefix_tokens"] == prefix
    parts = at_layer(network, settings["layer"], IMAGE, TARGETS)
    maps = (part[:, prefix:].transpose(1, 2).unflatten(2, (4, 4)) for part in parts)
    assert_close(explainer.attribute(IMAGE.numpy(), TARGETS), by_hand(*maps, IMAGE))


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        ("stages.0", {}),
        ("stages.0", {"position": (2, 5)}),
        ("stages.2", {"direction": True}),
        ("stages.2", {"unit": 11}),
        ("stages.0.mlp.0", {"channels": "last"}),
    ],
)
def test_channels_last_with_other_programs(layer: str, options: dict[str, Any], tmp_path: Path) -> None:
    """The channel, its activation, a direction and a position are of the right dimension."""
    network = swin()
    explainer = compiled(network, tmp_path / "neuron.onnx", "gradient", layer=layer, **options)
    double, kept = copy.deepcopy(network).double(), []
    double.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    leaf = IMAGE.double().requires_grad_()
    double(leaf)
    row, column = options.get("position", (None, None))
    activation = kept[0].sum((1, 2)) if row is None else kept[0][:, row, column]
    units = [options["unit"]] * 3 if "unit" in options else [1, 6, 3]
    direction = F.one_hot(torch.tensor(units), activation.shape[1]).double()
    neuron: dict[str, Any] = {} if "unit" in options else {"target": units}
    if options.get("direction"):
        direction = torch.randn(activation.shape, generator=torch.Generator().manual_seed(0)).double()
        neuron = {"direction": direction.numpy()}
    (wanted,) = torch.autograd.grad((activation * direction).sum(), leaf)
    given = explainer.explain(IMAGE.numpy(), **neuron)
    assert_close(given.attribution, wanted)
    assert_close(given.activation, activation.detach())
    assert explainer.units == activation.shape[1]


def test_rows_of_channels_first(tmp_path: Path) -> None:
    """A one-dimensional convolution over flattened places has its channels first, unlike tokens."""

    def body(self: Any, x: Tensor) -> Tensor:
        return self.head(F.silu(self.line(self.stem(x).flatten(2))).mean(2))

    network = small(body, stem=nn.Conv2d(3, 6, 4, 4), line=nn.Conv1d(6, 6, 1), head=nn.Linear(6, 5))
    explainer = compiled(network, tmp_path / "line.onnx", "gradient", layer="line")
    assert explainer.description.settings["channels"] == 1
    leaf = IMAGE.double().requires_grad_()
    double = copy.deepcopy(network).double()
    activation = double.line(double.stem(leaf).flatten(2)).sum(2)
    (wanted,) = torch.autograd.grad(activation[:, 4].sum(), leaf)
    given = explainer.explain(IMAGE.numpy(), 4)
    assert_close(given.attribution, wanted)
    assert_close(given.activation, activation.detach())


def mixer() -> nn.Module:
    """Tokens are mixed by linear layers too, after a transposition."""

    def body(self: Any, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.stream(x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2))
        return self.head(self.channels(x).mean(1))

    return small(
        body,
        patches=nn.Conv2d(3, 16, 4, 4),
        norm=nn.LayerNorm(16),
        tokens=nn.Linear(16, 16),
        stream=nn.Identity(),
        channels=nn.Linear(16, 16),
        head=nn.Linear(16, 5),
    )


def test_layers_that_mix_places_do_not_count() -> None:
    captured = capture(mixer(), images(1), "stream")
    assert layout(captured, "stream", None) == Layout(2, (1,), Tokens(0, (4, 4)))


def test_where_two_readings_are_possible_the_user_is_asked(tmp_path: Path) -> None:
    """Before the norm's tokens are mixed its channels were: the graph knows the places, the reference does not."""
    network = mixer()
    with pytest.raises(
        sptrace.SptraceError, match=r"^which dimension of 'norm' holds its channels .* channels=\"first\""
    ):
        sptrace.compile(network, images(1), layer="norm")
    explainer = compiled(network, tmp_path / "mixer.onnx", "gradient", layer="norm", channels="last")
    double, leaf = copy.deepcopy(network).double(), IMAGE.double().requires_grad_()
    activation = double.norm(double.patches(leaf).flatten(2).transpose(1, 2)).sum(1)
    (wanted,) = torch.autograd.grad(activation[:, 4].sum(), leaf)
    assert_close(explainer.attribute(IMAGE.numpy(), 4), wanted)


def test_where_nothing_tells_the_user_is_asked() -> None:
    """Products of the picture with itself mix its rows: neither rows nor columns nor channels are left."""

    def body(self: Any, x: Tensor) -> Tensor:
        x = self.odd((x @ x.transpose(2, 3)).flip(1))
        return self.head(x.flatten(1))

    network = small(body, odd=nn.Softplus(), head=nn.Linear(3 * 16 * 16, 5))
    with pytest.raises(
        sptrace.SptraceError, match=r"which dimension of 'odd', which gives \[N, 3, 16, 16\]"
    ) as error:
        sptrace.compile(network, images(1), layer="odd")
    assert "\n" not in str(error.value)
    sptrace.compile(network, images(1), layer="odd", channels=1)


def test_tokens_of_no_known_place(tmp_path: Path) -> None:
    """The tokens pass through a product with the picture: where they came from is not to be seen, but may be said."""

    def body(self: Any, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        mixed = self.mixing.expand(x.shape[0], -1, -1) @ x
        return self.head(F.silu(self.blocks(mixed)).mean(1))

    mixing = torch.eye(17)[:, :16].flip(0)  # nothing, then the places from the last to the first
    network = small(
        body,
        patches=nn.Conv2d(3, 8, 4, 4),
        blocks=nn.Sequential(nn.Linear(8, 8)),
        head=nn.Linear(8, 5),
        mixing=mixing,
    )
    with pytest.raises(sptrace.SptraceError, match=r"tokens of 'blocks' are places .* say prefix_tokens="):
        sptrace.compile(network, images(1), program="gradcam", layer="blocks")
    with pytest.raises(sptrace.SptraceError, match=r"17 tokens of 'blocks' without the first 2 are no grid"):
        sptrace.compile(network, images(1), program="gradcam", layer="blocks", prefix_tokens=2)
    explainer = compiled(network, tmp_path / "cam.onnx", layer="blocks", prefix_tokens=1)
    parts = at_layer(network, "blocks", IMAGE, TARGETS)
    maps = (part[:, 1:].transpose(1, 2).unflatten(2, (4, 4)) for part in parts)
    assert_close(explainer.attribute(IMAGE.numpy(), TARGETS), by_hand(*maps, IMAGE))


# --- Where the map is taken if nobody says ---


def test_branches_that_lead_nowhere_are_passed_over() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        x = F.silu(self.trunk(x))
        answer = self.head(x.mean((2, 3)))
        self.auxiliary(x)
        return answer + 0 * self.unheard(x).mean((2, 3))[:, :5]

    network = small(
        body,
        trunk=nn.Conv2d(3, 8, 3),
        auxiliary=nn.Conv2d(8, 9, 3),
        unheard=nn.Conv2d(8, 9, 3),
        head=nn.Linear(8, 5),
    )
    assert choose(network, images(1))[1] == "trunk"


def test_narrow_layers_are_passed_over() -> None:
    """One channel of spatial attention is no place for a class activation map."""

    def body(self: Any, x: Tensor) -> Tensor:
        x = F.silu(self.trunk(x))
        return self.head((x * torch.sigmoid(self.gate(x))).mean((2, 3)))

    network = small(body, trunk=nn.Conv2d(3, 8, 3), gate=nn.Conv2d(8, 1, 3, padding=1), head=nn.Linear(8, 5))
    assert choose(network, images(1))[1] == "trunk"


@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        (
            small(lambda self, x: self.head(x.flatten(1)), head=nn.Linear(768, 4)),
            "it has no layer whose output is a map",
        ),
        (
            small(lambda self, x: self.conv(x), conv=nn.Conv2d(3, 4, 16)),
            "it has no layer whose output is a map",
        ),
        (
            small(
                lambda self, x: self.head(x.flatten(1)) + 0 * self.conv(x).sum(),
                head=nn.Linear(768, 4),
                conv=nn.Conv2d(3, 9, 3),
            ),
            "the logits do not depend on the places of 'conv'",
        ),
    ],
)
def test_none_at_all(network: nn.Module, complaint: str) -> None:
    with pytest.raises(
        sptrace.SptraceError, match=r"^say with layer= where the class activation map"
    ) as error:
        sptrace.compile(network, images(1), program="gradcam")
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"layer": "stages.0", "channels": 4},
            "channels=4: the output of 'stages.0' has no such dimension, give 1 to 3",
        ),
        ({"channels": "last"}, "channels belongs to a layer"),
        ({"layer": "stages.0", "channels": "middle"}, "channels must be first, last"),
        ({"layer": "stages.0", "channels": 0}, "channels must be first, last"),
        ({"layer": "stages.0", "unit": 8}, "no unit 8: give 0 to 7"),
        ({"layer": "stages.2", "position": (4, 0)}, r"no position \(4, 0\): the last one is \(3, 3\)"),
        (
            {"program": "gradcam", "layer": "stages.0", "prefix_tokens": 1},
            "gives no tokens: leave prefix_tokens out",
        ),
        ({"program": "gradcam", "layer": "head"}, "needs a layer with places, 'head' has none"),
    ],
)
def test_mistakes(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(sptrace.SptraceError, match=complaint) as error:
        sptrace.compile(swin(), images(1), **options)
    assert "\n" not in str(error.value)
