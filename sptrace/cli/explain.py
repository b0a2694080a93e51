"""`sptrace explain`: a photograph in, a picture of its explanation out."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from sptrace.artifact.files import replacing, require_writable
from sptrace.cli.settings import read_settings
from sptrace.errors import SptraceError
from sptrace.runtime import explainer as runtime
from sptrace.runtime import photo, picture
from sptrace.runtime.explainer import Explainer
from sptrace.runtime.explanation import Explanation

SHARED = ("labels", "link")
"""What an explanation says of all samples together."""
AT_A_TIME = 16
"""Classes: memory for a batch of a thousand is rarely there."""


def explain(
    artifact: Annotated[Path, typer.Argument(help="ONNX file written by `sptrace compile`.")],
    photograph: Annotated[Path, typer.Argument(metavar="PHOTO", help="The photograph to explain.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help=f"The picture to write ({' '.join(picture.FORMATS)}).")
    ],
    target: Annotated[
        str,
        typer.Option(
            help="The class to explain: index, name (label:7 if that is a number), or auto for the most probable. "
            "A layer's channel: its index."
        ),
    ] = "auto",
    direction: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The direction to explain, a .npy file, for artifacts that take one."
        ),
    ] = None,
    top: Annotated[
        int,
        typer.Option(min=1, help="Explain that many of the most probable classes, or most active channels."),
    ] = 1,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="A run-time setting of the program, e.g. steps=10 of an ascent."
        ),
    ] = None,
    provider: Annotated[
        str, typer.Option(help="onnxruntime execution provider, for example CUDAExecutionProvider.")
    ] = "CPUExecutionProvider",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads on the CPU.", show_default="onnxruntime's choice")
    ] = None,
    save_npz: Annotated[
        Path | None,
        typer.Option(
            help="Also write attribution, logits, target and whatever else the artifact outputs to this .npz file."
        ),
    ] = None,
) -> None:
    """Explain a photograph: draw what an artifact answers."""
    if target != "auto" and direction is not None:
        raise SptraceError("--direction takes the place of --target: leave one of them out")
    if target != "auto" and top != 1:
        raise SptraceError(
            "--top explains the most probable classes: leave out --target, or say --target auto"
        )
    settings = read_settings(option) | (
        {} if direction is None else {"direction": _read_direction(direction)}
    )
    _require_outputs(photograph, output, save_npz)
    progress = Console(stderr=True)
    with progress.status("loading the artifact"):
        explainer = runtime.load(artifact, providers=[provider], threads=threads)
    preprocessing = explainer.description.preprocessing
    with progress.status("reading the photograph"):
        original = photo.read(photograph)
        seen = photo.crop(original, preprocessing)
        image = (
            np.asarray(original)[None] if explainer.takes_pictures else photo.prepare(original, preprocessing)
        )
    rows = min(top, explainer.units)
    if rows > picture.most_rows(output, seen.size):
        raise SptraceError(
            f"--top {top} makes a picture higher than a {output.suffix} file holds: "
            f"give at most {picture.most_rows(output, seen.size)}"
        )
    with progress.status("explaining"):
        start = time.perf_counter()
        explanation = _explain(explainer, image, target, top, settings)
        seconds = time.perf_counter() - start
    with progress.status("drawing"):
        _draw(explainer, explanation, seen, output)
        if save_npz is not None:
            _save_numbers(explanation, save_npz)
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(_table(explanation))
    console.print(
        f"explained in {seconds:.3f} s by {explainer.description.program} on {provider}", soft_wrap=True
    )
    for path in (output, save_npz):
        if path is not None:
            console.print(f"saved {path}", soft_wrap=True)


def _read_direction(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except (
        Exception
    ) as error:  # numpy raises all kinds for damaged files, what Python's tokenizer does among them
        raise SptraceError(
            f"cannot read the direction {path}: write it with numpy.save, as one float32 array"
        ) from error
    if not isinstance(array, np.ndarray):
        raise SptraceError(f"{path} holds several arrays: write the direction with numpy.save")
    return array


def _require_outputs(photograph: Path, output: Path, numbers: Path | None) -> None:
    """Fail before the work rather than after it, if a result could not be written."""
    picture.require_format(output)
    require_writable(output)
    if output.exists() and photograph.exists() and os.path.samefile(output, photograph):
        raise SptraceError(f"{output} is the photograph itself: give the picture another name")
    if numbers is not None:
        if numbers.suffix != ".npz":
            raise SptraceError(f"cannot write the numbers to {numbers}: end its name in .npz")
        require_writable(numbers)


def _explain(
    explainer: Explainer, image: NDArray[np.float32], target: str, top: int, settings: Mapping[str, Any]
) -> Explanation:
    """One sample per explained class, the most probable first."""
    if target != "auto":
        return explainer.explain(image, target, **settings)
    if explainer.takes_direction and top != 1:
        raise SptraceError("this artifact explains one direction: leave out --top")
    first = explainer.explain(image, **settings)
    if top == 1:
        return first
    assert first.target is not None
    ranked = np.argsort(-_values(first)[0], kind="stable")
    others = ranked[ranked != first.target[0]][: top - 1]
    if len(others) == 0:
        return first
    explained = [first]
    for start in range(0, len(others), AT_A_TIME):
        some = others[start : start + AT_A_TIME]
        explained.append(explainer.explain(image.repeat(len(some), axis=0), some, **settings))
    joined: dict[str, Any] = {
        item.name: np.concatenate([getattr(part, item.name) for part in explained])
        for item in fields(Explanation)
        if item.name not in SHARED and getattr(first, item.name) is not None
    }
    return replace(first, **joined)


def _values(explanation: Explanation) -> NDArray[np.float32]:
    """What the target was chosen from: classes, or a layer's channels."""
    return explanation.scores if explanation.activation is None else explanation.activation


def _of_explained(
    explanation: Explanation, of_classes: NDArray[np.float32] | None, sample: int
) -> float | None:
    """The number of the class which was explained; channels and directions have none."""
    if of_classes is None or explanation.target is None or explanation.activation is not None:
        return None
    return float(of_classes[sample, explanation.target[sample]])


def _draw(explainer: Explainer, explanation: Explanation, seen: Image.Image, output: Path) -> None:
    layer = explainer.description.settings.get("layer")
    of_layer = f" of {layer}" if explanation.activation is not None else ""
    description = explainer.description
    arrived = None
    if explanation.image_out is not None:
        arrived = photo.restore(explanation.image_out, description.preprocessing)
    plain = explanation.probabilities is None
    values, values_out = (explanation.scores, explanation.scores_out) if plain else (None, None)
    rows = [
        picture.Row(
            explanation.label(sample) + of_layer,
            _of_explained(explanation, explanation.probabilities, sample),
            attribution,
            None if arrived is None else arrived[sample],
            _of_explained(explanation, explanation.probabilities_out, sample),
            _of_explained(explanation, values, sample),
            _of_explained(explanation, values_out, sample),
        )
        for sample, attribution in enumerate(explanation.attribution)
    ]
    picture.save(picture.draw(seen, rows, program=description.program, network=description.network), output)


def _save_numbers(explanation: Explanation, path: Path) -> None:
    numbers = {
        item.name: getattr(explanation, item.name) for item in fields(Explanation) if item.name not in SHARED
    }
    with replacing(path) as temporary:
        np.savez(temporary, **{name: array for name, array in numbers.items() if array is not None})


def _table(explanation: Explanation) -> Table:
    """What was explained, and its value; of a direction the image's most probable class."""
    table = Table(box=None, pad_edge=False)
    table.add_column("index", justify="right")
    if explanation.activation is not None and explanation.target is not None:
        table.add_column("channel", overflow="fold")
        table.add_column("activation", justify="right")
        for sample, index in enumerate(explanation.target):
            value = float(explanation.activation[sample, index])
            table.add_row(str(index), explanation.label(sample), f"{value:.3f}")
        return table
    plain = explanation.probabilities is None
    table.add_column("output" if plain else "class", overflow="fold")
    columns = (
        ["value"]
        if plain
        else ["probability"]
        if explanation.link == "identity"
        else ["probability", "logit"]
    )
    for column in columns:
        table.add_column(column, justify="right")
    classes = replace(explanation, activation=None)
    if explanation.target is None:
        classes = replace(classes, target=explanation.scores.argmax(axis=1))
    assert classes.target is not None
    after = explanation.scores_out
    if after is not None:
        table.add_column("after the ascent", justify="right")
        if not plain:
            table.add_column("then most probable", overflow="fold")
    for sample, index in enumerate(classes.target):
        row = [str(index), classes.label(sample)]
        if explanation.probabilities is not None:
            row.append(f"{explanation.probabilities[sample, index]:.2%}")
        if columns[-1] != "probability":
            row.append(f"{explanation.scores[sample, index]:.3f}")
        if after is not None and explanation.probabilities_out is None:
            row.append(f"{after[sample, index]:.3f}")
        elif after is not None and explanation.probabilities_out is not None:
            winners = replace(classes, target=after.argmax(axis=1))
            row += [f"{explanation.probabilities_out[sample, index]:.2%}", winners.label(sample)]
        table.add_row(*row)
    return table
