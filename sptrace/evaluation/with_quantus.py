"""Those of the paper's metrics that are Quantus's own (Hedstroem et al., arXiv 2202.06861), one picture at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sptrace.errors import SptraceError
from sptrace.evaluation.methods import Method
from sptrace.evaluation.predictor import Predictor

if TYPE_CHECKING:
    from torch import nn

SENSITIVITY_DRAWS = 10
NOISE = 0.02
"""Of max sensitivity: uniform in [-0.02, 0.02] on pixels in [-1, 1]."""


def max_sensitivity(
    predict: Predictor,
    image: NDArray[np.float32],
    target: int,
    attribution: NDArray[np.float32],
    seed: int,
    method: Method,
) -> float:
    """The largest relative change of the attribution under small noise. Lower is better.

    Yeh et al., arXiv 1901.09392.
    """
    metric = _metric("MaxSensitivity", nr_samples=SENSITIVITY_DRAWS, lower_bound=NOISE)
    return _call(metric, predict, image, target, attribution, seed, method)


def random_logit(
    predict: Predictor,
    image: NDArray[np.float32],
    target: int,
    attribution: NDArray[np.float32],
    seed: int,
    method: Method,
    classes: int,
) -> float:
    """Pearson's correlation with the attribution of another class (Sixt et al., arXiv 1912.09818). Lower is better."""
    import quantus

    metric = _metric(
        "RandomLogit",
        num_classes=classes,
        seed=seed,
        similarity_func=quantus.correlation_pearson,
        normalise=False,
    )
    return _call(metric, predict, image, target, attribution, seed, method)


def _metric(name: str, **settings: Any) -> Any:
    try:
        import quantus
    except ImportError as error:
        raise SptraceError(
            f"quantus cannot be imported ({error}): pip install quantus, and where libGL is missing "
            "apt install libgl1; or leave its metrics out (--metrics)"
        ) from error
    return getattr(quantus, name)(disable_warnings=True, display_progressbar=False, **settings)


def _call(
    metric: Any,
    predict: Predictor,
    image: NDArray[np.float32],
    target: int,
    attribution: NDArray[np.float32],
    seed: int,
    method: Method,
) -> float:
    """What Quantus says; nan where an attribution is 0 everywhere."""
    if not attribution.any():
        return float("nan")
    with _seeded(seed) as before:

        def explain(
            *, inputs: NDArray[np.float32], targets: NDArray[np.int64], **_: object
        ) -> NDArray[np.float32]:
            with _meanwhile(before):
                answer = method.explain(inputs.astype(np.float32), targets.astype(np.int64))
            if not answer.any():
                raise _BlankError
            return answer

        try:
            [score] = metric(
                model=_module(predict),
                x_batch=image[None],
                y_batch=np.array([target]),
                a_batch=attribution[None],
                explain_func=explain,
                explain_func_kwargs={},
                device="cpu",
                channel_first=True,
                softmax=False,
            )
        except _BlankError:
            return float("nan")
    return float(score)


class _BlankError(Exception):
    """An attribution is 0 everywhere, as Grad-CAM's can be: Quantus has no answer."""


_GENERATOR = threading.Lock()
"""Quantus draws from NumPy's global generator, which all threads share."""


@contextmanager
def _seeded(seed: int) -> Iterator[Any]:
    """The generator is this thread's alone and starts from the seed; yields its state of before, which comes back."""
    with _GENERATOR:
        before = np.random.get_state()
        np.random.seed(seed)
        try:
            yield before
        finally:
            np.random.set_state(before)


@contextmanager
def _meanwhile(before: Any) -> Iterator[None]:
    """Inside of `_seeded`: other threads may have the generator, in its state of before."""
    ours = np.random.get_state()
    np.random.set_state(before)
    _GENERATOR.release()
    try:
        yield
    finally:
        _GENERATOR.acquire()
        np.random.set_state(ours)


@cache
def _module(predict: Predictor) -> nn.Module:
    """The network as Quantus wants it."""
    import torch
    from torch import nn

    class Network(nn.Module):
        """Asks onnxruntime."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            """Logits of images, float32 [N, 3, H, W]."""
            return torch.from_numpy(predict(image.detach().numpy().astype(np.float32)))

    return Network().eval()
