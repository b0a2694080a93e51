"""Every program through its artifact, beside plain Python loops around the eager reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers import small_networks

import sptrace
from sptrace.artifact.description import Preprocessing
from sptrace.artifact.programs import PROGRAMS
from sptrace.artifact.softening import Softening
from sptrace.compiler.reference.eager_explainer import Eager
from sptrace.compiler.reference.eager_programs import EAGER, noisy_weights

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
TARGET = np.array([2, 5, 2])


Load = Callable[..., sptrace.Explainer]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The artifact of a program with these options; each is compiled once."""
    folder, written = tmp_path_factory.mktemp("programs"), dict[str, Path]()

    def write(program: str, **options: Any) -> Path:
        name = f"{program} {options}"
        if name not in written:
            path = folder / f"{len(written)}.onnx"
            network, image = small_networks.classifier(), small_networks.images(1)
            sptrace.compile(
                network, image, program=program, softening="paper", mean=MEAN, std=STD, **options
            ).save(path)
            written[name] = path
        return written[name]

    return write


@pytest.fixture(scope="module")
def explainer(files: Callable[..., Path]) -> Load:
    """The loaded artifact of a program with these options."""
    return lambda program, **options: sptrace.load(files(program, **options))


def expected(program: str, image: np.ndarray, target: np.ndarray, **options: Any) -> np.ndarray:
    kind = PROGRAMS[program]
    settings = {**kind.settings(options), **({"layer": "block"} if kind.is_cam else {})}
    eager = Eager(
        program,
        settings,
        small_networks.classifier(),
        Preprocessing((16, 16), mean=MEAN, std=STD),
        kind.softening(Softening("paper")),
    )
    return eager(torch.from_numpy(image), torch.from_numpy(target))[0].numpy()


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("soft_pullback", {}, {}),
    ("gradient", {}, {}),
    ("guided_backprop", {}, {}),
    ("input_x_pullback", {}, {}),
    ("input_x_gradient", {}, {}),
    ("double_pullback", {}, {"alpha": 30.0}),
    ("pullback_ascent", {}, {"steps": 4, "alpha": 3.0}),
    ("pullback_ascent", {"clamp": "every"}, {"steps": 3, "alpha": 9.0}),
    ("pullback_ascent", {"clamp": "last"}, {"steps": 3, "alpha": 9.0}),
    ("pullback_ascent", {"epsilon": 4.0}, {"steps": 5, "alpha": 2.0}),
    ("gradient_ascent", {}, {"steps": 1, "alpha": 5.0}),
    ("smooth_pullback", {}, {"samples": 4, "sigma": 0.3}),
    ("smooth_pullback", {"seed": 12}, {"samples": 3, "sigma": 0.1}),
    ("smoothgrad", {}, {"samples": 3, "sigma": 0.2}),
    ("fusion_pullback", {}, {"samples": 3, "draws": 2, "sigma": 0.2, "weight_sigma": 0.3}),
    ("fusion_pullback", {"seed": 7}, {"samples": 1, "draws": 3, "sigma": 0.0, "weight_sigma": 0.2}),
    ("fusiongrad", {}, {"samples": 2, "draws": 3, "sigma": 0.1, "weight_sigma": 0.05}),
    ("integrated_pullback", {}, {"samples": 6, "baseline": 0.0}),
    ("integrated_gradients", {}, {"samples": 4, "baseline": -1.0}),
    ("gradcam", {}, {}),
    ("guided_gradcam", {"interpolation": "nearest"}, {}),
    ("guided_pullback_cam", {}, {}),
]


@pytest.mark.parametrize(("program", "options", "settings"), CASES)
def test_against_plain_loops(
    explainer: Load, program: str, options: dict[str, Any], settings: dict[str, Any]
) -> None:
    image = small_networks.images(3, seed=3).numpy()
    given = explainer(program, **options).explain(image, TARGET, **settings)
    wanted = expected(program, image, TARGET, **options, **settings)
    np.testing.assert_allclose(given.attribution, wanted, atol=2e-5 * np.abs(wanted).max())


def test_options_given_when_compiling_are_the_defaults_at_run_time(explainer: Load) -> None:
    image = small_networks.images(2, seed=3).numpy()
    given = explainer("pullback_ascent").attribute(image, 3, steps=2, alpha=3.0)
    compiled_so = explainer("pullback_ascent", steps=2, alpha=3.0)
    np.testing.assert_allclose(compiled_so.attribute(image, 3), given, atol=1e-6 * np.abs(given).max())
    assert compiled_so.description.settings["steps"] == 2


def test_a_whole_number_may_stand_for_a_length(explainer: Load) -> None:
    image = small_networks.images(1, seed=3).numpy()
    given = explainer("pullback_ascent", steps=2, alpha=3)
    assert np.array_equal(
        given.attribute(image, 3), explainer("pullback_ascent", steps=2, alpha=3.0).attribute(image, 3)
    )
    assert np.array_equal(given.attribute(image, 3, alpha=7), given.attribute(image, 3, alpha=7.0))


def test_every_program_is_among_them() -> None:
    assert {program for program, _, _ in CASES} == set(PROGRAMS) == set(EAGER)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_logits_and_the_predicted_class_are_those_of_the_image(explainer: Load, program: str) -> None:
    image = small_networks.images(3, seed=3)
    logits = small_networks.classifier()((((image + 1) / 2) - tensor(MEAN)) / tensor(STD)).detach().numpy()
    loaded = explainer(program)
    result = loaded.explain(image.numpy())
    np.testing.assert_allclose(result.logits, logits, atol=1e-5)
    np.testing.assert_array_equal(result.target, logits.argmax(1))
    named = loaded.explain(image.numpy(), logits.argmax(1))
    np.testing.assert_array_equal(result.attribution, named.attribution)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_picture_is_explained_alike_whatever_stands_beside_it(explainer: Load, program: str) -> None:
    image = small_networks.images(3, seed=3).numpy()
    loaded = explainer(program)
    together = loaded.attribute(image, TARGET)
    alone = loaded.attribute(image[1:2], TARGET[1:2])
    np.testing.assert_allclose(alone, together[1:2], atol=1e-5 * np.abs(together).max())


def test_fusion_without_noise_on_the_weights_is_a_smooth_pullback(explainer: Load) -> None:
    image = small_networks.images(2, seed=3).numpy()
    fused = explainer("fusion_pullback").attribute(image, 3, samples=5, draws=1, sigma=0.2, weight_sigma=0.0)
    smooth = explainer("smooth_pullback").attribute(image, 3, samples=5, sigma=0.2)
    np.testing.assert_allclose(fused, smooth, atol=1e-5 * np.abs(smooth).max())


def test_noise_on_the_weights_is_that_of_every_parameter() -> None:
    network = small_networks.classifier()
    varied = dict(noisy_weights(network, 1, 0.1, 5).named_parameters())
    noises = []
    for name, parameter in network.named_parameters():
        used = parameter.detach().abs() > 1e-3
        noises.append(((varied[name] / parameter - 1) / 0.1)[used])
    noise = torch.cat(noises).detach()
    assert len(varied) == len(noises) == 10
    assert abs(float(noise.mean())) < 0.1
    assert abs(float(noise.std()) - 1) < 0.1
    again = dict(noisy_weights(network, 1, 0.1, 5).named_parameters())
    other = dict(noisy_weights(network, 2, 0.1, 5).named_parameters())
    assert all(torch.equal(varied[name], again[name]) for name in varied)
    assert not any(torch.equal(varied[name], other[name]) for name in varied)


def test_ascents_stay_where_they_are_told_to(explainer: Load) -> None:
    image = small_networks.images(2, seed=3).numpy()
    settings = {"steps": 6, "alpha": 8.0}
    for clamp in ("every", "last"):
        result = explainer("pullback_ascent", clamp=clamp).explain(image, 3, **settings)
        assert result.image_out is not None
        assert np.abs(result.image_out).max() <= 1
        np.testing.assert_allclose(result.image_out - image, result.attribution, atol=1e-6)
    free = explainer("pullback_ascent").explain(image, 3, **settings)
    assert np.abs(free.image_out).max() > 1
    ball = explainer("pullback_ascent", epsilon=5.0).explain(image, 3, **settings)
    np.testing.assert_allclose(np.linalg.norm(ball.attribution.reshape(2, -1), axis=1), 5.0, rtol=1e-5)


@pytest.mark.parametrize("clamp", ["never", "every", "last"])
def test_logits_of_the_picture_that_an_ascent_arrives_at(explainer: Load, clamp: str) -> None:
    image = small_networks.images(2, seed=3).numpy()
    settings = {"steps": 3, "alpha": 8.0}
    result = explainer("pullback_ascent", clamp=clamp, logits_out=True).explain(image, 3, **settings)
    without = explainer("pullback_ascent", clamp=clamp, logits_out=False).explain(image, 3, **settings)
    np.testing.assert_allclose(result.attribution, without.attribution, atol=1e-6)
    np.testing.assert_array_equal(result.logits, without.logits)
    assert without.logits_out is None
    assert without.probabilities_out is None
    assert result.image_out is not None
    assert result.probabilities_out is not None
    there = explainer("soft_pullback").explain(result.image_out)
    np.testing.assert_allclose(result.logits_out, there.logits, atol=1e-5)
    np.testing.assert_allclose(result.probabilities_out, there.probabilities, atol=1e-6)
    usual = explainer("pullback_ascent", clamp=clamp).explain(image, 3)
    assert (usual.logits_out is None) == (clamp == "never")


def test_a_short_step_loses_no_digits(explainer: Load) -> None:
    """x_K - x_0 of pictures would leave three digits of so short a step; what is carried is the difference itself."""
    image = small_networks.images(1, seed=3).numpy()
    moved = explainer("pullback_ascent").attribute(image, 3, steps=1, alpha=1e-4)
    direction = explainer("soft_pullback").attribute(image, 3)
    np.testing.assert_allclose(moved, 1e-4 * direction / np.linalg.norm(direction), rtol=1e-4, atol=1e-11)


def test_an_ascent_raises_the_score(explainer: Load) -> None:
    image = small_networks.images(2, seed=3).numpy()
    loaded = explainer("pullback_ascent", clamp="every")
    before = loaded.explain(image, 3)
    after = loaded.explain(before.image_out, 3)
    assert (after.logits[:, 3] > before.logits[:, 3]).all()


def test_cross_entropy_pulls_the_log_probability(explainer: Load) -> None:
    image = small_networks.images(2, seed=3)
    loaded = explainer("gradient_ascent", objective="cross_entropy")
    moved = loaded.attribute(image.numpy(), 3, steps=1, alpha=1.0)
    leaf = image.clone().requires_grad_()
    logits = small_networks.classifier()((((leaf + 1) / 2) - tensor(MEAN)) / tensor(STD))
    (gradient,) = torch.autograd.grad(logits.log_softmax(1)[:, 3].sum(), leaf)
    wanted = (gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).numpy()
    np.testing.assert_allclose(moved, wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_file_holds_the_pullback_once(files: Callable[..., Path]) -> None:
    sizes = {}
    for program in ("soft_pullback", "pullback_ascent", "smooth_pullback", "double_pullback"):
        model = onnx.load(files(program))
        loops = [node for node in model.graph.node if node.op_type == "Loop"]
        assert len(loops) == (0 if program == "soft_pullback" else 1)
        bodies = [attribute.g for loop in loops for attribute in loop.attribute if attribute.name == "body"]
        graphs = [model.graph, *bodies]
        sizes[program] = sum(node.op_type == "Conv" for graph in graphs for node in graph.node)
    assert len(set(sizes.values())) == 1


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"step": 3}, "'step' cannot be set at run time: this artifact takes steps, alpha"),
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1, not 2.5"),
        ({"alpha": "far"}, "alpha must be a number, not 'far'"),
        ({"clamp": "every"}, "'clamp' cannot be set at run time"),
    ],
)
def test_wrong_settings_at_run_time(explainer: Load, settings: dict[str, Any], complaint: str) -> None:
    loaded = explainer("pullback_ascent")
    with pytest.raises(sptrace.SptraceError, match=complaint):
        loaded.explain(small_networks.images(1).numpy(), 3, **settings)


@pytest.mark.parametrize(
    ("program", "options", "complaint"),
    [
        (
            "soft_pullback",
            {"steps": 3},
            "no option 'steps': it takes layer, unit, position, channels, direction",
        ),
        ("pullback_ascent", {"clamp": "always"}, "clamp must be never, every or last, not 'always'"),
        ("pullback_ascent", {"epsilon": -1}, "epsilon must be a number above 0"),
        ("pullback_ascent", {"objective": "loss"}, "objective must be logit or cross_entropy"),
        ("smoothgrad", {"samples": 0}, "samples must be a whole number of at least 1"),
        ("smoothgrad", {"seed": -1}, "seed must be 0 to 2147483646"),
        ("gradcam", {"interpolation": "cubic"}, "interpolation must be bilinear or nearest, not 'cubic'"),
        ("gradcam", {"unit": 3}, "no option 'unit': it takes layer, channels, prefix_tokens, interpolation"),
        ("guided_gradcam", {"layer": "blok"}, "no layer 'blok': did you mean block"),
        ("guided_gradcam", {"layer": "head"}, "needs a layer with places, 'head' has none"),
    ],
)
def test_wrong_options_when_compiling(program: str, options: dict[str, Any], complaint: str) -> None:
    network, image = small_networks.classifier(), small_networks.images(1)
    with pytest.raises(sptrace.SptraceError, match=complaint):
        sptrace.compile(network, image, program=program, **options)


def tensor(numbers: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(numbers).view(1, -1, 1, 1)
