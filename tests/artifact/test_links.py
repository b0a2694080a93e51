"""Probabilities by numpy against torch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sptrace.artifact.links import LINKS, check_link, is_pair, probabilities, scores
from sptrace.errors import SptraceError

LOGITS = np.array([[0.3, -1.2, 2.5], [20.0, 0.0, -20.0], [-40.0, 40.0, 39.0], [1e4, -1e4, 0.0]], np.float32)


def test_softmax() -> None:
    given = probabilities("softmax", LOGITS, None)
    assert given is not None
    assert given.dtype == np.float32
    wanted = torch.from_numpy(LOGITS).double().softmax(1)
    np.testing.assert_allclose(given, wanted, rtol=1e-6, atol=1e-37)


def test_sigmoid() -> None:
    given = probabilities("sigmoid", LOGITS, None)
    assert given is not None
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, torch.from_numpy(LOGITS).double().sigmoid(), rtol=3e-6, atol=1e-37)


@pytest.mark.parametrize("margin", [0.5, 14.0, 20.0, 40.0])
def test_one_logit_for_two_classes(margin: float) -> None:
    logits = np.array([[margin], [-margin]], np.float32)
    both = torch.tensor([[-margin, margin], [margin, -margin]], dtype=torch.float64)
    np.testing.assert_array_equal(scores("sigmoid", logits, ("no", "yes")), both)
    given = probabilities("sigmoid", logits, ("no", "yes"))
    np.testing.assert_allclose(given, both.sigmoid(), rtol=3e-6)  # type: ignore[arg-type]


def test_one_logit_with_one_name_or_none_has_one_probability() -> None:
    logits = np.array([[2.0]], np.float32)
    for labels in (None, ("yes",)):
        assert not is_pair(1, labels)
        given = probabilities("sigmoid", logits, labels)
        np.testing.assert_allclose(given, [[0.8807970779778823]], rtol=1e-6)  # type: ignore[arg-type]


def test_probabilities_already() -> None:
    given = np.array([[0.25], [0.875]], np.float32)
    np.testing.assert_array_equal(probabilities("identity", given, None), given)  # type: ignore[arg-type]
    both = [[0.75, 0.25], [0.125, 0.875]]
    np.testing.assert_array_equal(probabilities("identity", given, ("no", "yes")), both)  # type: ignore[arg-type]
    np.testing.assert_array_equal(scores("identity", given, ("no", "yes")), both)


def test_plain_values_have_none() -> None:
    assert probabilities("none", LOGITS, None) is None
    np.testing.assert_array_equal(scores("none", LOGITS, None), LOGITS)


def test_a_link_that_is_none_is_refused() -> None:
    for link in LINKS:
        check_link(link)
    with pytest.raises(
        SptraceError, match="there is no link 'logit': use one of softmax, sigmoid, identity, none"
    ):
        check_link("logit")
