"""Attention matrices become constants of the picture: only the values that they weigh carry the cotangent."""

from __future__ import annotations

import torch
from torch import fx

from sptrace.artifact.softening import GateRule, Relative, Softening
from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import GraphBuilder, depends_on, placeholder
from sptrace.compiler.graph.facts import Target, facts
from sptrace.compiler.graph.views import RESHAPES

aten = torch.ops.aten

REARRANGEMENTS: set[Target] = RESHAPES | {
    aten.transpose.int,
    aten.permute.default,
    aten.expand.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.linear.default,
    aten.conv2d.default,
}
"""What may stand between the softmax and the product: another order, or a mixture of heads ("talking heads")."""

PRODUCTS: set[Target] = {aten.matmul.default, aten.bmm.default}


def soften_attention(module: fx.GraphModule, softening: Softening) -> list[str]:
    """Find the softmaxes that are attention matrices; returns the module path of each.

    Before:  a = softmax(logits, -1); y = matmul(a, v)
    After:   a = softmax(logits, -1); s = softmax(logits / tau, -1); y = gates.attend(a, s, v, True)

    A softmax is an attention matrix if, perhaps after rearrangements, it is one factor of a product of matrices whose
    other factor depends on the image too. One that is multiplied element by element or summed gates something else.
    With rule `full` the graph stays as it is.
    """
    dependent = depends_on(module.graph, placeholder(module.graph, "image"))
    builder = GraphBuilder(module)
    paths = []
    for node in list(module.graph.nodes):
        if node.target != aten.softmax.int or node not in dependent:
            continue
        chain = _chain(node)
        products = [
            user
            for user in module.graph.nodes
            if user.target in PRODUCTS
            and sum(argument in chain for argument in user.args) == 1
            and all(argument in dependent for argument in user.args)
        ]
        if not products:
            continue
        path = str(facts(node).path)
        rule = softening.gate("attention", path)
        if rule.rule != "full":
            _attend(builder, node, chain, products, rule)
        paths.append(path)
    return paths


def _chain(softmax: fx.Node) -> set[fx.Node]:
    """The softmax and what is only a rearrangement of it."""
    chain = {softmax}
    waiting = [softmax]
    while waiting:
        for user in waiting.pop().users:
            if user.target in REARRANGEMENTS and user not in chain and user.args[0] in chain:
                chain.add(user)
                waiting.append(user)
    return chain


def _attend(
    builder: GraphBuilder, softmax: fx.Node, chain: set[fx.Node], products: list[fx.Node], rule: GateRule
) -> None:
    softened = {node: node for node in chain}
    assert not isinstance(rule.tau, Relative)
    if rule.tau is not None and rule.tau != 1:
        # The same chain once more from the softened logits; what of it nobody reads is dropped as dead code.
        for node in builder.graph.nodes:
            if node not in chain:
                continue
            with builder.graph.inserting_before(node), builder.origin(node, adjoint=True):
                arguments = [softened.get(arg, arg) if isinstance(arg, fx.Node) else arg for arg in node.args]
                if node is softmax:
                    arguments[0] = builder.call(aten.mul.Tensor, node.args[0], 1 / rule.tau)
                softened[node] = builder.call(node.target, *arguments, **node.kwargs)
    for product in products:
        first, second = product.args
        assert isinstance(first, fx.Node)
        assert isinstance(second, fx.Node)
        left = first in chain
        matrix, value = (first, second) if left else (second, first)
        with builder.replacing(product):
            attended = builder.call(
                gates.attend, matrix, softened[matrix], value, left, rule=rule.rule, tau=rule.tau
            )
        builder.replace(product, attended)
