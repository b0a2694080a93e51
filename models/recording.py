"""The last step of every source: the network is frozen, tried once, and recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sptrace.artifact.description import Preprocessing
from sptrace.compiler.capture.answers import logits_of
from sptrace.compiler.network import Network
from sptrace.errors import SptraceError, UnsupportedError
from sptrace.models.libraries import first_line, quiet


@contextmanager
def at_size(model: str, size: tuple[int, int]) -> Iterator[None]:
    """Wrap whatever may refuse an input size: building the architecture, running it.

    Raises:
        SptraceError: in place of the errors with which networks refuse.
    """
    try:
        with quiet():
            yield
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        height, width = size
        raise SptraceError(
            f"{model} does not take pictures of {height} x {width} pixels ({first_line(error)}): "
            "choose another --size"
        ) from error


def assemble(
    module: nn.Module,
    *,
    model: str,
    preprocessing: Preprocessing,
    weights: str,
    labels: tuple[str, ...] | None = None,
    link: str | None = None,
) -> Network:
    """Freeze a network, see that it is an image classifier, and record it.

    Arguments:
        module: with its weights loaded.
        model: as the user wrote it.
        preprocessing: as in the record.
        weights: where they came from.
        labels: one name per class, where the source of the weights has them; left out if the network has another
            number of classes.
        link: as in the record.

    Raises:
        SptraceError: the module does not run at its size, or gives something else than [N, classes] or [N].
    """
    module.eval().requires_grad_(False)
    with at_size(model, preprocessing.size), torch.no_grad():
        answer = module(torch.zeros(1, 3, *preprocessing.size))
    try:
        output: Any = logits_of(answer)
    except UnsupportedError:  # of several tensors none is the logits
        output = answer
    if isinstance(output, Tensor) and output.numel() == 1:
        output = output.reshape(1, 1)  # one output a picture may come as [N]
    if not isinstance(output, Tensor) or output.ndim != 2:
        gives = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise SptraceError(
            f"{model} is no image classifier: for one picture it gives {gives}, not [1, classes]"
        )
    if labels is not None and len(labels) != output.shape[-1]:
        labels = None
    return Network(module, model, preprocessing, labels, weights, link)
