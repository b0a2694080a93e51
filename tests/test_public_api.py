"""What `import sptrace` offers: a name that comes or goes must be put down here and in the documentation."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import sptrace

PUBLIC = {
    "BoundExplainer",
    "Explainer",
    "Explanation",
    "Program",
    "Softening",
    "SptraceError",
    "SptraceWarning",
    "UnsupportedError",
    "VerificationError",
    "__version__",
    "compile",
    "load",
}


def test_exactly_the_documented_names() -> None:
    assert set(sptrace.__all__) == PUBLIC
    assert len(sptrace.__all__) == len(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_every_name_is_there_and_documented(name: str) -> None:
    public = getattr(sptrace, name)
    documentation = inspect.getdoc(public)
    assert documentation
    assert documentation != inspect.getdoc(type(public))
    if inspect.isfunction(public):
        assert "Raises:" in documentation
        for parameter in inspect.signature(public).parameters:
            assert f"{parameter}: " in documentation
    if inspect.isclass(public):
        for method_name, method in inspect.getmembers(public, inspect.isfunction):
            if not method_name.startswith("_"):
                assert inspect.getdoc(method), f"{name}.{method_name}"


@pytest.mark.parametrize("name", ["photo", "picture"])
def test_modules_are_there_without_importing_them(name: str) -> None:
    code = f"import sys, sptrace; print(sptrace.{name}.__name__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"sptrace.runtime.{name} False\n"


def test_errors_have_one_root() -> None:
    assert issubclass(sptrace.UnsupportedError, sptrace.SptraceError)
    assert issubclass(sptrace.VerificationError, sptrace.SptraceError)


def test_warnings_are_of_the_kind_that_python_shows_to_users() -> None:
    assert issubclass(sptrace.SptraceWarning, UserWarning)


def test_the_version_is_that_of_the_installed_package() -> None:
    from importlib.metadata import version

    assert sptrace.__version__ == version("sptrace")


def test_anything_else_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'sptrace' has no attribute 'explain'"):
        sptrace.explain  # noqa: B018
