"""`python -m sptrace.cli`: the same as the command `sptrace`."""

from sptrace.cli import main

main()
