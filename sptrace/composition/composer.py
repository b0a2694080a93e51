"""What compositions are written with: graphs that contain the pullback, and loops around it."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from sptrace.assemble import Assembled, resolve_target
from sptrace.composition.loop import Loop
from sptrace.graph import BATCHES, GraphBuilder, placeholder

aten = torch.ops.aten

Values = tuple[Any, ...]


class Composer(GraphBuilder):
    """Builds a new graph module from its inputs on.

    Arguments:
        assembled: the pullback that is composed.
    """

    def __init__(self, assembled: Assembled) -> None:
        super().__init__(fx.GraphModule(nn.Module(), fx.Graph()))
        self.pullback = assembled.module
        self.classes = assembled.classes

    def input(self, name: str, values: Values, default: float | None = None) -> fx.Node:
        """An input of the graph; with a default it may be left out."""
        node = self.graph.placeholder(
            name, default_value=inspect.Signature.empty if default is None else default
        )
        node.meta = {**self._meta, "values": values}
        return node

    def image_and_target(self) -> tuple[fx.Node, fx.Node]:
        """The two inputs that every program has."""
        return self.input_like_pullbacks("image", "image"), self.input_like_pullbacks("target", "target")

    def input_like_pullbacks(self, name: str, as_its: str) -> fx.Node:
        """An input of the shape that the pullback's own input `as_its` has."""
        return self.input(name, placeholder(self.pullback.graph, as_its).meta["values"])

    def input_like_logits(self, name: str) -> fx.Node:
        """An input of the shape of the pullback's logits."""
        output = next(node for node in self.pullback.graph.nodes if node.op == "output")
        return self.input(name, output.args[0][1].meta["values"])

    def pull(self, image: fx.Node, target: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node]:
        """The pullback at `image`: attribution, logits, and the class that `target` names. Constants are shared."""
        copied: dict[fx.Node, fx.Node] = {}
        arguments = {"image": image, "target": target}
        for node in self.pullback.graph.nodes:
            if node.op == "placeholder":
                copied[node] = arguments[node.name]
            elif node.op == "output":
                attribution, logits = (copied[result] for result in node.args[0])
                return attribution, logits, resolve_target(self, target, logits)
            else:
                if node.op == "get_attr":
                    self._share(str(node.target))
                copied[node] = self.graph.node_copy(node, lambda argument: copied[argument])
                copied[node].meta = dict(node.meta)
        raise AssertionError("a graph without an output")

    def loop(
        self, body: fx.GraphModule, rounds: fx.Node, carried: Sequence[fx.Node], fixed: Sequence[fx.Node]
    ) -> list[fx.Node]:
        """Run `body` `rounds` times (see `Loop`); returns what is carried out of the last round."""
        name = f"loop_{sum(isinstance(child, Loop) for child in self.module.children())}"
        self.module.register_module(name, Loop(body, len(carried)))
        node = self.graph.call_module(name, (rounds, *carried, *fixed))
        node.meta = {
            **self._meta,
            "values": tuple(zip(*(state.meta["values"] for state in carried), strict=True)),
        }
        return [self.call(operator.getitem, node, index) for index in range(len(carried))]

    def no_logits(self, image: fx.Node) -> fx.Node:
        """Zeros in the shape of the logits: what a loop carries before its first round."""
        batch = self.call(aten.sym_size.int, image, 0)
        return self.call(aten.expand.default, self.constant("zero", torch.zeros(1, 1)), [batch, self.classes])

    def outputs(self, **results: fx.Node) -> fx.GraphModule:
        """Close the graph. Its output is a tuple; the names are kept for the file."""
        output = self.graph.output(tuple(results.values()))
        output.meta = {"names": tuple(results)}
        self.graph.eliminate_dead_code()
        self.graph.lint()
        self.module.recompile()
        return self.module

    def _share(self, path: str) -> None:
        """Give the new module the pullback's constant of this path."""
        owner_path, _, leaf = path.rpartition(".")
        owner: nn.Module = self.module
        for name in owner_path.split(".") if owner_path else []:
            if not hasattr(owner, name):
                owner.register_module(name, nn.Module())
            owner = owner.get_submodule(name)
        if not hasattr(owner, leaf):
            owner.register_buffer(leaf, self.pullback.get_submodule(owner_path).get_buffer(leaf))


def number(dtype: torch.dtype) -> Values:
    """`values` of an input that is one number."""
    return (torch.empty((), dtype=dtype, device="meta"),) * len(BATCHES)
