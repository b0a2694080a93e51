"""The table of `sptrace coverage` as a page of Markdown."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from importlib import metadata

Row = Mapping[str, str]

PACKAGES = (
    "sptrace",
    "torch",
    "onnxruntime",
    "torchvision",
    "timm",
    "transformers",
    "segmentation_models_pytorch",
)

COLUMNS = (
    "source",
    "network",
    "compiled",
    "error",
    "gradient",
    "autograd",
    "doubt",
    "seconds",
    "nodes",
    "megabytes",
    "why",
)
"""Of the .csv file."""

INTRODUCTION = """\
# Coverage

Which architectures compile: the classifiers of torchvision, one architecture of every module of timm, the image
classifiers of transformers, and an encoder of every family of segmentation_models_pytorch (smp) with a linear head.
Each is compiled with random weights at its own size of pictures, program `{program}`, and verified as every compile is:
the ONNX file in onnxruntime against its torch.fx graph and against the eager reference, at two batch sizes.

*Error*: the largest difference of the attributions from either, as a share of the largest value; more than 1e-4 is a
failure, but for what a maximum or a hard gate explains that float32 cannot decide
([Verification](usage.md#verification)).
*Gradient*: program `gradient` in onnxruntime against float64 autograd of the original network, on two pictures that the
compiler has not seen; the larger ||difference|| / ||gradient||. *PyTorch*: the same of PyTorch's own autograd in
float32. *Doubt*: how far float64 autograd itself moves when those inputs of ReLUs and maxima that lie closer to their
threshold than float32 resolves are thrown to either side, measured where the gradient is farther than 1e-4; a network
whose gradient is farther than four times that counts as not compiled. Around batch norms before tokens (LeViT,
EfficientFormer, XCiT) autograd is given contiguous cotangents: without, torch 2.14.1 is wrong there by a multiple of
the gradient, as finite differences show of EfficientFormer. *Seconds*: capturing, pulling back, writing and
verifying, on {cores} cores that had other work too. *Nodes*: of the torch.fx graph, network and pullback together.

{date}; {versions}. Made by

```sh
{commands}
```
"""


def markdown(rows: Sequence[Row], known: Mapping[str, int], program: str, cores: int) -> str:
    """The page.

    Arguments:
        rows: of the .csv file, of any number of sources.
        known: how many networks each source has; a sweep may not be finished.
        program: the program that was compiled.
        cores: of the machine.
    """
    sources = sorted({row["source"] for row in rows})
    commands = [
        f"sptrace coverage --source {source} -o coverage.csv --markdown coverage.md" for source in sources
    ]
    introduction = INTRODUCTION.format(
        program=program,
        cores=cores,
        date=datetime.datetime.now().astimezone().date().isoformat(),
        versions=", ".join(_versions()),
        commands="\n".join(commands),
    )
    chapters = [_chapter(source, [row for row in rows if row["source"] == source]) for source in sources]
    return "\n".join([introduction, _totals(rows, known), *chapters])


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _totals(rows: Sequence[Row], known: Mapping[str, int]) -> str:
    lines = [
        "| source | networks | tried | compiled | largest error | farthest gradient | slowest |",
        "|---|---|---|---|---|---|---|",
    ]
    for source in sorted({row["source"] for row in rows}):
        ours = [row for row in rows if row["source"] == source]
        compiled = [row for row in ours if row["compiled"] == "yes"]
        worst = max((row["error"] for row in compiled), key=float, default="-")
        farthest = max(compiled, key=lambda row: float(row["gradient"] or 0), default=None)
        far = (
            "-"
            if farthest is None
            else f"{farthest['network']}, {farthest['gradient']} (PyTorch {farthest['autograd']})"
        )
        slowest = max(compiled, key=lambda row: float(row["seconds"]), default=None)
        slow = "-" if slowest is None else f"{slowest['network']}, {slowest['seconds']} s"
        share = f"{len(compiled)} ({100 * len(compiled) / len(ours):.1f} %)"
        lines.append(f"| {source} | {known[source]} | {len(ours)} | {share} | {worst} | {far} | {slow} |")
    return "\n".join([*lines, ""])


def _chapter(source: str, rows: Sequence[Row]) -> str:
    lines = [f"## {source}", ""]
    failed = [row for row in rows if row["compiled"] != "yes"]
    if failed:
        lines += ["What does not compile:", "", "| network | why |", "|---|---|"]
        lines += [f"| {row['network']} | {_reason(row['why'])} |" for row in failed]
        lines.append("")
    columns = COLUMNS[1:-1]
    titles = [{"autograd": "PyTorch", "megabytes": "MB"}.get(column, column) for column in columns]
    lines += [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        cells = [row[column] or "-" for column in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _reason(why: str) -> str:
    """In one line, without the place where this machine keeps its packages."""
    return re.sub(r"[^\s(]*/site-packages/", "", " ".join(why.split())).replace("|", "\\|")
