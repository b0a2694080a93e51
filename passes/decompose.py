"""Ops that PyTorch itself composes of others become those, unless a pass or the tables know them whole."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from sptrace.compiler.graph.builder import IN_ANOTHER_SHAPE, GraphBuilder
from sptrace.compiler.graph.facts import Target, facts
from sptrace.compiler.graph.sizes import BATCHES, size_of
from sptrace.passes.rewriting import replace_results

aten = torch.ops.aten

WHOLE = frozenset(
    """
    __and__ __or__ _convolution _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact2d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d alpha_dropout argsort
    avg_pool1d batch_norm bilinear cdist chunk clip concat concatenate contiguous conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity divide dropout einsum expand_as
    feature_alpha_dropout feature_dropout fix flatten grid_sampler group_norm gru gru_cell instance_norm
    layer_norm linear log_sigmoid log_softmax lstm lstm_cell mT matmul max max_pool1d max_pool2d max_pool3d min
    msort multiply nanquantile narrow negative numpy_T one_hot pad pairwise_distance positive prelu quantile
    relu6 repeat_interleave reshape reshape_as rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell rrelu
    scaled_dot_product_attention selu softmax special_erfc special_logit special_logsumexp special_sinc split
    square std std_mean subtract swapaxes swapdims tensor_split tile to true_divide type_as unflatten
    upsample_bicubic2d upsample_bilinear2d upsample_nearest2d var var_mean view_as where
    """.split()  # noqa: SIM905
)
"""Composed ops that stay what they are: a rule, an emitter or a later pass has them by name."""


SPOKEN: dict[Target, Target] = {aten.view.default: aten.reshape.default, **IN_ANOTHER_SHAPE}
"""Memory may lie in another order in the graph than where the parts were seen, and nothing there is in place."""


def decompose(module: fx.GraphModule) -> int:
    """Replace composed ops by what they are composed of; returns how many.

    Before:  y = hstack([a, b])        z = movedim(x, [1, 2], [3, 1])
    After:   y = cat([a, b], 1)        z = permute(x, [0, 2, 3, 1])

    PyTorch differentiates such an op through its parts, so the parts have its own subgradients. What they are is seen
    by running it without data, at each of `BATCHES`: a number that differs is a multiple of the batch size. An op that
    reads numbers of its input on the way stays.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if not is_composed(node.target) or not _gives_tensors(node):
            continue
        runs = [_run(node, index) for index in range(len(BATCHES))]
        first, second = runs
        if first is None or second is None or not first.is_alike(second):
            continue
        with builder.replacing(node):
            _replay(builder, node, first, second)
        count += 1
    return count


def is_composed(target: Target) -> bool:
    """Does PyTorch compose it of other ops, and does nothing here know it whole?"""
    return (
        isinstance(target, OpOverload)
        and target.namespace == "aten"
        and target._schema.name.removeprefix("aten::") not in WHOLE
        and torch._C._dispatch_has_kernel_for_dispatch_key(target._name, "CompositeImplicitAutograd")
    )


def _gives_tensors(node: fx.Node) -> bool:
    return all(isinstance(given, Tensor) for given in tree_leaves(facts(node).values))


@dataclass
class _Record:
    """What an op called: each call's op, arguments and result."""

    inputs: list[Tensor]
    calls: list[tuple[OpOverload, Sequence[Any], Mapping[str, Any], Any]] = field(default_factory=list)
    result: Any = None

    def is_alike(self, other: _Record) -> bool:
        """Are the same ops called, without a buffer for the result?"""
        return [call[0] for call in self.calls] == [call[0] for call in other.calls] and not any(
            argument.is_out for op, *_ in self.calls for argument in op._schema.arguments
        )


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, record: _Record) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._record = record

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._record.calls.append((func, args, kwargs, result))
        return result


def _run(node: fx.Node, index: int) -> _Record | None:
    """Run the op for a size of the batch; None if it reads numbers that are not there."""
    inputs: dict[fx.Node, Any] = {}
    changes = node.target._schema.is_mutable  # type: ignore[union-attr]
    with (
        torch.enable_grad()
    ):  # some ops have a shorter way, by a buffer for the result, where nobody differentiates
        for argument in node.all_input_nodes:
            given = facts(argument).values[index]
            if isinstance(given, Tensor):
                given = given.detach().requires_grad_(given.is_floating_point() and not changes)
            inputs[argument] = given
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), inputs.__getitem__)
        record = _Record(list(inputs.values()))
        try:
            with _Recording(record):
                record.result = node.target(*args, **_on_meta(kwargs))  # type: ignore[operator]
        except Exception:  # whatever an op raises that needs the numbers of a tensor, and not only its shape
            return None
    return record


def _on_meta(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {**kwargs, "device": torch.device("meta")} if "device" in kwargs else dict(kwargs)


def _replay(builder: GraphBuilder, node: fx.Node, first: _Record, second: _Record) -> None:
    """Put the recorded calls into the graph in the node's place."""
    made: dict[int, fx.Node] = {
        id(given): argument for given, argument in zip(first.inputs, node.all_input_nodes, strict=True)
    }

    def joined(one: Any, other: Any) -> Any:
        if isinstance(one, Tensor):
            return made[id(one)]
        if isinstance(one, torch.device):
            return torch.device("cpu")
        if isinstance(one, int) and one != other:
            return builder.number(size_of((one, other)))
        return one

    for (op, args, kwargs, result), (_, other_args, other_kwargs, _) in zip(
        first.calls, second.calls, strict=True
    ):
        new_args, new_kwargs = tree_map(
            joined, (tuple(args), dict(kwargs)), (tuple(other_args), dict(other_kwargs))
        )
        call = builder.call(SPOKEN.get(op, op), *new_args, **new_kwargs)
        if isinstance(result, Tensor):
            made[id(result)] = call
            continue
        for position, part in enumerate(result if isinstance(result, tuple | list) else []):
            made[id(part)] = builder.call(operator.getitem, call, position)
    if isinstance(first.result, Tensor):
        builder.replace(node, made[id(first.result)])
        return
    replace_results(builder, node, [made[id(part)] for part in first.result])
    builder.graph.erase_node(node)
