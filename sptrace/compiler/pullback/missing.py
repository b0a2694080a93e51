"""Why some ops have no rule: what is said in place of the mere fact."""

from __future__ import annotations

import re

REASONS: dict[str, str] = {
    r"_?linalg_.*|cholesky.*|lu_.*|svd|qr|matrix_exp|.*_svd|.*pinverse|_linalg_det|slogdet|triangular_solve": (
        "ONNX has no op that inverts, factorises or decomposes a matrix"
    ),
    r"mode": "which of equally frequent numbers counts is not defined",
    r"erfinv|special_erfinv|lgamma|digamma|polygamma|i0|i1|special_.*|igamma.*": "ONNX has no such function",
    r"as_strided": "it reads memory, not numbers at places: index them",
    r"_ctc_loss|.*_loss": "a loss is no part of the network: compile what gives the logits",
}
"""By the names of ops, as regular expressions."""


def why_missing(target: str) -> str:
    """That there is no rule for the op, and the reason, if one is known."""
    name = target.removeprefix("aten.").partition(".")[0]
    for pattern, reason in REASONS.items():
        if re.fullmatch(pattern, name):
            return f"{target} has no pullback, for {reason}"
    return f"there is no pullback rule for {target}"
