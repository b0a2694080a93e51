"""A loop as one node of a torch.fx graph: the file holds its body once, whatever the number of rounds."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn


class Loop(nn.Module):
    """Runs a graph several times, feeding what it returns back into it.

    Arguments:
        body: called as body(index, *carried, *fixed) with index int64 [], the number of the round; returns the new
            `carried` as a tuple, in the same shapes.
        carried: how many tensors are carried from round to round.
    """

    def __init__(self, body: fx.GraphModule, carried: int) -> None:
        super().__init__()
        self.body = body
        self.carried = carried

    def forward(self, rounds: Tensor | int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run `rounds` times; `tensors` are the first round's `carried`, then the `fixed`."""
        carried, fixed = tensors[: self.carried], tensors[self.carried :]
        for index in range(int(rounds)):
            carried = self.body(torch.tensor(index), *carried, *fixed)
        return carried
