"""Layers of a network by their paths: which there are, and how to read what they give while the network is traced."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from sptrace.errors import SptraceError, UnsupportedError


def find(network: nn.Module, path: str) -> nn.Module:
    """The module of that path.

    Raises:
        SptraceError: there is none; the message names paths like it.
    """
    modules: dict[str, nn.Module] = dict(network.named_modules(remove_duplicate=False))
    if path in modules and path:
        return modules[path]
    known = [name for name in modules if name]
    close = difflib.get_close_matches(path, known, n=3)
    advice = f"did you mean {' or '.join(close)}?" if close else "give a path of model.named_modules()"
    raise SptraceError(f"the network has no layer {path!r}: {advice}")


class Reading:
    """What a layer gave while the network ran.

    Arguments:
        path: of the layer.
        of_graph: is the network a graph, or does it contain one?
    """

    def __init__(self, path: str, of_graph: bool) -> None:
        self.path = path
        self.of_graph = of_graph
        self._outputs: list[Any] = []

    def begin(self, network: nn.Module, inputs: object) -> None:
        """Forget earlier runs: only the last one counts."""
        self._outputs = []

    def read(self, layer: nn.Module, inputs: object, output: Any) -> Any:
        """Keep a copy of the layer's output, and let the network go on with a copy of that.

        So the copy lies on the way from image to logits, and an in-place op that follows does not overwrite it.
        """
        self._outputs.append(output.clone() if isinstance(output, Tensor) else output)
        return self._outputs[-1].clone() if isinstance(output, Tensor) else output

    def both(self, network: nn.Module, inputs: object, answer: Any) -> Any:
        """The network's answer and, if there is one, the layer's output."""
        return (answer, self._outputs[0]) if self._complaint() is None else answer

    def require(self) -> None:
        """Refuse a layer that gave no tensor, or several.

        Raises:
            SptraceError: says what to choose instead.
        """
        complaint = self._complaint()
        if complaint is not None:
            raise SptraceError(complaint)

    def _complaint(self) -> str | None:
        if not self._outputs:
            advice = (
                "a graph made by torch.export calls none, compile the network as it was before the export"
                if self.of_graph
                else "choose another one, around it or near it"
            )
            return f"the network never calls {self.path!r} as a module: {advice}"
        if len(self._outputs) > 1:
            return (
                f"the network calls {self.path!r} {len(self._outputs)} times, so that it is not clear which call is "
                "meant: choose the module around one of them"
            )
        if not isinstance(self._outputs[0], Tensor):
            kind = type(self._outputs[0]).__name__
            return f"the layer {self.path!r} gives no tensor but a {kind}: choose a module inside or after it"
        return None


@contextmanager
def reading(network: nn.Module, path: str | None) -> Iterator[Reading | None]:
    """Within this context the network answers with the pair (its own answer, output of the layer at `path`).

    If the layer is called never or several times, or gives no tensor, the network's answer is its own, and
    `Reading.require` tells. Nothing of this stays behind. A path of None changes nothing.

    Raises:
        SptraceError: there is no such layer.
    """
    if path is None:
        yield None
        return
    layer = find(network, path)
    found = Reading(path, any(isinstance(module, fx.GraphModule) for module in network.modules()))
    hooks = [
        network.register_forward_pre_hook(found.begin),
        layer.register_forward_hook(found.read),
        network.register_forward_hook(found.both),
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def of_maps(network: nn.Module, example: Tensor) -> list[str]:
    """Paths of layers whose output may be a map of features, those that finish last first.

    Such a layer is a convolution, or has convolutions or linear layers inside; it is called once, is not the network
    itself, and gives [N, C, H, W], [N, H, W, C] or tokens, of more than one place. Of layers that give the same the
    outermost stands for all ("layer4" of a ResNet).

    Arguments:
        network: in eval mode.
        example: float32 [N, 3, H, W]; the network is run on it.

    Raises:
        UnsupportedError: the network does not run.
    """
    finished: list[tuple[str, Tensor]] = []

    def note(path: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim in (3, 4) and sum(n > 1 for n in output.shape[1:]) > 1:
            finished.append((path, output.detach().clone()))  # what follows may work in place

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, path=path: note(path, output))
        for path, module in network.named_modules()
        if path and _mixes(module)
    ]
    try:
        with torch.no_grad():
            network(example[:1].clone())
    except Exception as error:  # whatever the network's own code raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UnsupportedError(f"the network cannot run the example: {reason}") from error
    finally:
        for hook in hooks:
            hook.remove()
    calls = Counter(path for path, _ in finished)
    once = [(path, output) for path, output in reversed(finished) if calls[path] == 1]
    return [
        path
        for number, (path, output) in enumerate(once)
        if number == 0 or not torch.equal(output, once[number - 1][1])
    ]


def _mixes(module: nn.Module) -> bool:
    """Is it a convolution, or are there convolutions or linear layers inside?"""
    inside = [inner for inner in module.modules() if inner is not module]
    return isinstance(module, _ConvNd) or any(isinstance(inner, _ConvNd | nn.Linear) for inner in inside)
