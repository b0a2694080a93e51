"""`sptrace evaluate` from networks and artifacts to a report."""

from __future__ import annotations

import csv
import threading
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import deterministic
from helpers.small_networks import classifier
from PIL import Image
from torch import nn

import sptrace
from sptrace.artifact.description import Preprocessing
from sptrace.cli import main
from sptrace.compiler.network import Network
from sptrace.errors import SptraceError
from sptrace.evaluation import METRICS, RANDOMISATION, available, data, report, rows, run
from sptrace.evaluation.methods import Method, of_artifact, of_captum
from sptrace.evaluation.predictor import Predictor
from sptrace.evaluation.randomisation import randomisation
from sptrace.evaluation.report import difference
from sptrace.evaluation.rows import Row
from sptrace.evaluation.statistics import estimate

SIDE = 32
QUICK = "infidelity,faithfulness_correlation,insertion,deletion"


@pytest.fixture
def sptrace_(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        output, errors = capsys.readouterr()
        return int(exit_.value.code or 0), output, errors

    return call


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "small.pt2"
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(
        torch.export.export(classifier(), (deterministic.images(1, 2, SIDE),), dynamic_shapes=(batch,)), path
    )
    return path


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "soft.onnx"
    sptrace.compile(
        classifier(), deterministic.images(2, 1, SIDE), labels=[f"name {i}" for i in range(7)]
    ).save(path)
    return path


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from skimage import data as photographs

    folder = tmp_path_factory.mktemp("photographs")
    Image.fromarray(photographs.coffee()).save(folder / "coffee.png")
    Image.fromarray(photographs.rocket()).save(folder / "rocket.png")
    (folder / "labels.csv").write_text("file,label\nrocket.png,2\ncoffee.png,1\n")
    return folder


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arrays") / "eight.npz"
    random = np.random.default_rng(3)
    np.savez(path, x=random.integers(0, 256, (8, SIDE, SIDE, 3), np.uint8), y=np.arange(8) % 3)
    return path


def network() -> Network:
    preprocessing = Preprocessing((SIDE, SIDE), None, "bilinear", (-1, 1), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    return Network(classifier(), "small", preprocessing, None, "random")


@pytest.mark.usefixtures("quantus")
@pytest.mark.slow
def test_a_network_is_evaluated(
    sptrace_: Any, exported: Path, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "MOSAICS", 4)
    monkeypatch.setattr(run, "FEWER", {"max_sensitivity": 2})
    folder = tmp_path / "report"
    arguments = ("evaluate", exported, "--images", arrays, "-o", folder, "-n", 6, "--threads", 1)
    methods = ("--methods", "gradient,soft_pullback,soft_pullback@paper,captum:saliency")
    status, output, errors = sptrace_(*arguments, *methods)
    assert status == 0, errors
    found = rows.read(folder / "rows.csv")
    names = ("gradient", "soft_pullback", "soft_pullback@paper", "captum:saliency")
    metrics = list(METRICS)
    assert {row.method for row in found} == set(names)
    assert {row.metric for row in found} == set(metrics)
    for name in names:
        counts = {
            metric: sum((row.metric, row.method) == (metric, name) for row in found) for metric in metrics
        }
        assert counts == {**dict.fromkeys(metrics, 6), "focus": 4, "max_sensitivity": 2}
    scores = {(row.picture, row.method, row.metric): row.score for row in found}
    for (picture, method, metric), score in scores.items():
        if method == "captum:saliency" and metric in ("infidelity", "insertion", "focus"):
            assert score == pytest.approx(scores[picture, "gradient", metric], rel=1e-3)
    ours, papers = (
        [score for key, score in scores.items() if key[1:] == (method, "infidelity")]
        for method in ("soft_pullback", "soft_pullback@paper")
    )
    assert ours != pytest.approx(papers, rel=1e-3)
    for name in ("report.md", "report.html", "summary.csv", "metrics.png", "randomisation.png", "grid.png"):
        assert (folder / name).stat().st_size > 0
    with open(folder / "summary.csv", newline="") as file:
        summary = {(row["metric"], row["method"]): row for row in csv.DictReader(file)}
    wanted = [
        score for (_, method, metric), score in scores.items() if (method, metric) == ("gradient", "focus")
    ]
    assert float(summary["focus", "gradient"]["mean"]) == pytest.approx(np.mean(wanted), rel=1e-4)
    assert float(summary["focus", "gradient"]["difference"]) == 0
    assert "| infidelity" in output
    assert {row.method for row in rows.read(folder / "randomisation.csv")} == set(names) - {"captum:saliency"}

    # Nothing is computed twice, and the same is computed again elsewhere.
    before = (folder / "rows.csv").read_bytes()
    monkeypatch.setattr("sptrace.evaluation.run.Subject", None)
    assert sptrace_(*arguments, *methods)[0] == 0
    assert (folder / "rows.csv").read_bytes() == before
    monkeypatch.undo()
    monkeypatch.setattr(run, "MOSAICS", 4)
    monkeypatch.setattr(run, "FEWER", {"max_sensitivity": 2})
    other = tmp_path / "again"
    assert sptrace_(*arguments[:5], other, *arguments[6:8], "--threads", 3, *methods)[0] == 0
    assert (other / "rows.csv").read_bytes() == before
    status, _, errors = sptrace_(*arguments, *methods, "--seed", 1)
    assert status == 2
    assert "holds an evaluation of something else" in errors


def test_artifacts_are_evaluated(sptrace_: Any, artifact: Path, photographs: Path, tmp_path: Path) -> None:
    second = tmp_path / "other.onnx"
    second.write_bytes(artifact.read_bytes())
    status, output, errors = sptrace_(
        *("evaluate", artifact, second, "--images", photographs, "--labels", photographs / "labels.csv"),
        *("-o", tmp_path / "report", "--metrics", QUICK),
    )
    assert status == 0, errors
    found = rows.read(tmp_path / "report" / "rows.csv")
    assert found[0].picture == "rocket.png"  # the order of the labels
    scores: dict[str, list[float]] = {}
    for row in found:
        scores.setdefault(row.method, []).append(row.score)
    assert scores["soft"] == scores["other"]
    assert "name" in (tmp_path / "report" / "report.md").read_text() or output
    assert " 0/" in errors, "no line of progress, and nobody looks at a terminal"


def test_what_was_cut_off_is_done_again(artifact: Path, arrays: Path, tmp_path: Path) -> None:
    pictures = data.read(arrays, None, Preprocessing((SIDE, SIDE)), 3)
    method, predict, path = of_artifact(artifact), Predictor(artifact), tmp_path / "rows.csv"
    seen: list[tuple[str, int, int]] = []
    whole = run.evaluate(predict, [method], pictures, path, metrics=["infidelity"])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:-5])
    again = run.evaluate(
        predict, [method], pictures, path, metrics=["infidelity"], progress=lambda *one: seen.append(one)
    )
    assert again == whole
    assert path.read_text() == "".join(lines)
    assert [(done, total) for _, done, total in seen] == [(1, 3), (2, 3), (3, 3)]


def test_workers_write_the_same_in_the_same_order(artifact: Path, arrays: Path, tmp_path: Path) -> None:
    """Even where the first picture takes longest."""
    pictures = data.read(arrays, None, Preprocessing((SIDE, SIDE)), 6)
    explainer = of_artifact(artifact)
    others_done = threading.Event()

    def explain(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        first = bool((images == pictures.images[:1]).all())
        assert not first or others_done.wait(60)
        if (images == pictures.images[5:]).all():
            others_done.set()
        return explainer.explain(images, targets)

    late, predict, written = Method("late", explain), Predictor(artifact), []
    for workers in (1, 3):
        if workers == 1:
            others_done.set()
        else:
            others_done.clear()
        path = tmp_path / f"{workers}.csv"
        run.evaluate(predict, [late], pictures, path, metrics=["insertion", "infidelity"], workers=workers)
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_a_worker_that_fails_ends_the_evaluation(artifact: Path, arrays: Path, tmp_path: Path) -> None:
    pictures = data.read(arrays, None, Preprocessing((SIDE, SIDE)), 8)

    def explain(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        raise SptraceError("no more")

    with pytest.raises(SptraceError, match="no more"):
        run.evaluate(
            *(Predictor(artifact), [Method("broken", explain)], pictures, tmp_path / "rows.csv"),
            metrics=["infidelity"],
            workers=2,
        )
    assert not (tmp_path / "rows.csv").exists()


def test_explanations_that_do_not_depend_on_the_picture(artifact: Path, arrays: Path, tmp_path: Path) -> None:
    pictures = data.read(arrays, None, Preprocessing((SIDE, SIDE)), 3)
    pattern = np.random.default_rng(1).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)
    blind = Method("blind", lambda images, targets: np.repeat(pattern, len(images), axis=0))
    copy = Method("copy", lambda images, targets: images)
    blank = Method("blank", lambda images, targets: np.zeros_like(images))
    found = run.evaluate(
        *(Predictor(artifact), [blind, copy, blank], pictures, tmp_path / "rows.csv"),
        metrics=["other_picture"],
    )
    scores = {(row.picture, row.method): row.score for row in found}
    for name, image, other in zip(
        pictures.names, pictures.images, np.roll(pictures.images, -1, 0), strict=True
    ):
        assert scores[name, "blind"] == pytest.approx(1)
        wanted = np.corrcoef(image.ravel(), other.ravel())[0, 1]
        assert scores[name, "copy"] == pytest.approx(wanted, abs=1e-6)
        assert np.isnan(scores[name, "blank"])


def test_an_attribution_that_is_not_finite_is_refused(artifact: Path, arrays: Path, tmp_path: Path) -> None:
    pictures = data.read(arrays, None, Preprocessing((SIDE, SIDE)), 1)
    broken = Method("broken", lambda images, targets: np.full_like(images, np.nan))
    with pytest.raises(SptraceError, match=r"broken of eight-000\d holds NaN"):
        run.evaluate(Predictor(artifact), [broken], pictures, tmp_path / "rows.csv", metrics=["infidelity"])


def test_averages_are_not_cheap(tmp_path: Path) -> None:
    for program, options, passes in (
        ("gradient", {}, 1),
        ("pullback_ascent", {"steps": 4}, 4),
        ("smoothgrad", {"samples": 7}, 7),
        ("fusiongrad", {"samples": 3, "draws": 4}, 12),
    ):
        path = tmp_path / f"{program}.onnx"
        sptrace.compile(classifier(), deterministic.images(2, 1, SIDE), program=program, **options).save(path)
        assert of_artifact(path).passes == passes


def test_intervals() -> None:
    random = np.random.default_rng(1)
    one = estimate(random.normal(3, 2, 400))
    assert one.low < one.mean < one.high
    assert one.high - one.low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)
    assert one == estimate(np.random.default_rng(1).normal(3, 2, 400))
    assert estimate(np.array([1.0, np.nan, 3.0])).mean == 2
    assert estimate(np.array([])).count == 0


def test_differences_are_taken_picture_by_picture() -> None:
    scores = {
        ("infidelity", "gradient"): {"a": 10.0, "b": 100.0, "c": 1.0},
        ("infidelity", "soft_pullback"): {"b": 99.0, "a": 9.0},
    }
    found = difference(scores, "infidelity", "soft_pullback")
    assert (found.mean, found.low, found.high, found.count) == (-1, -1, -1, 2)


@pytest.mark.parametrize(
    ("bounds", "scale"),
    [
        ([2.0, 85.0], "log"),
        ([2.0, 3.0], "linear"),
        ([0.0, 85.0], "linear"),
        ([-0.1, 0.4], "linear"),
        ([], "linear"),
    ],
)
def test_plots_of_numbers_of_several_sizes_are_logarithmic(bounds: list[float], scale: str) -> None:
    axis = pytest.importorskip("matplotlib.figure").Figure().subplots()
    axis.plot(bounds, bounds)
    report._scale(axis, bounds)
    assert axis.get_xscale() == scale


@pytest.mark.slow
def test_randomised_weights_are_noticed() -> None:
    """By programs, and not by what does not look at the network; the network itself stays as it is."""
    trained = network()
    before = {name: value.clone() for name, value in trained.module.state_dict().items()}
    images = np.random.default_rng(1).uniform(-1, 1, (3, 3, SIDE, SIDE)).astype(np.float32)
    found = list(randomisation(trained, ["gradient", "soft_pullback@paper"], images, ("a", "b", "c"), seed=0))
    for name, kind in product(("gradient", "soft_pullback@paper"), RANDOMISATION):
        curve: dict[str, list[float]] = {}
        for row in found:
            if row.method == name and row.metric.startswith(f"{kind}:"):
                curve.setdefault(row.metric, []).append(row.score)
        means = [np.mean(scores) for scores in curve.values()]
        assert next(iter(curve)) == f"{kind}:00 trained"
        assert means[0] == pytest.approx(1)
        assert means[-1] < (0.3 if kind == "randomisation" else 0.5)
        assert len(means) == 5  # as many stages as layers
    after = trained.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["saliency", "input_x_gradient", "integrated_gradients", "guided_gradcam"])
def test_captum_answers(name: str) -> None:
    images = deterministic.images(2, 2, SIDE).numpy()
    attribution = of_captum(network(), name).explain(images, np.array([1, 2]))
    assert attribution.shape == images.shape
    assert attribution.dtype == np.float32
    assert np.isfinite(attribution).all()


def test_pictures_of_an_array(arrays: Path) -> None:
    pictures = data.read(arrays, None, Preprocessing((SIDE, SIDE)), 5)
    places = [int(name.removeprefix("eight-")) for name in pictures.names]
    assert len(set(places)) == 5
    assert places != sorted(places)
    with np.load(arrays) as file:
        assert np.allclose((pictures.images.transpose(0, 2, 3, 1) + 1) * 127.5, file["x"][places], atol=1e-4)
    assert pictures.labels is not None
    assert pictures.labels.tolist() == [place % 3 for place in places]
    assert data.read(arrays, None, Preprocessing((SIDE, SIDE)), 3).names == pictures.names[:3]
    assert pictures.tiles.shape == (5, 3, SIDE // 2, SIDE // 2)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("{artifact}", "--metrics", "beauty"), "there is no metric 'beauty'"),
        (("{artifact}", "--metrics", ","), "--metrics names none"),
        (("{artifact}", "--methods", "gradient"), "name one beside the artifacts"),
        (("{artifact}", "--images", "{folder}/nowhere"), "there is no folder"),
        (("{artifact}", "--labels", "{folder}/coffee.png"), "is no list of labels"),
        (("{artifact}", "--metrics", "focus"), "focus cannot be measured: mosaics need two classes"),
        (("{artifact}", "--metrics", "randomisation"), "randomisation needs a network"),
        (("{exported}", "timm:resnet18"), "evaluate one network at a time"),
        (
            ("{exported}", "--metrics", QUICK, "--methods", "captum:beauty"),
            "there is no method captum:beauty",
        ),
        (("{exported}", "--metrics", QUICK, "--methods", "beauty"), "beauty"),
        (
            ("{exported}", "--metrics", QUICK, "--methods", "soft_pullback@beauty"),
            "no softening preset 'beauty'",
        ),
        (("{exported}", "--metrics", QUICK, "--methods", "captum:saliency"), "name one program of sptrace"),
        (("{artifact}", "{artifact}", "--metrics", QUICK), "two methods are called soft"),
        (("nothing.onnx", "--metrics", QUICK), "nothing.onnx"),
    ],
)
def test_mistakes_are_one_line(
    sptrace_: Any,
    artifact: Path,
    exported: Path,
    photographs: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    complaint: str,
) -> None:
    places = {"artifact": artifact, "exported": exported, "folder": photographs}
    given = [argument.format(**places) for argument in arguments]
    if "--images" not in given:
        given += ["--images", str(photographs)]
    if "--labels" not in given:
        given += ["--labels", str(photographs / "labels.csv")]
    status, _, errors = sptrace_("evaluate", *given, "-o", tmp_path / "report")
    assert status == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert complaint in errors
    assert not (tmp_path / "report" / "rows.csv").exists()


@pytest.mark.parametrize("package", ["quantus", "matplotlib"])
def test_what_cannot_be_had_is_left_out_with_a_note(
    sptrace_: Any,
    artifact: Path,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
) -> None:
    monkeypatch.setattr(available, "_missing", lambda name: f"no {name}" if name == package else None)
    monkeypatch.setattr("sptrace.cli.evaluate.METRICS", ("deletion", "random_logit", "focus"))
    monkeypatch.setattr("sptrace.evaluation.with_quantus.random_logit", lambda *given: 0.5)
    folder = tmp_path / "report"
    status, _, errors = sptrace_("evaluate", artifact, "--images", photographs, "-o", folder)
    assert status == 0, errors
    notes = [line for line in errors.splitlines() if line.startswith("note: ")]
    left_out = {
        "quantus": "random_logit is left out: no quantus.",
        "matplotlib": "plots are left out: no matplotlib.",
    }
    assert len(notes) == 2
    assert any(
        "focus is left out: its mosaics need the pictures' classes, give --labels." in note for note in notes
    )
    assert any(left_out[package] in note for note in notes)
    assert left_out[package] in (folder / "report.md").read_text()
    assert (folder / "metrics.png").exists() == (package != "matplotlib")


def test_what_was_asked_for_and_cannot_be_had_is_refused_before_the_work(
    sptrace_: Any, artifact: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(available, "_missing", lambda name: f"no {name}")
    for asked, why in (("random_logit", "no quantus"), ("focus", "give --labels")):
        arguments = ("--images", photographs, "-o", tmp_path / "report", "--metrics", asked)
        status, _, errors = sptrace_("evaluate", artifact, *arguments)
        assert status == 2
        assert f"{asked} cannot be measured: " in errors
        assert why in errors
    assert not (tmp_path / "report").exists()


def test_stages_of_a_network_without_layers() -> None:
    images = np.zeros((1, 3, SIDE, SIDE), np.float32)
    plain = Network(Plain(), "plain", Preprocessing((SIDE, SIDE)), None, "none")
    row, _ = randomisation(plain, ["gradient"], images, ("a",), seed=0)
    assert row == Row("a", "gradient", "randomisation:00 trained", row.score)


class Plain(nn.Module):
    """No weights at all."""

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Means of the channels."""
        return image.relu().mean((2, 3))
