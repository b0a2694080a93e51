"""Half precision for what GPUs compute fast in it, single precision for what needs the digits or the range."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, fx

from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import GraphBuilder, parameter, place, propagate
from sptrace.compiler.graph.facts import Target, facts

aten = torch.ops.aten

PRODUCTS: set[Target] = {
    aten.addmm.default,
    aten.baddbmm.default,
    aten.bmm.default,
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
    aten.convolution.default,
    aten.linear.default,
    aten.matmul.default,
    aten.mm.default,
    aten.mv.default,
    gates.attend,
}
"""Always half; GPUs add such products up in single precision."""

FOLLOWING: set[Target] = {
    aten.add.Tensor,
    aten.avg_pool2d.default,
    aten.cat.default,
    aten.clamp_max.default,
    aten.clamp_min.default,
    aten.constant_pad_nd.default,
    aten.erf.default,
    aten.expand.default,
    aten.flip.default,
    aten.hardsigmoid.default,
    aten.index_select.default,
    aten.max_pool2d.default,
    aten.maximum.default,
    aten.minimum.default,
    aten.mul.Tensor,
    aten.neg.default,
    aten.permute.default,
    aten.relu.default,
    aten.reshape.default,
    aten.select.int,
    aten.sigmoid.default,
    aten.slice.Tensor,
    aten.squeeze.dim,
    aten.stack.default,
    aten.sub.Tensor,
    aten.t.default,
    aten.tanh.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.upsample_nearest2d.default,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
    aten.where.self,
    aten.zeros_like.default,
    gates.amax,
    gates.elu,
    gates.erf_gelu,
    gates.gelu,
    gates.glu,
    gates.hardswish,
    gates.hardtanh,
    gates.leaky_relu,
    gates.max_pool2d,
    gates.relu,
    gates.silu,
}
"""Half where anything half is read, or constants alone. All other ops - norms, softmax, exp, quotients, roots, sums,
comparisons - stay in single precision."""


def halve(module: fx.GraphModule) -> int:
    """Compute in half precision; returns how many ops do. Inputs and outputs keep their dtypes.

    Before:  y = layer_norm(conv2d(x, w)), x and w in single precision
    After:   y = layer_norm(to(conv2d(to(x, half), w), single)), w in half precision

    The range of half precision must suffice: at most 65504, and 6e-8 before numbers vanish.
    """
    return _Halving(module).run()


class _Halving:
    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._builder = GraphBuilder(module)
        self._casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
        self._constants: dict[fx.Node, fx.Node] = {}

    def run(self) -> int:
        count = 0
        graph = self._module.graph
        outputs = [facts(node).values for node in next(iter(reversed(graph.nodes))).all_input_nodes]
        for node in list(graph.nodes):
            if node.op == "output":
                self._restore(node, outputs)
            elif node.op == "call_function":
                dtype = self._dtype(node)
                with graph.inserting_before(node):
                    cast = partial(self._as, dtype=dtype)
                    node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), cast)
                propagate(node)
                count += dtype == torch.float16
        graph.eliminate_dead_code()
        self._name_constants()
        return count

    def _dtype(self, node: fx.Node) -> torch.dtype:
        if node.target in PRODUCTS:
            return torch.float16
        if _compares_maxima(node):
            return torch.float32
        if node.target in FOLLOWING:
            computed = [item for item in node.all_input_nodes if _is_floating(item) and item.op != "get_attr"]
            if not any(facts(item).first.dtype == torch.float32 for item in computed):
                return torch.float16
            if any(facts(item).first.dtype == torch.float16 for item in computed):
                return torch.float16
        return torch.float32

    def _as(self, item: fx.Node, dtype: torch.dtype) -> fx.Node:
        """The node in this precision, if it holds real numbers."""
        if not _is_floating(item) or facts(item).first.dtype == dtype:
            return item
        if (item, dtype) not in self._casts:
            with self._builder.origin(item, adjoint=facts(item).adjoint):
                if item.op == "get_attr":
                    data = parameter(self._module, item).to(dtype)
                    cast = self._constants[item] = self._builder.constant(f"{item.target}_half", data)
                else:
                    cast = self._builder.call(aten.to.dtype, item, dtype)
            self._casts[item, dtype] = cast
        return self._casts[item, dtype]

    def _name_constants(self) -> None:
        """Constants of which only the half is read take the name of the whole."""
        read = {node.target for node in self._module.graph.nodes if node.op == "get_attr"}
        for whole, half in self._constants.items():
            if whole.target not in read:
                data = parameter(self._module, half)
                for path in (str(whole.target), str(half.target)):
                    owner, _, leaf = path.rpartition(".")
                    delattr(self._module.get_submodule(owner), leaf)
                half.target = place(self._module, str(whole.target), data)

    def _restore(self, output: fx.Node, wanted: list[tuple[Tensor, ...]]) -> None:
        dtypes = {node: values[0].dtype for node, values in zip(output.all_input_nodes, wanted, strict=True)}
        with self._module.graph.inserting_before(output):
            output.args = fx.node.map_arg(output.args, lambda item: self._as(item, dtypes[item]))


def _compares_maxima(node: fx.Node) -> bool:
    """A hard max pool finds its maximum by equality: both sides must come from the very same numbers."""
    if node.target == aten.constant_pad_nd.default:
        return bool(node.args[2:] == (float("-inf"),))
    return node.target is gates.max_pool2d and bool(node.kwargs["rule"] == "hard")


def _is_floating(node: fx.Node) -> bool:
    given = facts(node).first
    return isinstance(given, Tensor) and given.is_floating_point()
