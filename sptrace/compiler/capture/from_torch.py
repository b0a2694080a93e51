"""From an nn.Module to a torch.fx graph of ATen ops with a dynamic batch."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map_only

from sptrace.compiler.capture import layers
from sptrace.compiler.capture.dynamic_batch import DynamicBatch, following_sizes
from sptrace.compiler.capture.exported_graph import simplify
from sptrace.compiler.capture.harness import harnessed, refuse_torchscript, rehearse, unwrapped
from sptrace.compiler.capture.known_numbers import KnownNumbers
from sptrace.compiler.capture.recurrence_shapes import shapes_alone
from sptrace.compiler.capture.source_lines import HERE, line_of
from sptrace.compiler.capture.unchanged import unchanged
from sptrace.compiler.capture.whole_numbers import whole_numbers
from sptrace.compiler.graph.builder import (
    GraphBuilder,
    complaint,
    is_batch,
    parameter,
    place,
    propagate,
    shape,
    value,
    without_data,
)
from sptrace.compiler.graph.constants import at_batches, constant
from sptrace.compiler.graph.facts import Facts, facts, learn, record
from sptrace.compiler.graph.sizes import BATCHES, BatchSize, fixed_number, is_symbolic_size
from sptrace.errors import SptraceError, UnsupportedError

PARAMETERS = "parameters"
"""Of a captured graph's `meta`: which of its constants are parameters, path -> name in the network."""

RANGES = {torch.ops.aten.arange.default, torch.ops.aten.arange.start, torch.ops.aten.arange.start_step}
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*\n\s*(?P<text>[^\n]*)')


def capture(module: nn.Module, example: Tensor, layer: str | None = None) -> fx.GraphModule:
    """Trace `module` with torch.export into a graph of ATen ops.

    Arguments:
        module: in eval mode; takes float32 [N, 3, H, W], gives logits [N, classes], or [N] where there is one.
        example: float32 [N, 3, H, W]; only its shape counts.
        layer: path of a module whose output is wanted too: float32, of two to four dimensions.

    Returns:
        A graph module with the input "image" and one output, the logits, or with a layer the pair (logits, the
        layer's output). Parameters are constants under their own names, copies of the network's; `meta[PARAMETERS]`
        says which. Nodes carry the metadata that `graph.builder` describes.

    Raises:
        SptraceError: the network is in train mode, the example is no batch of images, or there is no such layer.
        UnsupportedError: the network cannot be traced, or fixes the batch size.
    """
    check(module, example)
    # A batch of one would be taken for a constant; two stand for any number.
    batch = torch.cat([example.detach()] * 2)[:2].contiguous()
    with shapes_alone(), harnessed(module, example) as network:
        try:
            captured = _trace(network, batch, layer)
        except UnsupportedError as error:
            # Where a network makes its grids and masks in its first call, the second may be simpler.
            with unchanged(network), whole_numbers(network):
                rehearse(network, example)
                try:
                    captured = _trace(network, batch, layer)
                except UnsupportedError:
                    raise error from error.__cause__
    _own(captured, module)
    if layer is not None:
        _check_layer(captured, layer)
    return captured


def _own(captured: fx.GraphModule, network: nn.Module) -> None:
    """Copy the network's numbers: it may be trained on, or write into them itself, before the artifact is saved."""
    names = {data.data_ptr(): name for name, data in network.named_parameters() if data.numel()}
    captured.meta[PARAMETERS] = {
        path: names[data.data_ptr()] for path, data in captured.named_buffers() if data.data_ptr() in names
    }
    copied: dict[int, Tensor] = {}
    for path, data in captured.named_buffers(remove_duplicate=False):
        owner, _, leaf = path.rpartition(".")
        if id(data) not in copied:
            copied[id(data)] = data.detach().clone()
        setattr(captured.get_submodule(owner), leaf, copied[id(data)])


def _trace(module: nn.Module, batch: Tensor, layer: str | None) -> fx.GraphModule:
    with unchanged(module), layers.reading(module, layer) as read:
        exported = _export(module, batch)
    if read is not None:
        read.require()
    simplify(exported.graph_module)
    return _import_graph(exported, layer)


def _export(module: nn.Module, batch: Tensor) -> ExportedProgram:
    fixed: list[str] = []
    try:
        with _quiet(), following_sizes() as fixed, DynamicBatch(), KnownNumbers(module).following():
            return torch.export.export(
                module,
                (batch,),
                dynamic_shapes=({0: Dim("batch")},),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except SptraceError:
        raise
    except Exception as error:  # torch.export raises whatever the network's own code raises under tracing
        raise UnsupportedError(_why_export_failed(error, fixed)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence for torch.export, which prints and logs the whole graph before it raises what we turn into one line."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def check(module: nn.Module, example: Tensor) -> None:
    """Refuse what cannot be compiled before any time is spent on it."""
    if not isinstance(module, nn.Module):
        raise SptraceError(f"the network must be a torch.nn.Module, not {type(module).__name__}")
    module = unwrapped(module)
    refuse_torchscript(module)
    _check_mode(module)
    _check_tensors(module)
    check_picture(example, "the example")


def _check_mode(module: nn.Module) -> None:
    graphs = [name for name, child in module.named_modules() if isinstance(child, fx.GraphModule)]
    if "" in graphs:
        return
    if module.training:
        raise SptraceError(
            "the network is in train mode, where dropout and batch norm differ: call .eval() on it first"
        )
    for name, child in module.named_modules():
        # A graph has its mode built in, and a flag that means nothing; the passes look at its ops.
        if child.training and not any(f"{name}.".startswith(f"{graph}.") for graph in graphs):
            raise SptraceError(
                f"the network's module {name!r} is in train mode: call .eval() on the whole network first"
            )


def _check_tensors(module: nn.Module) -> None:
    for name, data in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(data):
            raise SptraceError(
                f"the network's {name!r} has no numbers yet: run the network once on a picture"
            )
        if (data.is_floating_point() or data.is_complex()) and data.dtype not in (
            torch.float32,
            torch.complex64,
        ):
            raise SptraceError(f"the network's {name!r} is {data.dtype}: call .float() on the network")
        if data.device.type != "cpu":
            raise SptraceError(f"the network's {name!r} is on {data.device}: call .cpu() on the network")
        if data.is_inference():
            raise SptraceError(
                f"the network's {name!r} was made in inference mode, which rules out verification: "
                "build the network outside of torch.inference_mode()"
            )


def check_picture(example: Tensor, what: str) -> None:
    """Refuse what is no batch of pictures; `what` it is called in the message."""
    if not isinstance(example, Tensor):
        given = type(example).__name__
    elif example.dtype != torch.float32 or example.ndim != 4 or example.numel() == 0:
        given = f"{list(example.shape)} {example.dtype}"
    elif example.device.type != "cpu":
        given = f"one on {example.device}"
    elif example.layout != torch.strided:
        given = "a sparse one"
    elif not example.isfinite().all():
        given = "one with NaN or infinite values"
    else:
        return
    raise SptraceError(f"{what} must be a float32 tensor of shape [N, 3, H, W] on the CPU, not {given}")


def _why_export_failed(error: Exception, fixed: Sequence[str]) -> str:
    text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    if "data-dependent" in text or "Could not guard" in text:
        # The innermost of the network's own calls: the message itself names a call of ours.
        return (
            f"the network branches on the values of a tensor at {line_of(error) or 'an unknown place'}, "
            "which no fixed graph can do: replace the branch by torch.where, or compile the part of the network "
            "without it"
        )
    if "batch" in text and ("specialized" in text or "Constraints violated" in text):
        where = fixed[0] if fixed else "torch.export does not say where"
        return (
            f"the network fixes the batch size ({where}: a loop or a list with a place for each picture, a comparison, "
            "or a constant in place of x.shape[0]): make it work for any batch, then compile again"
        )
    return f"torch.export cannot trace the network: {first}"


def _check_layer(module: fx.GraphModule, layer: str) -> None:
    """Refuse an output that has no channels for every picture."""
    output: Any = module.graph.output_node()
    _, kept = output.args[0]
    sizes, dtype = shape(kept), value(kept).dtype
    batched = len(sizes) in (2, 3, 4) and is_batch(kept, 0)
    if not batched or any(isinstance(size, BatchSize) for size in sizes[1:]) or dtype != torch.float32:
        listed = ", ".join(map(str, sizes))
        raise SptraceError(
            f"the layer {layer!r} gives [{listed}] {dtype}, not torch.float32 [N, C, H, W], [N, H, W, C], [N, T, C] or "
            "[N, C]: choose another layer"
        )


def _import_graph(exported: ExportedProgram, layer: str | None) -> fx.GraphModule:
    """Copy the exported graph: parameters become constants, the one user input becomes "image"."""
    module = fx.GraphModule(nn.Module(), fx.Graph())
    graph = module.graph
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    copied: dict[fx.Node, Any] = {}
    constants: dict[str, fx.Node] = {}
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            if spec.kind == InputKind.USER_INPUT:
                new = graph.placeholder("image")
                values = without_data(*node.meta["val"].shape[1:], dtype=torch.float32)
                record(new, replace(_facts(node), values=values))
            else:
                # Its node keeps torch.export's name, p_...: a parameter may be called "image" or "target".
                new = constants.get(spec.target) or graph.create_node(
                    "get_attr", place(module, spec.target, _data(exported, spec.target)), name=node.name
                )
                values = (parameter(module, new).to("meta"),) * len(BATCHES)
                record(new, replace(_facts(node), values=values))
                constants[spec.target] = new
        elif node.op == "output":
            answer, *kept = node.args[0]
            _check_logits(answer)
            logits = _as_rows(module, copied[answer])
            graph.output(logits if layer is None else (logits, copied[kept[0]]))
            continue
        else:
            new = graph.node_copy(node, lambda argument: copied[argument])
            record(new, _facts(node))
            new = _propagate(module, new)
            _lay_out(node, new)
            if new.op == "call_function":
                _check_sizes(node, new)
        number = fixed_number(node.meta.get("val"))
        copied[node] = new if number is None else number
    module.recompile()
    return module


def _as_rows(module: fx.GraphModule, logits: fx.Node) -> fx.Node:
    """The logits as [N, classes]; one output a picture may come as [N]."""
    if value(logits).ndim == 2:
        return logits
    builder = GraphBuilder(module)
    with builder.origin(logits, adjoint=False):
        return builder.call(torch.ops.aten.unsqueeze.default, logits, 1)


def _propagate(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Work out what the node gives; where that takes the numbers of constants alone, the node gives way to them."""
    if node.target is torch.ops.aten.index.Tensor:
        node.args = (node.args[0], _without_masks(module, node, node.args[1]))
    try:
        propagate(node)
    except (
        Exception
    ) as error:  # whatever an op raises that needs the numbers of a tensor, and not only its shape
        if node.target is torch.ops.aten._assert_scalar.default:
            where = facts(node).source
            raise UnsupportedError(
                f"the network fixes the batch size ({where}: a condition that some numbers of pictures do not meet): "
                "make it work for any batch, then compile again"
            ) from error
        repeated = _repeated_by_counts(module, node)
        if repeated is not None:
            return repeated
        known = constant(module, node)
        if known is not None:
            with module.graph.inserting_before(node):
                new = GraphBuilder(module).constant("folded", known)
            record(new, replace(facts(node), values=facts(new).values))
            module.graph.erase_node(node)
            return new
        several = at_batches(module, node)
        if several is not None:  # several results, which are read one by one
            learn(node, values=tree_map_only(Tensor, lambda each: each.to("meta"), several))
            return node
        where = facts(node).source
        raise UnsupportedError(
            f"the sizes or numbers that {node.target} gives depend on the values of a tensor ({where}), "
            "which no fixed graph can do: write the network without it"
        ) from error
    return node


def _repeated_by_counts(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """repeat_interleave of things that are each repeated a constant number of times, as a reading at fixed places."""
    if node.target is not torch.ops.aten.repeat_interleave.self_Tensor:
        return None
    args: Any = node.args
    x, counts, *rest = args
    dim: Any = rest[0] if rest else node.kwargs.get("dim")
    numbers = constant(module, counts)
    length = None if dim is None else shape(x)[dim]
    if numbers is None or not isinstance(length, int):
        return None
    places = torch.arange(length).repeat_interleave(numbers)
    builder = GraphBuilder(module)
    with builder.replacing(node):
        index = builder.constant("repeated", places)
        read = builder.call(torch.ops.aten.index_select.default, x, dim, index)
    module.graph.erase_node(node)
    return read


def _without_masks(module: fx.GraphModule, node: fx.Node, indices: Any) -> list[fx.Node | None]:
    """Constant masks among the indices, as the places that they let through."""
    written: list[fx.Node | None] = []
    for index in indices:
        boolean = index is not None and value(index).dtype == torch.bool
        mask = constant(module, index) if boolean else None
        if mask is None:
            written.append(index)
            continue
        with module.graph.inserting_before(node):
            builder = GraphBuilder(module)
            written.extend(builder.constant("folded", places) for places in mask.nonzero(as_tuple=True))
    return written


def _lay_out(exported: fx.Node, copied: fx.Node) -> None:
    """Give attention the order in memory that it has on the CPU: without data it has one that no view would fit."""
    if (
        exported.target == torch.ops.aten.scaled_dot_product_attention.default
        and exported.meta["val"].transpose(1, 2).is_contiguous()
    ):
        values = tuple(given.transpose(1, 2).contiguous().transpose(1, 2) for given in facts(copied).values)
        learn(copied, values=values)


def _check_sizes(exported: fx.Node, copied: fx.Node) -> None:
    """Refuse sizes like N // 2, which have no meaning for every batch."""
    sizes = [
        size for leaf in tree_leaves(exported.meta["val"]) if isinstance(leaf, Tensor) for size in leaf.shape
    ]
    if not all(map(is_symbolic_size, sizes)):
        raise UnsupportedError(complaint(copied, "a size is no multiple of the number of pictures"))
    # A range of all pictures may be an index, which is no arithmetic.
    if isinstance(copied.target, OpOverload) and _is_tensor(copied) and copied.target not in RANGES:
        for given, wanted in zip(copied.args, copied.target._schema.arguments, strict=False):
            if (
                isinstance(given, fx.Node)
                and str(wanted.type) in ("Tensor", "number")
                and not _is_tensor(given)
            ):
                raise UnsupportedError(complaint(copied, "the number of pictures is computed with"))


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(facts(node).first, Tensor)


def _data(exported: ExportedProgram, name: str) -> Tensor:
    data = exported.state_dict[name] if name in exported.state_dict else exported.constants[name]
    if not isinstance(data, Tensor):
        raise UnsupportedError(
            f"the network computes with a {type(data).__name__} ({name}), which no file can hold, a random generator "
            "for instance: let it compute with tensors alone"
        )
    return data


def _check_logits(answer: fx.Node) -> None:
    """Refuse what is no row of logits a picture."""
    logits = answer.meta["val"]
    is_row = logits.ndim in (1, 2) and not isinstance(logits.shape[0], int) and logits.shape[-1] != 0
    if not (is_row and logits.dtype.is_floating_point):
        sizes = ", ".join(str(size) if isinstance(size, int) else "N" for size in logits.shape)
        raise UnsupportedError(
            f"the network returns [{sizes}] {logits.dtype}, not one row of logits a picture [N, classes]: "
            "wrap it so that it does"
        )


def _facts(node: fx.Node) -> Facts:
    """Where a node of torch.export's came from."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    known = Facts(path=stack[-1][0] if stack else "")
    frames = _frames(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if "/torch/nn/" not in frame[0]] or frames
    if not own:
        return known
    file, line, text = own[-1]
    return replace(known, source=f"{file}:{line}: {text.strip()}")


def _frames(trace: str) -> list[tuple[str, str, str]]:
    """File, line and text of the network's own calls in a stack trace."""
    return [frame for frame in _FRAME.findall(trace) if not frame[0].startswith(HERE)]
