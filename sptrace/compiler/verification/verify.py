"""Is the ONNX program right? Measured before anything is saved.

It is run beside the torch.fx program that it was written from, and beside the independent eager reference.
"""

from __future__ import annotations

import warnings

import onnxruntime
import torch
from torch import Tensor

from sptrace.artifact.description import Measured, Verification
from sptrace.artifact.programs import program_kind
from sptrace.compiler.reference.eager_explainer import Eager
from sptrace.compiler.verification.bounds import Bounds
from sptrace.compiler.verification.diagnosis import Trouble
from sptrace.compiler.verification.probes import own_pictures
from sptrace.compiler.verification.trial import Pictures, Trial
from sptrace.errors import SptraceWarning, VerificationError

TRIED = 3
"""How many pictures of the compiler's own are looked at for one whose explanation is not zero or undecided."""

OWN = "a picture of sptrace's own"


def verify(
    onnx_model: bytes | str,
    module: torch.fx.GraphModule,
    eager: Eager,
    example: Tensor,
    hard: bool,
    *,
    half: bool = False,
) -> Verification:
    """Run the program on the example, then on it and a picture of the compiler's own, in all three.

    Of the example is explained what a target of -1 stands for, of the own picture a class that is named; or both
    times a random direction. The program's run-time settings are those of `eager`. Errors are those of each picture
    by itself: the largest difference, as a share of the largest value. If a gate is hard, attributions are measured by
    the L2 norm instead, and may also differ by what gates in doubt explain: see `verification.bounds`.

    Where nothing can be said about the example (its explanation is zero, or hangs on what float32 cannot decide), own
    pictures take its place, and a `SptraceWarning` says so.

    Arguments:
        onnx_model: the serialized ONNX file, or its path.
        module: the torch.fx program that it was written from.
        eager: the same program, independently.
        example: float32 [N, 3, H, W] in the input's range.
        hard: is there a hard gate?
        half: is the program in half precision? Eager PyTorch computes in float32 all the same.

    Returns:
        What was measured, for each batch size, N and N + 1.

    Raises:
        VerificationError: they disagree by more than the tolerance, something is NaN, or nothing can be said about any
            picture.
    """
    session = onnxruntime.InferenceSession(onnx_model, quiet(), providers=["CPUExecutionProvider"])
    bounds = Bounds.of(program_kind(eager.program).tolerance, hard=hard, half=half)
    trial = Trial(session, module, eager, bounds)
    size = (example.shape[2], example.shape[3])
    own = own_pictures(TRIED + len(example), size, eager.preprocessing.input_range)
    measured, notes = _measured(trial, example, own, named=not half)
    for note in notes:
        warnings.warn(note, SptraceWarning, stacklevel=2)
    return Verification(
        tolerance=bounds.attributions,
        measure="norm" if hard else "maximum",
        settings=trial.settings,
        onnxruntime=onnxruntime.__version__,
        torch=str(torch.__version__),
        batches=measured,
        notes=notes,
        of_values=bounds.values,
    )


def _measured(
    trial: Trial, example: Tensor, own: Tensor, *, named: bool
) -> tuple[tuple[Measured, ...], tuple[str, ...]]:
    """What was measured, and what could not be.

    `named`: is a class explained that is not the largest? The numbers of half precision are scaled for that one.
    """
    given = Pictures("the example", example)
    for rank in range(1, TRIED + 1):
        beside = Pictures(OWN, own[rank - 1 : rank], rank if named else 0)
        found = trial.examine(given, beside)
        if found.beside is None:
            break
    if found.given is not None and (found.beside is not None or found.given.is_fatal):
        raise _unverified(found.given, given)
    if found.beside is not None:
        if not found.beside.is_silent:
            raise _unverified(found.beside, beside)
        note = f"verified on the example alone: on {OWN} {found.beside.why}"
        black = own.min()
        for name, picture in (
            ("the mirrored example", example[:1].flip(-1)),
            ("the example made darker", black + 0.75 * (example[:1] - black)),
        ):
            beside = Pictures(name, picture)
            found = trial.examine(given, beside)
            if found.beside is None or not found.beside.is_silent:
                break
    elif found.given is not None:
        note = f"not verified on the example: there {found.given.why}; verified on pictures of sptrace's own"
        given = Pictures(OWN, own[TRIED:])
        found = trial.examine(given, beside)
    else:
        return found.measured, ()
    for trouble, pictures in ((found.given, given), (found.beside, beside)):
        if trouble is not None:
            raise _unverified(trouble, pictures)
    return found.measured, (note,)


def _unverified(trouble: Trouble, pictures: Pictures) -> VerificationError:
    return VerificationError(
        f"the program cannot be verified: on {pictures.name} {trouble.why}; nothing was saved"
    )


def quiet() -> onnxruntime.SessionOptions:
    """Without the warning that steps, alpha and so on are inputs with defaults; they are meant to be."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options
