"""Evaluating explanations: one row per picture, method and metric."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sptrace.errors import SptraceError
from sptrace.evaluation import METRICS, rows, with_quantus
from sptrace.evaluation.curves import insertion_deletion
from sptrace.evaluation.data import Pictures
from sptrace.evaluation.methods import Method
from sptrace.evaluation.mosaics import Mosaic, focus, mosaics
from sptrace.evaluation.perturbations import Covered, cover, faithfulness_correlation, infidelity
from sptrace.evaluation.predictor import Predictor
from sptrace.evaluation.rows import Row

SENSITIVITY_PICTURES = 50
"""Max sensitivity explains every picture ten times more; it is measured on so many pictures."""
MOSAICS = 100
"""How many mosaics focus is measured on."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many explanations were scored, and of how many."""


class Subject:
    """One picture, and what all methods share about it.

    Arguments:
        predict: gives logits.
        name, image: of the picture, float32 [3, H, W] in [-1, 1].
        seed: of the evaluation; together with the name it decides all noise.
    """

    def __init__(self, predict: Predictor, name: str, image: NDArray[np.float32], seed: int) -> None:
        self.predict = predict
        self.name = name
        self.image = image
        self.seed = (zlib.crc32(name.encode()) + seed) % 2**32

    @cached_property
    def logits(self) -> NDArray[np.float32]:
        """Float32 [classes]."""
        return np.asarray(self.predict(self.image[None])[0])

    @property
    def target(self) -> int:
        """The predicted class."""
        return int(self.logits.argmax())

    @cached_property
    def covered(self) -> Covered:
        """What the network says where patches are covered up."""
        return cover(self.predict, self.image, self.target, self.seed)

    def scores(self, method: Method, wanted: Sequence[str]) -> Iterator[Row]:
        """The rows of one method for the metrics wanted."""
        image, target, seed = self.image, self.target, self.seed
        attribution = method.explain(image[None], np.array([target]))[0]
        if not np.isfinite(attribution).all():
            raise SptraceError(f"{method.name} of {self.name} holds NaN or infinite values")
        asked = (self.predict, image, target, attribution, seed)
        metrics: dict[str, Callable[[], float]] = {
            "infidelity": lambda: infidelity(self.covered, attribution),
            "faithfulness_correlation": lambda: faithfulness_correlation(self.covered, attribution),
            "faithfulness_estimate": lambda: with_quantus.faithfulness_estimate(*asked),
            "monotonicity_correlation": lambda: with_quantus.monotonicity_correlation(*asked),
            "max_sensitivity": lambda: with_quantus.max_sensitivity(*asked, method),
            "random_logit": lambda: with_quantus.random_logit(*asked, method, self.logits.size),
        }
        for metric in wanted:
            if metric in metrics:
                yield Row(self.name, method.name, metric, metrics[metric]())
        curves = [metric for metric in ("insertion", "deletion") if metric in wanted]
        if curves:
            areas = dict(
                zip(
                    ("insertion", "deletion"),
                    insertion_deletion(self.predict, image, attribution, target),
                    strict=True,
                )
            )
            for metric in curves:
                yield Row(self.name, method.name, metric, areas[metric])


def evaluate(
    predict: Predictor,
    methods: Sequence[Method],
    pictures: Pictures,
    output: Path,
    *,
    metrics: Sequence[str] = tuple(METRICS),
    seed: int = 0,
    progress: Progress = lambda doing, done, total: None,
) -> list[Row]:
    """Score every method on every picture; what stands in the file already is not done again.

    The class explained is the predicted one, in mosaics that of the two tiles.

    Arguments:
        predict: gives logits.
        methods: what is compared.
        pictures: what is explained.
        output: the .csv file that rows are appended to.
        metrics: names of `METRICS`.
        seed: of all noise.
        progress: called before every explanation that is scored.

    Returns:
        All rows of these methods, metrics and pictures.
    """
    done = {(row.picture, row.method, row.metric): row for row in rows.read(output)}
    plan = list(_plan(methods, pictures, metrics))
    missing = [
        (name, method, [metric for metric in wanted if (name, method.name, metric) not in done])
        for name, method, wanted in plan
    ]
    waiting = [item for item in missing if item[2]]
    subject: Subject | None = None
    images = dict(zip(pictures.names, pictures.images, strict=True))
    drawn = _mosaics(pictures, predict, seed) if any(name not in images for name, *_ in waiting) else {}
    for count, (name, method, wanted) in enumerate(waiting):
        progress(f"{method.name}, {name}", len(plan) - len(waiting) + count, len(plan))
        if name in drawn:
            mosaic = drawn[name]
            attribution = method.explain(mosaic.image[None], np.array([mosaic.target]))[0]
            found = [Row(name, method.name, "focus", focus(mosaic, attribution))]
        else:
            if subject is None or subject.name != name:
                subject = Subject(predict, name, images[name], seed)
            found = list(subject.scores(method, wanted))
        rows.append(output, found)
        done |= {(row.picture, row.method, row.metric): row for row in found}
    progress("done", len(plan), len(plan))
    return [done[name, method.name, metric] for name, method, wanted in plan for metric in wanted]


def _plan(
    methods: Sequence[Method], pictures: Pictures, metrics: Sequence[str]
) -> Iterator[tuple[str, Method, list[str]]]:
    """Picture, method and metrics, all methods of a picture together."""
    of_pictures = [metric for metric in metrics if metric != "focus"]
    for position, name in enumerate(pictures.names):
        wanted = [
            metric for metric in of_pictures if metric != "max_sensitivity" or position < SENSITIVITY_PICTURES
        ]
        if wanted:
            yield from ((name, method, wanted) for method in methods)
    if "focus" in metrics:
        for number in range(MOSAICS):
            yield from ((f"mosaic-{number:03}", method, ["focus"]) for method in methods)


def _mosaics(pictures: Pictures, predict: Predictor, seed: int) -> dict[str, Mosaic]:
    labels = pictures.labels if pictures.labels is not None else predict(pictures.images).argmax(axis=1)
    return {
        f"mosaic-{number:03}": mosaic
        for number, mosaic in enumerate(mosaics(pictures.tiles, labels, MOSAICS, seed))
    }
