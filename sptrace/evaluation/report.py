"""The report: tables, plots and a grid of explanations, as Markdown and HTML."""

from __future__ import annotations

import csv
import html
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sptrace.artifact.files import replacing
from sptrace.evaluation import METRICS, RANDOMISATION, available
from sptrace.evaluation.methods import Method
from sptrace.evaluation.rows import Row
from sptrace.evaluation.run import MOSAICS
from sptrace.evaluation.statistics import Estimate, estimate
from sptrace.evaluation.steps import MONOTONICITY_DRAWS
from sptrace.evaluation.with_quantus import SENSITIVITY_DRAWS
from sptrace.runtime.picture import diverging, magnitude

REFERENCE = "gradient"
"""What the others' differences are taken to."""

Scores = dict[tuple[str, str], dict[str, float]]
"""By metric and method: the score of every picture."""


def write(
    output: Path,
    rows: Sequence[Row],
    methods: Sequence[str],
    title: str,
    notes: Sequence[str],
    grid: Image.Image | None,
) -> None:
    """Write report.md, report.html, summary.csv and the pictures that they show into a folder.

    Arguments:
        output: the folder.
        rows: all scores.
        methods: in the order of the columns.
        title: of the report.
        notes: what was evaluated, and how; one paragraph each.
        grid: pictures and their explanations.

    Without matplotlib there are no plots.
    """
    scores: Scores = defaultdict(dict)
    for row in rows:
        scores[row.metric, row.method][row.picture] = row.score
    metrics = [metric for metric in METRICS if any(metric == named for named, _ in scores)]
    estimates = {key: estimate(np.array(list(found.values()))) for key, found in scores.items()}
    _summary(output / "summary.csv", scores, estimates, metrics, methods)
    pictures = []
    drawn = available.plots() is None
    if metrics and drawn:
        pictures.append(("metrics.png", "Means and their 95 % intervals"))
        _plot_metrics(output / "metrics.png", estimates, metrics, methods)
    if drawn and any(metric.startswith(RANDOMISATION) for metric, _ in scores):
        pictures.append(
            (
                "randomisation.png",
                "Similarity to the trained network's explanation, and of absolute attributions",
            )
        )
        _plot_randomisation(output / "randomisation.png", estimates, methods)
    if grid is not None:
        pictures.append(("grid.png", "Red speaks for the predicted class, blue against it"))
        with replacing(output / "grid.png") as temporary:
            grid.save(temporary)
    tables = [
        ("Means", _means(estimates, metrics, methods)),
        (f"Differences from {REFERENCE}, picture by picture", _differences(scores, metrics, methods)),
    ]
    tables = [(head, table) for head, table in tables if len(table) > 1]
    for name, text in (
        ("report.md", _markdown(title, notes, tables, pictures)),
        ("report.html", _html(title, notes, tables, pictures)),
    ):
        with replacing(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _means(
    estimates: dict[tuple[str, str], Estimate], metrics: Sequence[str], methods: Sequence[str]
) -> list[list[str]]:
    table = [["metric", "n", *methods]]
    for metric in metrics:
        found = [estimates.get((metric, method)) for method in methods]
        count = max(one.count for one in found if one is not None)
        arrow = "↑" if METRICS[metric] > 0 else "↓"
        table.append([f"{metric} {arrow}", str(count), *map(_interval, found)])
    return table


def _differences(scores: Scores, metrics: Sequence[str], methods: Sequence[str]) -> list[list[str]]:
    others = [method for method in methods if method != REFERENCE]
    table = [["metric", *others]]
    for metric in metrics:
        if (metric, REFERENCE) in scores:
            found = [difference(scores, metric, method) for method in others]
            table.append([metric, *map(_interval, found)])
    return table


def difference(scores: Scores, metric: str, method: str) -> Estimate:
    """How far a method's scores are from the reference's, on the same pictures."""
    ours, theirs = scores.get((metric, method), {}), scores.get((metric, REFERENCE), {})
    return estimate(np.array([ours[name] - theirs[name] for name in ours if name in theirs]))


def _interval(one: Estimate | None) -> str:
    if one is None or not one.count:
        return "-"
    return f"{_number(one.mean)} [{_number(one.low)}, {_number(one.high)}]"


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _summary(
    path: Path,
    scores: Scores,
    estimates: dict[tuple[str, str], Estimate],
    metrics: Sequence[str],
    methods: Sequence[str],
) -> None:
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = ("mean", "low", "high", "count", "difference", "difference_low", "difference_high")
        writer.writerow(("metric", "method", *names))
        for metric in metrics:
            for method in methods:
                if (metric, method) in estimates:
                    one, other = estimates[metric, method], difference(scores, metric, method)
                    numbers = (one.mean, one.low, one.high, one.count, other.mean, other.low, other.high)
                    writer.writerow((metric, method, *(f"{number:.6g}" for number in numbers)))


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _plot_metrics(
    path: Path, estimates: dict[tuple[str, str], Estimate], metrics: Sequence[str], methods: Sequence[str]
) -> None:
    pyplot = _pyplot()
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    figure, axes = pyplot.subplots(
        lines,
        columns,
        figsize=(4.2 * columns, (0.9 + 0.32 * len(methods)) * lines),
        squeeze=False,
        sharey=True,
    )
    for axis in axes.flat[len(metrics) :]:
        axis.remove()
    for metric, axis in zip(metrics, axes.flat, strict=False):
        better = "more is better" if METRICS[metric] > 0 else "less is better"
        axis.set_title(f"{metric.replace('_', ' ')} ({better})", fontsize=9)
        found = {
            place: estimates[metric, method]
            for place, method in enumerate(methods)
            if (metric, method) in estimates
        }
        for place, one in found.items():
            axis.plot(
                [one.low, one.high], [place, place], color="#9aa5b1", linewidth=3, solid_capstyle="round"
            )
            axis.plot(one.mean, place, "o", color="#1f4e79", markersize=5)
        _scale(axis, [bound for one in found.values() for bound in (one.low, one.high)])
        axis.set_yticks(range(len(methods)), methods, fontsize=8)
        axis.set_ylim(len(methods) - 0.5, -0.5)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x", color="#e3e7eb")
        axis.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    _save(figure, path)


def _scale(axis: Any, bounds: Sequence[float]) -> None:
    """Logarithmic where the numbers are of several sizes, and no more ticks than there is room for."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    low, high = min(bounds, default=0), max(bounds, default=0)
    if high > 10 * low > 0:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:g}")
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5))


def _plot_randomisation(
    path: Path, estimates: dict[tuple[str, str], Estimate], methods: Sequence[str]
) -> None:
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, len(RANDOMISATION), figsize=(12, 4), sharey=True)
    for axis, kind in zip(axes, RANDOMISATION, strict=True):
        stages = sorted({metric for metric, _ in estimates if metric.startswith(f"{kind}:")})
        names = [stage.rpartition(" ")[2] for stage in stages]
        for method in methods:
            found = [estimates.get((stage, method)) for stage in stages]
            if all(one is not None for one in found):
                axis.plot([one.mean for one in found if one], "o-", label=method, markersize=4)
        axis.axhline(0, color="#9aa5b1", linewidth=1)
        axis.set_title("absolute attributions" if kind != RANDOMISATION[0] else "attributions", fontsize=9)
        axis.set_xticks(range(len(stages)), names, rotation=35, ha="right", fontsize=8)
        axis.set_xlabel("shuffled from the last layer down to", fontsize=9)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel("rank correlation", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
    _pyplot().close(figure)


DEFINITIONS = {
    "infidelity": "Infidelity: mean of (beta <attribution, I> - change of the logit)^2, where I is what noise in "
    "[-1, 1] changes in squares of a half and a quarter of the picture's side, one square added after the other (as "
    "in Quantus), 5 draws. Unlike in Quantus beta is E[ab] / E[a^2], one per size.",
    "faithfulness_correlation": "Faithfulness correlation: Pearson's, between |attribution| in each square of a "
    "quarter of the side and the drop of the logit when it becomes 0; Quantus draws random subsets instead.",
    "faithfulness_estimate": "Faithfulness estimate: as in Quantus, 48 steps (3136 numbers a step at 224 pixels).",
    "monotonicity_correlation": "Monotonicity correlation: as in Quantus, 48 steps, "
    f"{MONOTONICITY_DRAWS} draws a step in place of 100.",
    "max_sensitivity": f"Max sensitivity: Quantus's own, {SENSITIVITY_DRAWS} draws of noise within 0.02.",
    "random_logit": "Random logit: Quantus's own, with Pearson's correlation. An explanation that is 0 everywhere "
    "correlates with nothing and is left out.",
    "other_picture": "Other picture: Pearson's correlation with the next picture's attribution for the same class; "
    "near 0 where an explanation depends on the picture. What is 0 everywhere is left out.",
    "insertion": "Insertion and deletion: area under the class's probability in 32 steps, into a blurred picture and "
    "to mid-grey.",
    "focus": "Focus: the share of the positive input times attribution on the two tiles of the class, in "
    f"{MOSAICS} mosaics of four pictures, each at half its size.",
}
"""How the metrics are defined, where that can differ."""


def definitions(metrics: Sequence[str]) -> list[str]:
    """A sentence or two on each metric."""
    return [text for metric, text in DEFINITIONS.items() if metric in metrics]


PANEL, MARGIN = 168, 6


def grid(
    methods: Sequence[Method], images: NDArray[np.float32], targets: NDArray[np.int64], labels: Sequence[str]
) -> Image.Image:
    """Every picture in a row, followed by its attributions, summed over the channels.

    Arguments:
        methods: the columns.
        images: float32 [N, 3, H, W] in [-1, 1].
        targets: int64 [N], the classes explained.
        labels: what those are called.
    """
    columns = [method.explain(images, targets) for method in methods]
    height = PANEL * images.shape[2] // images.shape[3]
    head, step = 22, height + 16 + MARGIN
    canvas = Image.new(
        "RGB", (MARGIN + (PANEL + MARGIN) * (1 + len(methods)), head + step * len(images) + MARGIN), "white"
    )
    pen = ImageDraw.Draw(canvas)
    for column, name in enumerate(["picture", *(method.name for method in methods)]):
        pen.text((MARGIN + column * (PANEL + MARGIN), 5), name, "black")
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        top = head + row * step
        pixels = np.clip((image.transpose(1, 2, 0) + 1) * 127.5, 0, 255).round().astype(np.uint8)
        panels = [Image.fromarray(pixels)]
        for attributions in columns:
            summed = attributions[row].sum(axis=0)
            panels.append(diverging(summed / magnitude(summed)))
        for column, panel in enumerate(panels):
            resized = panel.resize((PANEL, height), Image.Resampling.BILINEAR)
            canvas.paste(resized, (MARGIN + column * (PANEL + MARGIN), top))
        pen.text((MARGIN, top + height + 1), label, "#555555")
    return canvas


def _markdown(
    title: str,
    notes: Sequence[str],
    tables: Sequence[tuple[str, list[list[str]]]],
    pictures: Sequence[tuple[str, str]],
) -> str:
    parts = [f"# {title}", *notes]
    for head, table in tables:
        lines = ["| " + " | ".join(row) + " |" for row in table]
        parts.append("\n".join([f"## {head}\n", lines[0], "|---" * len(table[0]) + "|", *lines[1:]]))
    parts += [f"![{caption}]({name})" for name, caption in pictures]
    return "\n\n".join(parts) + "\n"


_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid #8884; white-space: nowrap; }
img { max-width: 100%; background: white; } figure { margin: 2rem 0; } figcaption { opacity: .7; }
"""


def _html(
    title: str,
    notes: Sequence[str],
    tables: Sequence[tuple[str, list[list[str]]]],
    pictures: Sequence[tuple[str, str]],
) -> str:
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(note)}</p>" for note in notes),
    ]
    for head, table in tables:
        lines = [
            "<tr>" + "".join(f"<{cell}>{html.escape(text)}</{cell}>" for text in row) + "</tr>"
            for row, cell in zip(table, ["th"] + ["td"] * len(table), strict=False)
        ]
        parts.append(f'<h2>{html.escape(head)}</h2><div class="table"><table>{"".join(lines)}</table></div>')
    parts += [
        f'<figure><img src="{name}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
        for name, caption in ((name, html.escape(caption)) for name, caption in pictures)
    ]
    return "\n".join(parts) + "\n"
