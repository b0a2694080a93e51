"""Parameters become inputs, so that a program can vary them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from sptrace.compiler.graph.facts import facts, record


def lift_parameters(module: fx.GraphModule, names: Mapping[str, str]) -> dict[str, str]:
    """Replace the constants that are parameters by inputs of the graph; returns input -> path of the constant.

    Before:  w = self.features.0.weight
    After:   w = input("parameter_0"), after the other inputs; the constant itself stays in the module

    Arguments:
        module: as `capture.from_torch` gives it.
        names: path of a constant -> name of the parameter that it is. Paths of one name share an input.
    """
    last = [node for node in module.graph.nodes if node.op == "placeholder"][-1]
    inputs: dict[str, fx.Node] = {}
    lifted: dict[str, str] = {}
    for node in list(module.graph.nodes):
        if node.op != "get_attr" or node.target not in names:
            continue
        name = names[node.target]
        if name not in inputs:
            with module.graph.inserting_after(last):
                last = inputs[name] = module.graph.placeholder(f"parameter_{len(inputs)}")
            record(last, facts(node))
            lifted[str(last.target)] = node.target
        node.replace_all_uses_with(inputs[name])
        module.graph.erase_node(node)
    return lifted
