"""sptrace: an ahead-of-time compiler for explanations of vision networks."""

from sptrace.version import __version__

__all__ = ["__version__"]
