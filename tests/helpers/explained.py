"""What a compiled `gradient` should be, computed beside it in float64 by PyTorch alone."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import sptrace
from helpers.small_networks import images


def assert_gradient(network: nn.Module, plain: Callable[[Tensor], Tensor], *, size: int = 16) -> None:
    """Program `gradient` of the network must be autograd of `plain`, float64, on pictures the compiler has not seen.

    Arguments:
        network: compiled.
        plain: the same function without what is in the way of autograd; takes and gives float64.
        size: of the pictures.
    """
    program = sptrace.compile(network, images(1, size), program="gradient")
    unseen = images(3, size, seed=7)
    targets = torch.tensor([0, 1, 2])
    session = onnxruntime.InferenceSession(io.BytesIO(program.onnx_model).getvalue())
    attribution, logits = session.run(
        ["attribution", "logits"], {"image": unseen.numpy(), "target": targets.numpy()}
    )
    leaf = unseen.double().requires_grad_()
    with torch.enable_grad():
        answer = plain(leaf)
        (wanted,) = torch.autograd.grad(answer.gather(1, targets[:, None]).sum(), leaf)
    scale = float(wanted.abs().max())
    assert scale > 0
    np.testing.assert_allclose(logits, answer.detach(), rtol=0, atol=1e-5 * float(answer.abs().max()))
    np.testing.assert_allclose(attribution, wanted, rtol=0, atol=2e-5 * scale)
