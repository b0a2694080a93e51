"""The programs: what is computed from a network's pullback. Torch-free data; `composition` builds them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sptrace.artifact.numbers import is_finite, is_whole, plain
from sptrace.artifact.softening import Softening
from sptrace.errors import SptraceError

Setting = int | float | str | tuple[int, ...] | None


@dataclass(frozen=True)
class Option:
    """One setting of a program.

    Arguments:
        default: its value when nothing is said.
        help: what it means, in one line.
        check: a setting is taken if this says True of it.
        wanted: what is wanted, for the message that refuses one.
        at_run_time: True if the artifact has an input of this name, of which the setting is the default.
    """

    default: Setting
    help: str
    check: Callable[[Any], bool]
    wanted: str
    at_run_time: bool = False


def _read(name: str, setting: Any) -> Any:
    """A setting in Python's own types; a position that is one number as a tuple."""
    if isinstance(setting, list | tuple):
        return tuple(map(plain, setting))
    setting = plain(setting)
    return (setting,) if name == "position" and _is_index(setting) else setting


def _as(default: object, setting: Any) -> Any:
    """A whole number as the float that it stands for, where the option is one: the file tells them apart."""
    return float(setting) if isinstance(default, float) else setting


def _is_count(setting: Any) -> bool:
    return is_whole(setting) and setting >= 1


def _is_positive(setting: Any) -> bool:
    return is_finite(setting) and setting > 0


def _is_index(setting: Any) -> bool:
    return is_whole(setting) and setting >= 0


def _is_position(setting: object) -> bool:
    return isinstance(setting, tuple) and len(setting) in (1, 2) and all(map(_is_index, setting))


def _is_dimension(setting: object) -> bool:
    return setting in ("first", "last") or (_is_index(setting) and setting != 0)


def _one_of(*names: str) -> Callable[[object], bool]:
    return lambda setting: setting in names


_LAYER = Option(
    None,
    "path of the module whose channels are explained, as in model.named_modules(); None: the network's classes",
    lambda layer: layer is None or (isinstance(layer, str) and layer != ""),
    "the path of a module as in model.named_modules(), or None",
)
_CHANNELS = Option(
    None,
    "which dimension of the layer's output holds its channels: first, last or its number; None: what the graph tells",
    lambda channels: channels is None or _is_dimension(channels),
    "first, last, the number of a dimension after the batch, or None",
)
_DIRECTION = Option(
    False,
    "the file takes a direction, float32 [N, classes or channels], in place of a target",
    lambda direction: isinstance(direction, bool),
    "True or False",
)
NEURON: Mapping[str, Option] = MappingProxyType(
    {
        "layer": _LAYER,
        "unit": Option(
            None,
            "the layer's channel that a target of -1 stands for; None: the one with the largest value",
            lambda unit: unit is None or _is_index(unit),
            "a whole number of at least 0, or None",
        ),
        "position": Option(
            None,
            "row and column of the layer's map, or number of its token; None: the sum over all",
            lambda position: position is None or _is_position(position),
            "row and column, or the number of a token, or None",
        ),
        "channels": _CHANNELS,
        "direction": _DIRECTION,
    }
)
"""What is explained; every program that pulls one neuron back to the image takes these."""

_STEPS = Option(5, "number of steps, K", _is_count, "a whole number of at least 1", at_run_time=True)
_ALPHA = Option(20.0, "length of a step, L2 norm over the image", is_finite, "a number", at_run_time=True)
_SAMPLES = Option(50, "number of pictures", _is_count, "a whole number of at least 1", at_run_time=True)
_SIGMA = Option(0.15, "standard deviation of the noise", is_finite, "a number", at_run_time=True)
_SEED = Option(
    0, "seed of the noise", lambda seed: is_whole(seed) and 0 <= seed < 2**31 - 1, "0 to 2147483646"
)
_OBJECTIVE = Option(
    "logit",
    "what is raised: the target's logit, or its log-probability (cross_entropy)",
    _one_of("logit", "cross_entropy"),
    "logit or cross_entropy",
)
_ASCENT: Mapping[str, Option] = {
    "steps": _STEPS,
    "alpha": _ALPHA,
    "clamp": Option(
        "never",
        "clamp pictures to the input's range: never, every step, or after the last",
        _one_of("never", "every", "last"),
        "never, every or last",
    ),
    "epsilon": Option(
        None,
        "radius of the L2 ball around the image that no step leaves",
        lambda epsilon: epsilon is None or _is_positive(epsilon),
        "a number above 0, or None",
    ),
    "objective": _OBJECTIVE,
    "logits_out": Option(
        None,
        "also output the logits of the picture that the ascent arrives at; None: if pictures are clamped",
        lambda wanted: wanted is None or isinstance(wanted, bool),
        "True, False or None",
    ),
}
_NOISE: Mapping[str, Option] = {"samples": _SAMPLES, "sigma": _SIGMA, "seed": _SEED}
_FUSION: Mapping[str, Option] = {
    "samples": Option(
        10, "number of pictures for every draw of weights", _is_count, "a whole number of at least 1", True
    ),
    "draws": Option(10, "number of draws of weights", _is_count, "a whole number of at least 1", True),
    "sigma": _SIGMA,
    "weight_sigma": Option(
        0.1, "standard deviation of the noise that weights are multiplied by", is_finite, "a number", True
    ),
    "seed": _SEED,
}
_PATH: Mapping[str, Option] = {
    "samples": _SAMPLES,
    "baseline": Option(
        0.0, "what the path starts from: one value for all pixels", is_finite, "a number", True
    ),
}
_CAM: Mapping[str, Option] = {
    "layer": Option(
        None,
        "path of the module whose map is taken; None: the last whose map the logits depend on",
        _LAYER.check,
        _LAYER.wanted,
    ),
    "channels": _CHANNELS,
    "prefix_tokens": Option(
        None,
        "of a layer that gives tokens: how many come before those of the picture; None: what the graph tells",
        lambda count: count is None or _is_index(count),
        "a whole number of at least 0, or None",
    ),
    "interpolation": Option(
        "bilinear",
        "how the map is enlarged to the image: bilinear or nearest",
        _one_of("bilinear", "nearest"),
        "bilinear or nearest",
    ),
    "direction": _DIRECTION,
}

PAPER = "arXiv 2507.22832"


@dataclass(frozen=True)
class ProgramKind:
    """What there is to know about a program.

    Arguments:
        summary: what it computes, in one line.
        source: where it is defined.
        preset: the softening that it is defined with, whatever is asked for; None: the one asked for.
        options: its settings by name, those that all programs share among them.
        tolerance: verification's bound on the largest error, as a share of the largest value.
        is_cam: is it made with a class activation map? Then its option `layer` is where the map is taken.
        varies_weights: does it compute with other weights than the network's?
    """

    summary: str
    source: str
    preset: str | None = None
    options: Mapping[str, Option] = field(default_factory=lambda: NEURON)
    tolerance: float = 1e-4
    is_cam: bool = False
    varies_weights: bool = False

    def softening(self, asked: Softening) -> Softening:
        """The softening that the program uses."""
        return asked if self.preset is None else Softening(self.preset)

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All settings, those that were not given at their defaults.

        Raises:
            SptraceError: the program has no such option, the setting is not among those it takes, or two of them
                contradict each other.
        """
        given = {name: _read(name, setting) for name, setting in given.items()}
        for name, setting in given.items():
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise SptraceError(f"the program has no option {name!r}: it takes {known}")
            option = self.options[name]
            if not option.check(setting):
                raise SptraceError(f"{name} must be {option.wanted}, not {setting!r}")
        settings = {
            name: _as(option.default, given.get(name, option.default))
            for name, option in self.options.items()
        }
        _require_sense(settings)
        if "logits_out" in settings and settings["logits_out"] is None:
            settings["logits_out"] = settings["clamp"] != "never"
        return settings

    def for_verification(self, settings: Mapping[str, Any], hard: bool) -> dict[str, Any]:
        """The settings at which a program is verified: as given, but for the number of rounds.

        Two rounds show that what a loop carries is right. With hard gates the second step of an ascent would say
        nothing: a gate that float32 cannot decide moves the first step, and then many gates the second.
        """
        rounds = {"steps": 1 if hard else 2, "samples": 2, "draws": 2}
        return {
            name: min(setting, rounds[name]) if name in rounds else setting
            for name, setting in settings.items()
        }


def _require_sense(settings: Mapping[str, Any]) -> None:
    """Refuse settings that contradict each other."""
    for name in ("unit", "position", "channels", "prefix_tokens"):
        if settings.get(name) is not None and settings["layer"] is None:
            raise SptraceError(f"{name} belongs to a layer: give layer too, the path of a module")
    if settings.get("unit") is not None and settings["direction"]:
        raise SptraceError("a direction takes the place of a unit: leave out one of unit and direction")
    if settings.get("objective") == "cross_entropy" and (
        settings["layer"] is not None or settings["direction"]
    ):
        raise SptraceError(
            "objective cross_entropy is about a class: leave out layer and direction, or use objective logit"
        )


def _soft_and_hard(
    soft: str,
    hard: str,
    summary: str,
    source: tuple[str, str],
    options: Mapping[str, Option],
    tolerance: float = 1e-4,
    *,
    varies_weights: bool = False,
) -> dict[str, ProgramKind]:
    """A program with soft gates, and its twin with hard ones."""
    kinds = {}
    for name, what, origin, preset in (
        (soft, "the pullback", source[0], None),
        (hard, "the gradient", source[1], "hard"),
    ):
        kinds[name] = ProgramKind(
            summary.format(what),
            origin,
            preset,
            {**options, **NEURON},
            tolerance,
            varies_weights=varies_weights,
        )
    return kinds


PROGRAMS: Mapping[str, ProgramKind] = MappingProxyType(
    {
        "soft_pullback": ProgramKind(
            "the pullback nu(x) of the target's logit, gates softened", f"{PAPER}, section 3"
        ),
        "gradient": ProgramKind(
            "the same with hard gates: the gradient", "Simonyan et al., arXiv 1312.6034", "hard"
        ),
        "guided_backprop": ProgramKind(
            "the gradient, with negative cotangents dropped at every ReLU",
            "Springenberg et al., arXiv 1412.6806",
            "guided",
        ),
        "double_pullback": ProgramKind(
            "nu(x + alpha nu(x)): the pullback where the pullback points to",
            PAPER,
            options={
                "alpha": Option(2.0, "how far it is followed", is_finite, "a number", at_run_time=True),
                **NEURON,
            },
        ),
        **_soft_and_hard(
            "pullback_ascent",
            "gradient_ascent",
            "x_K - x_0 after K normalised steps along {}, and the counterfactual picture x_K",
            (PAPER, PAPER),
            _ASCENT,
            1e-3,
        ),
        **_soft_and_hard(
            "smooth_pullback",
            "smoothgrad",
            "mean of {} over noisy copies of the image",
            (PAPER, "Smilkov et al., arXiv 1706.03825"),
            _NOISE,
        ),
        **_soft_and_hard(
            "fusion_pullback",
            "fusiongrad",
            "mean of {} over noisy copies of the image and noisy weights",
            (PAPER, "Bykov et al., arXiv 2106.10185"),
            _FUSION,
            varies_weights=True,
        ),
        **_soft_and_hard(
            "integrated_pullback",
            "integrated_gradients",
            "(x - baseline) times the mean of {} along the straight path from the baseline",
            (PAPER, "Sundararajan et al., arXiv 1703.01365"),
            _PATH,
        ),
        **_soft_and_hard(
            "input_x_pullback",
            "input_x_gradient",
            "image times {}",
            (PAPER, "Shrikumar et al., arXiv 1605.01713"),
            {},
        ),
        "gradcam": ProgramKind(
            "class activation map of a layer, its channels weighed by their mean gradient; alike in all colours",
            "Selvaraju et al., arXiv 1610.02391",
            "hard",
            _CAM,
            is_cam=True,
        ),
        "guided_gradcam": ProgramKind(
            "guided_backprop times the Grad-CAM of a layer",
            "Selvaraju et al., arXiv 1610.02391",
            "guided",
            _CAM,
            is_cam=True,
        ),
        "guided_pullback_cam": ProgramKind(
            "the pullback times the class activation map whose weights are its means at a layer",
            PAPER,
            options=_CAM,
            is_cam=True,
        ),
    }
)


def program_kind(name: str) -> ProgramKind:
    """The program of that name; SptraceError if there is none."""
    if not isinstance(name, str) or name not in PROGRAMS:
        close = difflib.get_close_matches(str(name), PROGRAMS, n=2)
        meant = f"did you mean {' or '.join(close)}? " if close else ""
        raise SptraceError(f"there is no program {name!r}: {meant}use one of {', '.join(PROGRAMS)}")
    return PROGRAMS[name]
