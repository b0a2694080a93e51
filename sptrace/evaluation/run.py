"""Evaluating explanations: one row per picture, method and metric."""

from __future__ import annotations

import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sptrace.errors import SptraceError
from sptrace.evaluation import METRICS, rows, steps, with_quantus
from sptrace.evaluation.curves import insertion_deletion
from sptrace.evaluation.data import Pictures
from sptrace.evaluation.methods import Method
from sptrace.evaluation.mosaics import Mosaic, focus, mosaics
from sptrace.evaluation.perturbations import Covered, cover, faithfulness_correlation, infidelity, pearson
from sptrace.evaluation.predictor import Predictor
from sptrace.evaluation.rows import Row

FEWER = {"monotonicity_correlation": 50, "random_logit": 50, "other_picture": 20, "max_sensitivity": 20}
"""What takes long is measured on so many pictures, the first: max sensitivity explains each ten times more."""
MOSAICS = 100
"""How many mosaics focus is measured on."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many explanations were scored, and of how many."""


class Subject:
    """One picture, and what all methods share about it.

    Arguments:
        predict: gives logits.
        name, image: of the picture, float32 [3, H, W] in [-1, 1].
        other: another picture, of the same shape.
        seed: of the evaluation; together with the name it decides all noise.
    """

    def __init__(
        self, predict: Predictor, name: str, image: NDArray[np.float32], other: NDArray[np.float32], seed: int
    ) -> None:
        self.predict = predict
        self.name = name
        self.image = image
        self.other = other
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
        asked = (self.predict, image, target, attribution)
        metrics: dict[str, Callable[[], float]] = {
            "infidelity": lambda: infidelity(self.covered, attribution),
            "faithfulness_correlation": lambda: faithfulness_correlation(self.covered, attribution),
            "faithfulness_estimate": lambda: steps.faithfulness_estimate(*asked),
            "monotonicity_correlation": lambda: steps.monotonicity_correlation(*asked, seed),
            "max_sensitivity": lambda: with_quantus.max_sensitivity(*asked, seed, method),
            "random_logit": lambda: with_quantus.random_logit(*asked, seed, method, self.logits.size),
            "other_picture": lambda: self._other_picture(method, attribution),
        }
        for metric in wanted:
            if metric in metrics:
                yield Row(self.name, method.name, metric, metrics[metric]())
        curves = [metric for metric in ("insertion", "deletion") if metric in wanted]
        if curves:
            areas = dict(
                zip(
                    ("insertion", "deletion"),
                    insertion_deletion(self.predict, image, attribution, target, self.predict.link),
                    strict=True,
                )
            )
            for metric in curves:
                yield Row(self.name, method.name, metric, areas[metric])

    def _other_picture(self, method: Method, attribution: NDArray[np.float32]) -> float:
        """Pearson's correlation with the attribution of another picture for the same class.

        Near 0 where an explanation depends on the picture; nan if one is 0 everywhere, or there is no other picture.
        """
        if np.array_equal(self.other, self.image):
            return float("nan")
        theirs = method.explain(self.other[None], np.array([self.target]))[0]
        if not (attribution.any() and theirs.any()):
            return float("nan")
        return pearson(attribution.ravel().astype(np.float64), theirs.ravel().astype(np.float64))


@dataclass(frozen=True)
class Tiles:
    """A mosaic, as `Subject` is a picture.

    Arguments:
        name: of the mosaic.
        mosaic: what is explained.
    """

    name: str
    mosaic: Mosaic

    def scores(self, method: Method, wanted: Sequence[str]) -> Iterator[Row]:
        """The row of one method's focus."""
        attribution = method.explain(self.mosaic.image[None], np.array([self.mosaic.target]))[0]
        yield Row(self.name, method.name, "focus", focus(self.mosaic, attribution))


Work = list[tuple[Method, list[str]]]
"""Methods of one picture or mosaic, and their metrics."""


def evaluate(
    predict: Predictor,
    methods: Sequence[Method],
    pictures: Pictures,
    output: Path,
    *,
    metrics: Sequence[str] = tuple(METRICS),
    seed: int = 0,
    workers: int = 1,
    progress: Progress = lambda doing, done, total: None,
) -> list[Row]:
    """Score every method on every picture; what stands in the file already is not done again.

    The class explained is the predicted one, in mosaics that of the two tiles.

    Arguments:
        predict: gives logits.
        methods: what is compared.
        pictures: what is explained.
        output: the .csv file that rows are appended to, picture by picture.
        metrics: names of `METRICS`.
        seed: of all noise.
        workers: pictures at a time. Scores do not depend on it.
        progress: called before every explanation that is scored, by several threads where there are several workers.

    Returns:
        All rows of these methods, metrics and pictures.
    """
    done = {(row.picture, row.method, row.metric): row for row in rows.read(output)}
    plan = _plan(methods, pictures, metrics)
    waiting: dict[str, Work] = {}
    for name, work in plan.items():
        missing = [
            (method, [one for one in wanted if (name, method.name, one) not in done])
            for method, wanted in work
        ]
        waiting[name] = [(method, wanted) for method, wanted in missing if wanted]
    total = sum(map(len, plan.values()))
    count, counting = total - sum(map(len, waiting.values())), threading.Lock()
    images = dict(zip(pictures.names, pictures.images, strict=True))
    others = dict(zip(pictures.names, np.roll(pictures.images, -1, axis=0), strict=True))
    drawn = (
        _mosaics(pictures, predict, seed)
        if any(waiting[name] for name in waiting if name not in images)
        else {}
    )

    def score(name: str) -> list[Row]:
        nonlocal count
        subject: Tiles | Subject
        if name in drawn:
            subject = Tiles(name, drawn[name])
        else:
            subject = Subject(predict, name, images[name], others[name], seed)
        found: list[Row] = []
        for method, wanted in waiting[name]:
            with counting:
                progress(f"{method.name}, {name}", count, total)
                count += 1
            found += subject.scores(method, wanted)
        return found

    # What libraries warn of is no concern of the user's, and the filters are no thread's own.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")
        try:
            for found in pool.map(score, [name for name in waiting if waiting[name]]):
                rows.append(output, found)
                done |= {(row.picture, row.method, row.metric): row for row in found}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    progress("done", total, total)
    return [
        done[name, method.name, one]
        for name, work in plan.items()
        for method, wanted in work
        for one in wanted
    ]


def _plan(methods: Sequence[Method], pictures: Pictures, metrics: Sequence[str]) -> dict[str, Work]:
    """What is wanted of every picture and mosaic."""
    of_pictures = [metric for metric in metrics if metric != "focus"]
    plan = {}
    for position, name in enumerate(pictures.names):
        wanted = [metric for metric in of_pictures if position < FEWER.get(metric, len(pictures.names))]
        plan[name] = [(method, wanted) for method in methods if wanted]
    if "focus" in metrics:
        plan |= {
            _mosaic_name(number): [(method, ["focus"]) for method in methods] for number in range(MOSAICS)
        }
    return plan


def _mosaics(pictures: Pictures, predict: Predictor, seed: int) -> dict[str, Mosaic]:
    labels = pictures.labels if pictures.labels is not None else predict(pictures.images).argmax(axis=1)
    drawn = mosaics(pictures.tiles, labels, MOSAICS, seed)
    return {_mosaic_name(number): mosaic for number, mosaic in enumerate(drawn)}


def _mosaic_name(number: int) -> str:
    return f"mosaic-{number:03}"
