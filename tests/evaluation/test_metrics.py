"""Every metric against a second computation: Quantus's where it defines the same, by hand elsewhere."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import deterministic
from helpers.small_networks import classifier, small
from torch import nn

import sptrace
from sptrace.errors import SptraceError
from sptrace.evaluation import predictor, steps, with_quantus
from sptrace.evaluation.curves import STEPS, blurred, insertion_deletion
from sptrace.evaluation.methods import Method, of_artifact
from sptrace.evaluation.mosaics import Mosaic, focus, mosaics
from sptrace.evaluation.perturbations import cover, faithfulness_correlation, infidelity, patches, pearson
from sptrace.evaluation.predictor import Predictor

SIDE = 32


class Linear:
    """Logits linear in the picture, in place of a `Predictor`: every metric's answer is known."""

    def __init__(self, weight: np.ndarray) -> None:
        self.weight = weight.astype(np.float64)
        self.asked = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.asked += len(images)
        scores = np.tensordot(images.astype(np.float64), self.weight, axes=3)
        return np.stack([scores, -scores], axis=1)

    def score(self, images: np.ndarray, target: int) -> np.ndarray:
        return self(images)[:, target]


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(1)


@pytest.fixture
def image(random: np.random.Generator) -> np.ndarray:
    return random.uniform(-1, 1, (3, SIDE, SIDE)).astype(np.float32)


@pytest.fixture
def attribution(random: np.random.Generator) -> np.ndarray:
    return random.normal(size=(3, SIDE, SIDE)).astype(np.float32)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "soft.onnx"
    sptrace.compile(classifier(), deterministic.images(2, 1, SIDE)).save(path)
    return path


@pytest.mark.parametrize("pixels", [1, 8 * SIDE * SIDE, 2**18])
def test_the_predictor_is_the_network(artifact: Path, monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    """However many pictures are taken at a time."""
    monkeypatch.setattr(predictor, "PIXELS", pixels)
    predict, explainer = Predictor(artifact), sptrace.load(artifact)
    images = deterministic.images(3, 70, SIDE).numpy()
    assert np.allclose(predict(images[:5]), explainer.explain(images[:5]).logits, atol=1e-5)
    assert np.allclose(predict(images), explainer.explain(images).logits, atol=1e-5)
    assert np.array_equal(predict.score(images[:2], 3), predict(images[:2])[:, 3].astype(np.float64))


@pytest.mark.parametrize("factor", [1.0, -3.0, 1e-3])
def test_a_linear_network_is_explained_by_its_weights(
    factor: float, image: np.ndarray, attribution: np.ndarray
) -> None:
    """Whatever scale the attribution has."""
    covered = cover(Linear(attribution), image, 0, seed=5)  # type: ignore[arg-type]
    power = float(np.mean([(b * b).mean() for *_, b in covered.noisy]))
    assert infidelity(covered, np.float32(factor) * attribution) < 1e-9 * power
    assert infidelity(covered, np.zeros_like(attribution)) == pytest.approx(power)
    assert infidelity(covered, np.float32(2) * attribution, scaling=False) == pytest.approx(power, rel=1e-5)


@pytest.mark.usefixtures("quantus")
def test_infidelity_is_that_of_quantus_but_for_the_scale(
    artifact: Path, image: np.ndarray, attribution: np.ndarray
) -> None:
    """With the same noise, drawn in the same order."""
    predict, noise = Predictor(artifact), np.random.default_rng(5)

    def perturb(arr: np.ndarray, indices: Any, **_: object) -> np.ndarray:
        changed = arr.reshape(1, 3, SIDE, SIDE).copy()
        where = np.zeros((3, SIDE, SIDE), bool)
        where[np.unravel_index(np.asarray(indices).reshape(-1), where.shape)] = True
        rows, columns = np.flatnonzero(where.any((0, 2))), np.flatnonzero(where.any((0, 1)))
        square = (slice(None), slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        changed[square] = noise.uniform(-1, 1, changed[square][0].shape)
        return changed.reshape(arr.shape)

    target = int(predict(image[None]).argmax())
    settings = {
        "perturb_patch_sizes": [SIDE // 2, SIDE // 4],
        "n_perturb_samples": 5,
        "perturb_func": perturb,
    }
    theirs = _quantus(
        "Infidelity", predict, image, target, attribution, 0, abs=False, normalise=False, **settings
    )
    ours = infidelity(cover(predict, image, target, seed=5), attribution, scaling=False)
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_the_scale_is_the_best_there_is(image: np.ndarray, attribution: np.ndarray) -> None:
    covered = cover(Linear(attribution**3), image, 0, seed=5)  # type: ignore[arg-type]
    best = infidelity(covered, attribution)
    for factor in np.geomspace(0.01, 100, 41).astype(np.float32):
        # One factor for both sizes can only be worse.
        assert best <= infidelity(covered, factor * attribution, scaling=False) * (1 + 1e-6)


def test_patches_cover_everything_once() -> None:
    seen = np.zeros((30, 44), int)
    for rows, columns in patches(30, 44, 8):
        seen[rows, columns] += 1
    assert (seen == 1).all()


def test_faithfulness_correlation(image: np.ndarray) -> None:
    """Where every square's attribution is as large as its drop, it is 1; where it is the other way round, -1."""
    weight = np.ones((3, SIDE, SIDE)) / image
    squares = np.kron(np.arange(16.0).reshape(4, 4), np.ones((8, 8)))
    covered = cover(Linear(weight * squares), image, 0, seed=5)  # type: ignore[arg-type]
    rising = np.broadcast_to(squares, image.shape).astype(np.float32)
    assert faithfulness_correlation(covered, rising) == pytest.approx(1)
    assert faithfulness_correlation(covered, -rising) == pytest.approx(1)
    assert faithfulness_correlation(covered, 15 - rising) == pytest.approx(-1)
    assert faithfulness_correlation(covered, np.ones_like(image)) == 0


def test_pearson(random: np.random.Generator) -> None:
    a, b = random.normal(size=(2, 50))
    assert pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])


def test_of_a_linear_network_full_faithfulness_is_estimated(image: np.ndarray) -> None:
    """Attribution = what a number's blackening takes from the logit."""
    weight = np.random.default_rng(2).normal(size=image.shape)
    predict: Any = Linear(weight)
    attribution = (weight * (image - image.min())).astype(np.float32)
    assert steps.faithfulness_estimate(predict, image, 0, attribution) == pytest.approx(1)
    assert steps.faithfulness_estimate(predict, image, 0, -attribution) == pytest.approx(-1)
    assert predict.asked == 2 * 49


@pytest.mark.usefixtures("quantus")
def test_faithfulness_estimate_is_that_of_quantus(
    image: np.ndarray, attribution: np.ndarray, artifact: Path
) -> None:
    predict = Predictor(artifact)
    theirs = _quantus(
        "FaithfulnessEstimate", predict, image, 3, attribution, 1, features_in_step=SIDE * SIDE // 16
    )
    ours = steps.faithfulness_estimate(predict, image, 3, attribution)
    assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.usefixtures("quantus")
def test_monotonicity_is_that_of_quantus(
    monkeypatch: pytest.MonkeyPatch, image: np.ndarray, attribution: np.ndarray, artifact: Path
) -> None:
    """With the same draws of the same noise."""
    monkeypatch.setattr(steps, "MONOTONICITY_DRAWS", 3)
    predict, settings = Predictor(artifact), {"nr_samples": 3, "features_in_step": SIDE * SIDE // 16}
    for seed in (1, 2):
        theirs = _quantus("MonotonicityCorrelation", predict, image, 3, attribution, seed, **settings)
        ours = steps.monotonicity_correlation(predict, image, 3, attribution, seed)
        assert ours == pytest.approx(theirs, abs=1e-3)
    assert ours != steps.monotonicity_correlation(predict, image, 3, attribution, 1)


def _quantus(
    name: str,
    predict: Predictor,
    image: np.ndarray,
    target: int,
    attribution: np.ndarray,
    seed: int,
    **settings: Any,
) -> float:
    import quantus

    np.random.seed(seed)
    [score] = getattr(quantus, name)(disable_warnings=True, **settings)(
        model=with_quantus._module(predict),
        x_batch=image[None],
        y_batch=np.array([target]),
        a_batch=attribution[None],
        device="cpu",
        channel_first=True,
        softmax=False,
    )
    return float(score)


@pytest.mark.usefixtures("quantus")
def test_max_sensitivity_of_a_constant_and_of_the_picture_itself(
    image: np.ndarray, attribution: np.ndarray, artifact: Path
) -> None:
    predict = Predictor(artifact)
    constant = Method("constant", lambda images, targets: attribution[None])
    assert with_quantus.max_sensitivity(predict, image, 0, attribution, 1, constant) == 0
    assert np.isnan(with_quantus.max_sensitivity(predict, image, 0, np.zeros_like(image), 1, constant))
    itself = Method("itself", lambda images, targets: images)
    score = with_quantus.max_sensitivity(predict, image, 0, image, 1, itself)
    # Uniform noise within 0.02 has a norm of 0.02 sqrt(n / 3).
    assert score == pytest.approx(0.02 * np.sqrt(image.size / 3) / np.linalg.norm(image), rel=0.02)


@pytest.mark.usefixtures("quantus")
def test_random_logit(image: np.ndarray, artifact: Path) -> None:
    predict, method = Predictor(artifact), of_artifact(artifact)
    attribution = method.explain(image[None], np.array([2]))[0]
    score = with_quantus.random_logit(predict, image, 2, attribution, 1, method, 7)
    others = [method.explain(image[None], np.array([other]))[0] for other in range(7) if other != 2]
    assert min(
        abs(score - pearson(attribution.ravel().astype(float), other.ravel().astype(float)))
        for other in others
    ) == pytest.approx(0, abs=1e-5)


@pytest.mark.usefixtures("quantus")
def test_of_an_explanation_that_is_blank_nothing_is_said(image: np.ndarray, artifact: Path) -> None:
    """Guided Grad-CAM's is where the map is negative everywhere; one of another class is enough."""
    predict, blank = Predictor(artifact), Method("blank", lambda images, targets: np.zeros_like(images))
    assert np.isnan(with_quantus.random_logit(predict, image, 2, image, 1, blank, 7))
    assert with_quantus.max_sensitivity(predict, image, 2, image, 1, Method("itself", lambda x, _: x)) > 0


@pytest.mark.usefixtures("quantus")
def test_quantus_leaves_the_global_generator_as_it_was(image: np.ndarray, artifact: Path) -> None:
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    predict, itself = Predictor(artifact), Method("itself", lambda images, targets: images)
    with_quantus.max_sensitivity(predict, image, 0, image, 1, itself)
    assert np.random.random() == expected


@pytest.mark.usefixtures("quantus")
def test_quantus_draws_the_same_beside_other_threads(image: np.ndarray, artifact: Path) -> None:
    predict, started = Predictor(artifact), threading.Barrier(4)

    def slow(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        time.sleep(0.001)
        return images

    def score(seed: int) -> float:
        started.wait()
        return with_quantus.max_sensitivity(predict, image, 0, image, seed, Method("itself", slow))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(score, range(4)))
    started = threading.Barrier(1)
    assert found == [score(seed) for seed in range(4)]
    assert len(set(found)) == 4


def test_a_logit_of_two_classes_is_measured_by_its_sigmoid(tmp_path: Path, image: np.ndarray) -> None:
    """Each class has the other's curve, mirrored; and scores that the network itself gives."""
    network = small(lambda self, x: self.head(x.mean((2, 3))), head=nn.Linear(3, 1))
    path = tmp_path / "pair.onnx"
    sptrace.compile(network, deterministic.images(2, 1, SIDE), labels=["no", "yes"], link="sigmoid").save(
        path
    )
    predict = Predictor(path)
    assert (predict.link, predict.classes) == ("sigmoid", 2)
    with torch.no_grad():
        logit = float(network(torch.from_numpy(image[None])))
    assert predict(image[None]) == pytest.approx(np.array([[-logit, logit]]), rel=1e-5)
    flat = np.ones_like(image)
    no, yes = (insertion_deletion(predict, image, flat, target, predict.link) for target in (0, 1))
    assert np.add(no, yes) == pytest.approx(1, rel=1e-5)
    whole = 1 / (1 + np.exp(-logit))
    _, black = insertion_deletion(predict, np.zeros_like(image), flat, 1, "sigmoid")
    with torch.no_grad():
        assert black == pytest.approx(float(network(torch.zeros(1, 3, SIDE, SIDE)).sigmoid()), rel=1e-4)
    assert min(whole, black) - 1e-6 <= yes[1] <= max(whole, black) + 1e-6


def test_insertion_and_deletion_by_hand(artifact: Path, image: np.ndarray, attribution: np.ndarray) -> None:
    predict = Predictor(artifact)
    order = np.argsort(-attribution.sum(axis=0, dtype=np.float64), axis=None, kind="stable")
    curves: tuple[list[float], list[float]] = ([], [])
    for step in range(STEPS + 1):
        best = order[: step * order.size // STEPS]
        rows, columns = np.unravel_index(best, (SIDE, SIDE))
        inserted, deleted = blurred(image), image.copy()
        inserted[:, rows, columns] = image[:, rows, columns]
        deleted[:, rows, columns] = 0
        for curve, picture in zip(curves, (inserted, deleted), strict=True):
            logits = torch.from_numpy(predict(picture[None]))
            curve.append(float(torch.softmax(logits, 1)[0, 4]))
    expected = [np.trapezoid(curve, dx=1 / STEPS) for curve in curves]
    assert insertion_deletion(predict, image, attribution, 4) == pytest.approx(expected, rel=1e-4)


def test_blurring_leaves_the_mean(image: np.ndarray) -> None:
    soft = blurred(image)
    assert soft.shape == image.shape
    assert soft.std() < image.std() / 2
    assert abs(soft.mean() - image.mean()) < 0.02


def test_mosaics_show_their_class_on_two_tiles(random: np.random.Generator) -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    tiles = np.broadcast_to(labels[:, None, None, None], (6, 3, 8, 8)).astype(np.float32)
    drawn = mosaics(tiles, labels, 30, seed=3)
    assert {mosaic.target for mosaic in drawn} == {0, 1}  # class 2 has one picture
    assert len({mosaic.right.tobytes() for mosaic in drawn}) > 3
    for mosaic in drawn:
        assert mosaic.right.sum() == 2
        by_tile = mosaic.image.reshape(3, 2, 8, 2, 8).mean(axis=(0, 2, 4))
        assert np.array_equal(by_tile == mosaic.target, mosaic.right)
    again = mosaics(tiles, labels, 30, seed=3)
    assert all(np.array_equal(one.image, other.image) for one, other in zip(drawn, again, strict=True))


def test_mosaics_need_pairs() -> None:
    tiles = np.zeros((3, 3, 8, 8), np.float32)
    for labels in ([0, 1, 2], [0, 0, 0]):
        with pytest.raises(SptraceError, match="give more pictures"):
            mosaics(tiles, np.array(labels), 1, seed=0)


def test_focus_by_hand() -> None:
    image = np.ones((3, 4, 4), np.float32)
    mosaic = Mosaic(image, 0, np.array([[True, False], [False, True]]))
    attribution = np.zeros_like(image)
    attribution[0, 0, 0], attribution[1, 3, 3], attribution[2, 0, 3], attribution[0, 1, 0] = 2, 1, 1, -50
    assert focus(mosaic, attribution) == pytest.approx(3 / 4)
    assert np.isnan(focus(mosaic, -np.ones_like(image)))


def test_an_explanation_that_does_not_look_has_focus_one_half(random: np.random.Generator) -> None:
    tiles = random.uniform(-1, 1, (8, 3, 16, 16)).astype(np.float32)
    drawn = mosaics(tiles, np.array([0, 0, 0, 0, 1, 1, 1, 1]), 50, seed=3)
    blind = [focus(mosaic, random.normal(size=mosaic.image.shape).astype(np.float32)) for mosaic in drawn]
    assert np.mean(blind) == pytest.approx(0.5, abs=0.02)


def test_artifacts_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    for name, options in (("photographs", {"input": "uint8"}), ("direction", {"direction": True})):
        path = tmp_path / f"{name}.onnx"
        sptrace.compile(classifier(), deterministic.images(2, 1, SIDE), **options).save(path)  # type: ignore[arg-type]
        with pytest.raises(SptraceError, match="does not explain classes of prepared images"):
            of_artifact(path)
    path = tmp_path / "range.onnx"
    example = (deterministic.images(2, 1, SIDE) + 1) / 2
    sptrace.compile(nn.Sequential(classifier()).eval(), example, input_range=(0, 1)).save(path)
    with pytest.raises(SptraceError, match=r"\[-1, 1\]"):
        of_artifact(path)
