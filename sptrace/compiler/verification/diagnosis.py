"""Why do two programs disagree? What is said to the user, and whether a picture, the network or sptrace is to blame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sptrace.artifact.description import SPREAD
from sptrace.compiler.verification.bounds import Bounds
from sptrace.compiler.verification.distances import Distance
from sptrace.compiler.verification.references import Reference
from sptrace.errors import VerificationError

SATURATED = 1e-5
"""How close to 0 or 1 a probability is of whose slope float32 keeps few digits."""


SMALLEST = 1e-30
"""Of an explanation: float32 ends at 1e-38, what is multiplied on the way is smaller, and onnxruntime flushes it."""


@dataclass(frozen=True)
class Trouble:
    """Why pictures tell nothing.

    Arguments:
        why: to be read after "there".
        is_silent: the network says nothing about them; else it does, and float32 cannot decide what.
        is_fatal: such an example is refused.
    """

    why: str
    is_silent: bool = True
    is_fatal: bool = False


@dataclass(frozen=True)
class Excess:
    """An error beyond its bound.

    Arguments:
        what, other: the output, and what it was compared with.
        batch: the batch size.
        error, allowed: of the worst picture.
        measure: of the distance.
    """

    what: str
    other: str
    batch: int
    error: float
    allowed: float
    measure: Distance

    def refused(self, reference: Reference, why: str) -> VerificationError:
        """What the user gets to see."""
        return VerificationError(
            f"the {self.what} of the ONNX program and of {self.other} differ by {self.error:.1e} at batch size "
            f"{self.batch}, more than {self.allowed:.0e}, on {reference.name}: nothing was saved; {why}"
        )


def without_answer(reference: Reference) -> Trouble | None:
    """Is the reference itself NaN?"""
    if np.isnan(reference.answers["logits"]).any():
        return Trouble("the network itself answers NaN", is_fatal=True)
    if not np.isfinite(reference.answers["attribution"]).all():
        return Trouble("the explanation is NaN or infinite in PyTorch too")
    attributions = np.abs(reference.answers["attribution"]).reshape(len(reference.images), -1).max(1)
    if ((attributions > 0) & (attributions < SMALLEST)).any():
        return Trouble("the explanation is smaller than what all runtimes take for more than zero")
    return None


def without_slope(reference: Reference, steady: NDArray[np.bool_]) -> Trouble | None:
    """Is there nothing to compare, because every picture's explanation is zero?

    Arguments:
        reference: finite.
        steady: which logits are the same for every picture.
    """
    if reference.answers["attribution"].any():
        return None
    zero = "the explanation is zero everywhere"
    if steady.all():
        return Trouble(f"{zero}, and the network's output the same for every picture")
    saturated = _saturated(reference)
    return Trouble(zero if saturated is None else f"{zero}: {saturated}")


def undecided(reference: Reference, excess: Excess, bounds: Bounds) -> Trouble:
    """Why nobody can tell on these pictures whether the program is right.

    Raises:
        VerificationError: somebody can, and it is wrong; or the network is none that can be compiled.
    """
    wanted = reference.answers[excess.what]
    if not excess.measure(reference.again()[excess.what], wanted).max() <= excess.allowed:
        raise excess.refused(
            reference, "the network answers the same picture differently every time, which cannot be compiled"
        )
    if excess.what == "attribution" and reference.jitter is not None:
        thrown = float(reference.doubt(excess.measure).max())
        if SPREAD * thrown >= excess.error:
            return Trouble(
                f"float32 cannot decide {reference.gates_in_doubt()}; thrown to the other side they move the "
                f"explanation by {thrown:.0e}",
                is_silent=False,
            )
    moved = float(excess.measure(reference.beside(bounds.slight)[excess.what], wanted).max())
    saturated = _saturated(reference)
    if SPREAD * moved >= excess.error:
        return Trouble(
            saturated
            or f"the {excess.what} of the network itself moves by {moved:.0e} when the picture is "
            f"changed by {bounds.slight:.0e} of its size",
            is_silent=False,
        )
    if saturated is not None:
        raise excess.refused(
            reference, f"{saturated}: compile the network without its last softmax or sigmoid"
        )
    if bounds.half:
        raise excess.refused(
            reference, "half precision is too coarse for this network, compile it with precision fp32"
        )
    in_double = reference.in_double()
    if in_double is not None:
        lost = float(excess.measure(wanted, in_double[excess.what]).max())
        if SPREAD * lost >= excess.error:
            return Trouble(
                f"float32 keeps too few digits of this network: its {excess.what} in PyTorch is {lost:.0e} away from "
                "what it is in float64",
                is_silent=False,
            )
    raise excess.refused(reference, "please report the network, this is an error of sptrace")


def _saturated(reference: Reference) -> str | None:
    """Do the network's outputs look like probabilities, and those that are explained as good as 0 or 1?"""
    outputs = reference.answers["logits"]
    if (
        reference.explained.is_floating_point()
        or reference.of_a_layer
        or outputs.min() < 0
        or outputs.max() > 1
    ):
        return None
    explained = outputs[np.arange(len(outputs)), reference.explained.numpy() % outputs.shape[1]]
    if np.minimum(explained, 1 - explained).min() > SATURATED:
        return None
    return f"the network's output is saturated ({explained[0]:g}), and float32 keeps no digits of its slope"
