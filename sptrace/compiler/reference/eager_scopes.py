"""Where in the network the reference is, and how large the numbers there are: for overrides and relative temperatures.

Like `reference.eager` this shares no code with the compiler.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Scopes:
    """The path of the module whose forward is running, and the scales of its gates' inputs.

    Arguments:
        pictures: how many there are in the batch.
        known: the scale of every relative gate in the order of the calls, measured before. None: each picture's own.
    """

    def __init__(self, pictures: int, known: list[float] | None = None) -> None:
        self.pictures = pictures
        self.known = None if known is None else iter(known)
        self.seen: list[Tensor] = []
        self._stack = [""]

    @property
    def path(self) -> str:
        """Of the innermost module that runs."""
        return self._stack[-1]

    @contextmanager
    def following(self, module: nn.Module) -> Iterator[None]:
        """Within this context `path` follows the module's forward."""
        handles = []
        for name, child in module.named_modules():
            handles.append(child.register_forward_pre_hook(lambda *_, name=name: self._stack.append(name)))
            handles.append(child.register_forward_hook(lambda *_: self._leave(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self) -> None:
        self._stack.pop()

    def temperature(self, z: Tensor, factor: float, unit: str) -> Tensor | float:
        """`factor` times the scale of z: a number a picture that broadcasts over z, or one for all."""
        rows = z.reshape(self.pictures, -1)
        if unit == "std":
            own = rows.std(1, correction=0)
        else:
            own = torch.linalg.vector_norm(rows.relu(), dim=1) / math.sqrt(rows.shape[1])
        own = own.clamp(min=1e-12)
        self.seen.append(own)
        if self.known is not None:
            return factor * next(self.known)
        repeated = own.repeat_interleave(z.shape[0] // self.pictures)
        return factor * repeated.view(-1, *[1] * (z.ndim - 1))
