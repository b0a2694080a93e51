"""What a network's outputs are, from what it ends in, what it gives, and what the user says."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from sptrace.artifact.description import Preprocessing
from sptrace.artifact.links import Outputs, check_link, is_pair
from sptrace.compiler.graph.builder import static_shape
from sptrace.compiler.graph.facts import facts
from sptrace.errors import SptraceError, SptraceWarning
from sptrace.passes.take_off_link import answer, find_link, is_squeezed, made_of, take_off_link

SUMS_TO_ONE = 1e-4
"""How far rows of float32 probabilities may be from a sum of 1."""


def read_outputs(
    captured: fx.GraphModule,
    pictures: Tensor,
    asked: str | None,
    keep_link: bool,
    labels: Sequence[str] | None,
) -> Outputs:
    """Find the link, and take a softmax or sigmoid off the graph's end unless it is to be kept.

    | the network ends in | taken off | link |
    |---|---|---|
    | softmax, log_softmax, called or written out | yes | softmax |
    | one of two classes of a softmax, sigmoid, logsigmoid | yes | sigmoid |
    | probabilities made otherwise: rows of non-negative numbers that sum to 1 | no | identity |
    | softmaxes or sigmoids and further arithmetic that gives no such rows | no | none |
    | the same of other bounded functions (tanh, clamp), all of it in [0, 1] | no | none |
    | anything else with two outputs or more | no | softmax |
    | anything else with one output | no | none |

    What is kept gives probabilities, "identity"; but a log_softmax "softmax", which undoes it, and a logsigmoid plain
    values.

    Arguments:
        captured: the network's graph; its output changes where something is taken off.
        pictures: as the network takes them, float32 [N, 3, H, W]: what it gives for them is looked at.
        asked: the link that the user or the network's source names, one of `LINKS`; "identity" and "none" keep what the
            network ends in. None: nobody says.
        keep_link: keep what the network ends in.
        labels: class names; two for one output make that a pair.

    Warns:
        SptraceWarning: nobody says the link, and the outputs are computed of probabilities in a way that stays.

    Raises:
        SptraceError: what is asked cannot be, or labels do not fit.
        UnsupportedError: the network ends in a softmax over one class.
    """
    check_link(asked, keep_link)
    (count,) = static_shape(answer(captured), [1])
    tail = find_link(captured)
    keeps = keep_link or asked in ("identity", "none")
    if tail is not None and asked in ("softmax", "sigmoid") and asked != tail.link:
        raise SptraceError(f"the network ends in {tail.name}, which is no {asked}: leave the link out")
    if tail is not None and not keeps:
        take_off_link(captured, tail)
        link = tail.link
    elif tail is not None:
        link = asked if asked in ("identity", "none") else KEPT[tail.name]
    else:
        link = asked or _guessed(captured, count, pictures)
    if link == "softmax" and count == 1:
        raise SptraceError("the softmax of one output is 1 for every picture: use the link sigmoid, or none")
    if asked == "identity" and tail is None and not _within_unit(_given(captured, pictures)):
        raise SptraceError(
            "the network's outputs are no probabilities, some are below 0 or above 1: use another link"
        )
    pair = is_pair(count, labels)
    if pair and keeps and tail is not None and tail.name == "logsigmoid" and asked != "none":
        raise SptraceError(
            "two labels for the logarithm of one probability, which is kept: leave keep_link (--keep-link) out, and "
            "the logit stands for both"
        )
    _check_labels(labels, count, pair, link)
    return Outputs(link, None if tail is None or keeps else tail.name, pair)


KEPT = {"softmax": "identity", "sigmoid": "identity", "log_softmax": "softmax", "logsigmoid": "none"}
"""The link of what is not taken off."""


def _guessed(captured: fx.GraphModule, count: int, pictures: Tensor) -> str:
    made = made_of(captured)
    if made:
        where = facts(made[-1]).source
        warnings.warn(
            f"the outputs are computed of probabilities ({where}), and explained as they are: where the network is "
            "sure these hardly change, and float32 keeps few digits of how; let it return its logits, or end in the "
            "softmax or sigmoid",
            SptraceWarning,
            stacklevel=7,
        )
    if count == 1:
        return "none"
    given = _given(captured, pictures)
    sums = given.sum(1)
    if _within_unit(given) and bool(((sums - 1).abs() <= SUMS_TO_ONE).all()):
        return "identity"
    if made or (_within_unit(given) and is_squeezed(captured)):
        return "none"
    return "softmax"


def _given(captured: fx.GraphModule, pictures: Tensor) -> Tensor:
    with torch.no_grad():
        given = captured(pictures.clone())  # a network may work in place
    outputs = given[0] if isinstance(given, tuple) else given
    assert isinstance(outputs, Tensor)
    return outputs


def _within_unit(given: Tensor) -> bool:
    return bool(((given >= -SUMS_TO_ONE) & (given <= 1 + SUMS_TO_ONE)).all())


def _check_labels(labels: Sequence[str] | None, count: int, pair: bool, link: str) -> None:
    if labels is None or len(labels) == count or (pair and link in ("sigmoid", "identity")):
        return
    if pair:
        raise SptraceError(
            "two labels for one output: if it is the logit of a classifier of two classes, say so with "
            'link="sigmoid" (--link sigmoid)'
        )
    raise SptraceError(f"{len(labels)} labels for {count} classes: give one name per class")


def normalised(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Images as the network takes them."""
    if preprocessing.mean is None or preprocessing.std is None:
        return image
    low, high = preprocessing.input_range
    mean, std = (
        image.new_tensor(numbers).view(1, -1, 1, 1) for numbers in (preprocessing.mean, preprocessing.std)
    )
    return ((image - low) / (high - low) - mean) / std
