"""What to type where a package is missing. The name sptrace on PyPI is not ours, so an extra's packages are named."""

from __future__ import annotations

import re
from importlib import metadata

from sptrace.errors import SptraceError

_EXTRA = re.compile(r"""(?P<package>[^;]+?)\s*;.*extra\s*==\s*["'](?P<extra>[^"']+)["']""")
_OWN = re.compile(r"sptrace\[(?P<extras>[^\]]+)\]")


def command(extra: str) -> str:
    """The command that installs what an extra of pyproject.toml adds: pip install 'torch>=2.9' 'onnx>=1.18' ..."""
    return "pip install " + " ".join(
        f"'{package}'" if re.search(r"[<>=!~\[]", package) else package for package in packages(extra)
    )


def packages(extra: str) -> list[str]:
    """The requirements of an extra, those of extras within it in their place.

    Raises:
        SptraceError: this is a copy of the sources that nobody installed, or the extra is unknown.
    """
    try:
        requirements = metadata.requires("sptrace") or []
    except metadata.PackageNotFoundError as error:
        raise SptraceError("sptrace runs from files that are not installed: pip install its clone") from error
    found: list[str] = []
    for requirement in filter(None, map(_EXTRA.fullmatch, requirements)):
        if requirement["extra"] != extra:
            continue
        own = _OWN.fullmatch(requirement["package"])
        if own is None:
            found.append(requirement["package"])
        else:
            found.extend(inner for name in own["extras"].split(",") for inner in packages(name.strip()))
    if not found:
        raise SptraceError(f"sptrace has no extra {extra!r}")
    return list(dict.fromkeys(found))
