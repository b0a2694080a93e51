"""The house as CONTRIBUTING.md draws it: which room may import which, no circles, and which rooms never need torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sptrace

TOP = Path(sptrace.__file__).parent
HEAVY = {"torch", "onnx", "onnx_ir"}
"""What only the compiler, and those who call it, may import."""

LIGHT = ("artifact", "runtime", "deploy")

ARROWS = {
    "artifact": set(),
    "runtime": {"artifact"},
    "deploy": {"artifact"},
    "compiler.graph": {"artifact"},
    "compiler.capture": {"compiler.graph"},
    "compiler.pullback": {"artifact", "compiler.graph"},
    "passes": {"artifact", "compiler.graph", "compiler.pullback"},
    "compiler.objectives": {"artifact", "passes", "compiler.capture", "compiler.graph"},
    "compiler.composition": {"passes", "compiler", "compiler.graph"},
    "compiler.emission": {"artifact", "compiler.graph"},
    "compiler.reference": {"artifact", "compiler.capture"},
    "compiler.verification": {"artifact", "runtime", "compiler.emission", "compiler.reference"},
    "compiler": {
        *("artifact", "runtime", "passes", "compiler.capture", "compiler.graph", "compiler.objectives"),
        *("compiler.pullback", "compiler.composition", "compiler.emission", "compiler.reference"),
        "compiler.verification",
    },
    "models": {"artifact", "compiler", "compiler.capture"},
    "evaluation": {"artifact", "runtime", "compiler", "compiler.objectives"},
    "bench": {"artifact", "runtime", "compiler", "models"},
}
"""Which rooms a room imports. The command line imports all, and all import `errors` and the like."""


def modules() -> dict[str, Path]:
    """Every module, "runtime.photo", and its file."""
    import sptrace.models
    import sptrace.passes

    found = {}
    for prefix, package in (("", sptrace), ("models.", sptrace.models), ("passes.", sptrace.passes)):
        folder = Path(str(package.__file__)).parent
        for file in sorted(folder.rglob("*.py")):
            name = ".".join(file.relative_to(folder).with_suffix("").parts)
            found[(prefix + name).removesuffix("__init__").rstrip(".")] = file
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """What a module imports anywhere in it: modules of ours, without "sptrace.", and the names of heavy packages."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for path in paths:
            first, _, rest = path.partition(".")
            if first in HEAVY:
                yield first
            elif first == "sptrace":
                yield rest if rest in MODULES else rest.rpartition(".")[0]


def above(name: str) -> set[str]:
    """The packages that a module lies in: Python imports them first."""
    parts = name.split(".")
    return {".".join(parts[:length]) for length in range(len(parts))}


def room(name: str) -> str:
    """The room of a module: its package, the compiler's own packages apart; "" for those at the top."""
    parts = name.split(".")
    if parts[0] == "compiler":
        package = ".".join(parts[:2])
        return package if MODULES.get(package, Path()).name == "__init__.py" else "compiler"
    return parts[0] if MODULES[parts[0]].name == "__init__.py" else ""


def test_no_circles() -> None:
    graph = {}
    for name in MODULES:
        needed = set(imports(name)) - HEAVY
        # A package whose module runs first is needed too; of its own packages every module may be a part.
        graph[name] = {each for one in needed for each in {one, *above(one)}} - above(name) - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_arrows_are_as_drawn(name: str) -> None:
    here = room(name)
    if here in ("", "cli"):
        return
    rooms = {room(each) for each in imports(name) if each not in HEAVY} - {here, ""}
    assert rooms <= ARROWS[here]
    if here in LIGHT:
        assert not HEAVY & set(imports(name))


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name) in LIGHT))
def test_runs_where_there_is_no_torch(name: str) -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({sorted(HEAVY)})); import sptrace.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_few_files_at_the_top() -> None:
    assert len([file for file in TOP.iterdir() if file.is_file()]) <= 6
