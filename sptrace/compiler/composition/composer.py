"""What compositions are written with: graphs that contain the pullback, and loops around it."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from sptrace.compiler.assemble import Assembled
from sptrace.compiler.graph.builder import GraphBuilder, placeholder, static_shape
from sptrace.compiler.graph.facts import facts, record
from sptrace.compiler.graph.loop import Loop
from sptrace.compiler.graph.results import give, results
from sptrace.compiler.graph.sizes import BATCHES

aten = torch.ops.aten

Values = tuple[Any, ...]


@dataclass(frozen=True)
class Pulled:
    """What the pullback gives at a picture.

    Arguments:
        attribution: of the image's shape.
        chosen: what is explained, to be handed to later pulls: the target resolved, or the direction.
        answers: what else a program outputs of the image itself: logits and, with a layer, activation.
        at_layer: for class activation maps, the layer's features and their cotangent.
    """

    attribution: fx.Node
    chosen: fx.Node
    answers: dict[str, fx.Node]
    at_layer: dict[str, fx.Node]


class Composer(GraphBuilder):
    """Builds a new graph module from its inputs on.

    Arguments:
        assembled: the pullback that is composed.
    """

    def __init__(self, assembled: Assembled) -> None:
        super().__init__(fx.GraphModule(nn.Module(), fx.Graph()))
        self.pullback = assembled.module
        self._results = results(self.pullback.graph)

    def input(self, name: str, values: Values, default: float | None = None) -> fx.Node:
        """An input of the graph; with a default it may be left out."""
        node = self.graph.placeholder(
            name, default_value=inspect.Signature.empty if default is None else default
        )
        record(node, replace(self._facts, values=values))
        return node

    def image_and_neuron(self) -> tuple[fx.Node, fx.Node]:
        """The two inputs that every program has: image, and target or direction."""
        image = self.input_like_image("image")
        # Its `target` is what it was called, its `name` may differ: a constant of the network can be called so too.
        return image, self.input(str(self._neuron.target), facts(self._neuron).values)

    def input_like_image(self, name: str) -> fx.Node:
        """An input of the image's shape."""
        return self.input(name, facts(placeholder(self.pullback.graph, "image")).values)

    def input_like_chosen(self) -> fx.Node:
        """An input for what is explained: a target, or a direction."""
        return self.input("chosen", facts(self._neuron).values)

    def inputs_like_answers(self) -> dict[str, fx.Node]:
        """An input for each of the `answers` of a pull."""
        return {name: self.input(name, facts(self._results[name]).values) for name in self._answers}

    def no_answers(self, image: fx.Node) -> list[fx.Node]:
        """Zeros in the shapes of the answers: what a loop carries before its first round."""
        batch = self.call(aten.sym_size.int, image, 0)
        zero = self.constant("zero", torch.zeros(1, 1))
        sizes = [static_shape(self._results[name], [1]) for name in self._answers]
        return [self.call(aten.expand.default, zero, [batch, units]) for (units,) in sizes]

    def choose(
        self, condition: fx.Node, yes: Mapping[str, fx.Node], no: Mapping[str, fx.Node]
    ) -> dict[str, fx.Node]:
        """Answers: `yes` where the condition holds, else `no`."""
        return {name: self.call(aten.where.self, condition, yes[name], no[name]) for name in yes}

    def share(self, path: str) -> fx.Node:
        """The pullback's constant of this path."""
        self._share(path)
        node = self.graph.get_attr(path)
        record(node, replace(self._facts, values=self.constant_values(path)))
        return node

    def constant_values(self, path: str) -> Values:
        """`values` of the pullback's constant of this path."""
        return (self.pullback.get_buffer(path).to("meta"),) * len(BATCHES)

    def pull(
        self,
        image: fx.Node,
        chosen: fx.Node,
        parameters: Mapping[str, fx.Node] = MappingProxyType({}),
    ) -> Pulled:
        """The pullback at `image` of what `chosen` names, with values for the parameters that were lifted.

        Constants are shared.
        """
        copied: dict[fx.Node, fx.Node] = {}
        given: dict[Any, fx.Node] = {"image": image, self._neuron.target: chosen, **parameters}
        for node in self.pullback.graph.nodes:
            if node.op == "placeholder":
                copied[node] = given[node.target]
            elif node.op != "output":
                if node.op == "get_attr":
                    self._share(str(node.target))
                copied[node] = self.graph.node_copy(node, lambda argument: copied[argument])
                record(copied[node], facts(node))
        given_back = {name: copied[node] for name, node in self._results.items()}
        return Pulled(
            given_back["attribution"],
            given_back["chosen"],
            {name: given_back[name] for name in self._answers},
            {name: given_back[name] for name in ("features", "cotangent") if name in given_back},
        )

    @property
    def _neuron(self) -> fx.Node:
        """The pullback's second input."""
        _, second, *_ = (node for node in self.pullback.graph.nodes if node.op == "placeholder")
        assert isinstance(second, fx.Node)
        return second

    @property
    def _answers(self) -> list[str]:
        return [name for name in ("logits", "activation") if name in self._results]

    def loop(
        self, body: fx.GraphModule, rounds: fx.Node, carried: Sequence[fx.Node], fixed: Sequence[fx.Node]
    ) -> list[fx.Node]:
        """Run `body` `rounds` times (see `Loop`); returns what is carried out of the last round."""
        name = f"loop_{sum(isinstance(child, Loop) for child in self.module.children())}"
        self.module.register_module(name, Loop(body, len(carried)))
        node = self.graph.call_module(name, (rounds, *carried, *fixed))
        record(
            node,
            replace(self._facts, values=tuple(zip(*(facts(state).values for state in carried), strict=True))),
        )
        return [self.call(operator.getitem, node, index) for index in range(len(carried))]

    def rounds(
        self,
        body: fx.GraphModule,
        count: fx.Node,
        image: fx.Node,
        neuron: fx.Node,
        fixed: Sequence[fx.Node],
        *,
        logits_out: bool = False,
    ) -> tuple[fx.Node, dict[str, fx.Node]]:
        """A loop that carries a sum of the image's shape, what is explained, and the answers of the first round.

        Returns the sum after the last round, and the answers; among them the last round's logits_out if asked for.
        """
        nothing = dict(zip(self._answers, self.no_answers(image), strict=True))
        if logits_out:
            nothing["logits_out"] = nothing["logits"]
        state = [self.call(aten.zeros_like.default, image), neuron, *nothing.values()]
        total, _, *answers = self.loop(body, count, state, fixed)
        return total, dict(zip(nothing, answers, strict=True))

    def outputs(self, **named: fx.Node) -> fx.GraphModule:
        """Close the graph. Its output is a tuple; the names are kept for the file."""
        give(self.graph, named)
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
