"""Reading --mean and --std from the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sptrace.artifact.description import SMALLEST_STD
from sptrace.artifact.numbers import is_finite
from sptrace.errors import SptraceError

if TYPE_CHECKING:
    from sptrace.compiler.network import Network

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of pixels in [0, 1], one a channel; None for the network's own."""

    mean: Triple | None
    std: Triple | None

    @staticmethod
    def read(mean: str | None, std: str | None) -> Normalisation:
        """What both flags say; SptraceError if that is no normalisation."""
        read = Normalisation(_triple(mean, "--mean"), _triple(std, "--std"))
        if (read.mean is None) != (read.std is None):
            raise SptraceError("--mean and --std belong together: give both")
        if read.std is not None and min(read.std) < SMALLEST_STD:
            given = ", ".join(f"{number:g}" for number in read.std)
            raise SptraceError(f"--std must be above 0, at least {SMALLEST_STD:g}, not {given}")
        return read

    def of(self, network: Network) -> Network:
        """The network with this normalisation, where one was asked for."""
        if self.mean is None:
            return network
        return replace(network, preprocessing=replace(network.preprocessing, mean=self.mean, std=self.std))


def _triple(text: str | None, flag: str) -> Triple | None:
    if text is None:
        return None
    numbers = [_number(part, flag) for part in text.split(",")]
    if len(numbers) != 3:
        raise SptraceError(
            f"{flag} {text}: write three numbers with commas between, for example 0.485,0.456,0.406"
        )
    red, green, blue = numbers
    return red, green, blue


def _number(text: str, flag: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise SptraceError(f"{flag}: {text!r} is not a number") from None
    if not is_finite(number):
        raise SptraceError(f"{flag}: {text!r} is no finite number")
    return number
