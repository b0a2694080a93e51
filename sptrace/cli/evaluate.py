"""`sptrace evaluate`: the paper's metrics on a user's network and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sptrace import evaluation, installing, models
from sptrace.artifact.description import METADATA_KEY, Description, Preprocessing
from sptrace.artifact.files import new_folders, replacing, require_writable
from sptrace.artifact.onnx_file import outline
from sptrace.bench.machine import cores
from sptrace.cli.messages import say
from sptrace.cli.normalisation import Normalisation
from sptrace.errors import SptraceError
from sptrace.version import __version__

if TYPE_CHECKING:
    from sptrace.compiler.network import Network
    from sptrace.evaluation.data import Pictures
    from sptrace.evaluation.methods import Method
    from sptrace.evaluation.predictor import Predictor
    from sptrace.evaluation.rows import Row

METRICS = (*evaluation.METRICS, "randomisation")
RANDOMISED = 10
"""Pictures of the randomisation check."""
CHEAP = 5
"""Runs of the network that an explanation may take to be checked so: the others are means of those."""
SHOWN = 6
"""Pictures of the grid."""
LINE_EVERY = 60
"""Seconds between two lines of progress where no bar can be drawn: in a file, in a log."""
LINE_WIDTH = 120
"""Characters of such a line."""


def evaluate(
    subjects: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL-OR-ARTIFACT...",
            help="A network as `sptrace compile` takes it, whose methods are compiled; artifacts of one network.",
        ),
    ],
    images: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="Photographs; or an .npz file with x uint8 [N, H, W, 3] and y [N]."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the report. An evaluation goes on where it stopped."),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(help="A .csv file with columns file and label (index), for the mosaics of focus."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Which, with commas between.", show_default=f"those that can be had of {', '.join(METRICS)}"
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Programs, PROGRAM@PRESET, or captum:METHOD, with commas between.",
            show_default="gradient, soft_pullback, pullback_ascent, smoothgrad, integrated_gradients, guided_gradcam",
        ),
    ] = None,
    count: Annotated[int, typer.Option("-n", min=1, help="How many pictures.")] = 200,
    weights: Annotated[Path | None, typer.Option(help="As in `sptrace compile`.")] = None,
    size: Annotated[int | None, typer.Option(help="As in `sptrace compile`.")] = None,
    mean: Annotated[str | None, typer.Option(metavar="R,G,B", help="As in `sptrace compile`.")] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="As in `sptrace compile`.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all noise.")] = 0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures at a time, a thread each.", show_default="one per core"),
    ] = None,
) -> None:
    """Measure how faithful explanations are: a table with confidence intervals, plots, and every score."""
    asked = None if metrics is None else _metrics(metrics)
    artifacts, name = _sorted(subjects)
    if name is None and methods is not None:
        raise SptraceError("--methods compiles programs of a network: name one beside the artifacts")
    if name is None and asked is not None and "randomisation" in asked:
        raise SptraceError("randomisation needs a network: name one beside the artifacts, or leave it out")
    normalisation = Normalisation.read(mean, std)
    try:
        from sptrace.evaluation import available, data, report
        from sptrace.evaluation.predictor import Predictor
        from sptrace.evaluation.run import evaluate as run
        from sptrace.models.libraries import fingerprint
    except ModuleNotFoundError as error:
        raise SptraceError(f"evaluating needs {error.name}: {installing.command('evaluate')}") from error
    available.require_methods(None if methods is None else _list(methods))
    with new_folders(output), Console(stderr=True).status("loading") as status:
        require_writable(output / "report.html")
        network = None if name is None else normalisation.of(models.resolve(name, weights=weights, size=size))
        given = [_of_artifact(path) for path in artifacts]
        pictures = data.read(images, labels, _preprocessing(network, artifacts), count)
        wanted, notes = available.metrics(asked or list(METRICS), pictures, asked is not None)
        _begin(
            output,
            [__version__, *map(fingerprint, artifacts), name, weights, mean, std, size, images.name, seed],
        )
        compared = [*given, *_methods(network, methods, output, status.update)]
        _require_names(compared)
        predict = Predictor(_forward(compared), threads=1)
        wanted, left_out = _possible(wanted, predict.link, predict.classes)
    notes += [*left_out, *filter(None, [available.plots()])]
    for note in notes:
        say("note", note, "bold")
    of_pictures = [metric for metric in wanted if metric != "randomisation"]
    with _progress() as show:
        found = run(
            predict,
            compared,
            pictures,
            output / "rows.csv",
            metrics=of_pictures,
            seed=seed,
            workers=threads or cores(),
            progress=show,
        )
        if "randomisation" in wanted and network is not None:
            found += _randomised(network, compared, pictures, output, seed, show)
    names = _class_names(network, artifacts)
    shown = pictures.images[:SHOWN]
    targets = predict(shown).argmax(axis=1)
    grid = report.grid(
        compared, shown, targets, [names[index] if names else f"class {index}" for index in targets]
    )
    title = f"Explanations of {name or 'the network of ' + artifacts[0].name}"
    report.write(
        output,
        found,
        [method.name for method in compared],
        title,
        [_summary(pictures, predict, images, seed), *notes, *report.definitions(of_pictures)],
        grid,
    )
    table = (
        (output / "report.md").read_text(encoding="utf-8").partition("\n## Means\n\n")[2].partition("\n\n")[0]
    )
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table or "no metric but the randomisation check", soft_wrap=True)
    console.print(f"saved {output / 'report.html'}", soft_wrap=True)


def _metrics(text: str) -> list[str]:
    wanted = _list(text)
    for name in wanted:
        if name not in METRICS:
            raise SptraceError(f"there is no metric {name!r}: use {', '.join(METRICS)}")
    if not wanted:
        raise SptraceError(f"--metrics names none: use {', '.join(METRICS)}")
    return wanted


def _possible(wanted: Sequence[str], link: str, classes: int) -> tuple[list[str], list[str]]:
    """The metrics that such a network can have, and what is to be said of those that it cannot have."""
    reasons = {
        ("insertion", "deletion"): link == "none"
        and "the network's outputs are plain values, no probabilities",
        ("random_logit", "focus"): classes == 1
        and "they compare with another class, and the network has one",
    }
    missing = {
        name: reason for names, reason in reasons.items() for name in names if reason and name in wanted
    }
    possible = [name for name in wanted if name not in missing]
    if not possible:
        raise SptraceError(f"nothing can be measured: {'; '.join(dict.fromkeys(missing.values()))}")
    return possible, [f"Left out: {name} ({reason})." for name, reason in missing.items()]


def _list(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _sorted(subjects: Sequence[str]) -> tuple[list[Path], str | None]:
    """Artifacts, and the network if one is among the subjects."""
    networks = [subject for subject in subjects if not subject.endswith(".onnx")]
    if len(networks) > 1:
        raise SptraceError(f"{' and '.join(networks)}: evaluate one network at a time")
    return [Path(subject) for subject in subjects if subject.endswith(".onnx")], next(iter(networks), None)


def _of_artifact(path: Path) -> Method:
    """The method of an artifact, by the file's name."""
    from sptrace.evaluation.methods import of_artifact

    return replace(of_artifact(path, threads=1), name=path.stem)


def _description(artifact: Path) -> Description:
    return Description.from_json(outline(artifact).metadata[METADATA_KEY])


def _preprocessing(network: Network | None, artifacts: Sequence[Path]) -> Preprocessing:
    """That of all; SptraceError if they differ."""
    found = [_description(path).preprocessing for path in artifacts]
    found += [] if network is None else [network.preprocessing]
    if any(one != found[0] for one in found):
        raise SptraceError(
            "these do not prepare photographs alike: compare artifacts of one network, compiled alike"
        )
    return found[0]


def _class_names(network: Network | None, artifacts: Sequence[Path]) -> tuple[str, ...] | None:
    return _description(artifacts[0]).labels if network is None else network.labels


def _methods(
    network: Network | None,
    methods: str | None,
    output: Path,
    progress: Callable[[str], None],
) -> Iterator[Method]:
    """What is compiled of the network, and captum's methods."""
    from sptrace.evaluation.methods import DEFAULT, compiled, of_captum

    if network is None:
        return
    folder = output / "artifacts"
    folder.mkdir(exist_ok=True)
    for name in _list(methods) if methods is not None else DEFAULT:
        if name.startswith("captum:"):
            yield of_captum(network, name.removeprefix("captum:"))
        else:
            yield compiled(network, name, folder / f"{name.replace('@', '-')}.onnx", progress, threads=1)


def _require_names(methods: Sequence[Method]) -> None:
    names = [method.name for method in methods]
    if not names:
        raise SptraceError(
            "--methods names none: leave it out, or name programs (`sptrace programs` lists them)"
        )
    for name in names:
        if names.count(name) > 1:
            raise SptraceError(f"two methods are called {name}: rename one of the artifacts")


def _forward(methods: Sequence[Method]) -> Path:
    """The artifact from which logits come cheapest."""
    artifacts = [method for method in methods if method.artifact is not None]
    if not artifacts:
        raise SptraceError(
            "the network itself comes out of an artifact: name one program of sptrace among --methods"
        )
    path = min(artifacts, key=lambda method: method.passes).artifact
    assert path is not None
    return path


def _begin(output: Path, identity: Sequence[object]) -> None:
    """Make the folder; one that holds another evaluation is refused."""
    text = json.dumps([None if part is None else str(part) for part in identity])
    output.mkdir(parents=True, exist_ok=True)
    mark = output / "evaluation.json"
    if mark.is_file() and mark.read_text(encoding="utf-8") != text:
        raise SptraceError(f"{output} holds an evaluation of something else: give another folder")
    with replacing(mark) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _randomised(
    network: Network,
    methods: Sequence[Method],
    pictures: Pictures,
    output: Path,
    seed: int,
    show: Callable[[str, int, int], None],
) -> list[Row]:
    """The rows of the randomisation check of those methods that run the network once or a few times."""
    from sptrace.evaluation import rows
    from sptrace.evaluation.randomisation import randomisation

    path, folder = output / "randomisation.csv", output / "artifacts"
    own = [method for method in methods if method.artifact is not None and method.artifact.parent == folder]
    cheap = [method.name for method in own if method.passes <= CHEAP]
    found = [row for row in rows.read(path) if row.method in cheap]
    missing = [name for name in cheap if name not in {row.method for row in found}]
    if missing:
        chosen = slice(RANDOMISED)
        new = list(
            randomisation(
                network,
                missing,
                pictures.images[chosen],
                pictures.names[chosen],
                seed,
                show,
            )
        )
        rows.append(path, new)
        found += new
    return found


def _summary(pictures: Pictures, predict: Predictor, images: Path, seed: int) -> str:
    text = f"{len(pictures.names)} pictures of {images.name}, seed {seed}; explained is the predicted class."
    if pictures.labels is not None:
        right = (predict(pictures.images).argmax(axis=1) == pictures.labels).mean()
        text += f" The network is right about {right:.1%} of them."
    return f"{text} What takes long was measured on the first of them: column n says on how many."


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = LINE_WIDTH
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=None)
        next_line = monotonic()

        def show(doing: str, done: int, total: int) -> None:
            nonlocal next_line
            progress.update(task, description=doing, completed=done, total=total)
            if not console.is_terminal and monotonic() >= next_line:
                next_line = monotonic() + LINE_EVERY
                console.print(progress.get_renderable())

        yield show
