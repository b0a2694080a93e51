"""The version of sptrace, written into every artifact."""

__version__ = "0.1.0"
