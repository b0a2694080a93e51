"""From the JSON of an exported graph to a module, without torch's own deserialiser.

torch's evaluates expressions, imports what tree specifications name, follows names through its own modules, and
writes names from the file into Python code. Here a graph is built anew: nodes get names of our own, operators come
from the lists of `pt2_operators`, arguments are plain values, each of the type that it should have. Sizes as the
file describes them are not needed. Of what it says about a node two texts are kept, module path and stack trace,
which are shown and never run. What torch.fx writes into the code of `forward` are numbers, texts as `repr` gives
them, and paths of parameters, which must be made of letters, digits and a few signs.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from sptrace.errors import SptraceError
from sptrace.models.pt2_archive import DTYPES, Archive, Json
from sptrace.models.pt2_operators import REGIONS, SIZE_FUNCTIONS, operator_named

_PATH = re.compile(r"[A-Za-z0-9_+:/-]+(\.[A-Za-z0-9_+:/-]+)*")
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_LAYOUTS = {7: torch.strided}
_SPECIAL = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
_KEYWORD = 2
# Input specifications of what the file itself holds: where they keep the path of it.
_HELD = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
_HOW_TO_RETURN = "let forward return a tensor, a tuple, a list or a dict of them"


def build(archive: Archive) -> fx.GraphModule:
    """Build the module of an exported program.

    Arguments:
        archive: the program, of which nothing needs to have been checked, and its tensors.

    Returns:
        A module that takes the program's one input and returns what the network returned, with the submodule paths
        of the network.

    Raises:
        SptraceError: the program calls or holds what is not run from a file.
        Exception: in many ways, if the file was made or damaged by hand.
    """
    exported = archive.program["graph_module"]
    module = fx.GraphModule(nn.Module(), fx.Graph())
    scope = _Scope(module)
    buffers = _read_inputs(scope, archive)
    scope.read_nodes(exported["graph"]["nodes"])
    module.graph.output(_read_outputs(scope, exported, buffers))
    for node in reversed(module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()
    return module


def inputs(program: Json) -> list[str]:
    """Names of the values that the program takes from outside; what is no tensor has none."""
    names: list[str] = []
    for kind, spec in map(_only, program["graph_module"]["signature"]["input_specs"]):
        if kind not in _HELD:
            names.append(
                _text(spec["arg"].get("as_tensor", {}).get("name", "")) if kind == "user_input" else ""
            )
    return names


class _Scope:
    """A graph that is being read: what its nodes are called in the file, and what that became."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.graph = module.graph
        self.values: dict[str, Any] = {}

    def read_nodes(self, nodes: Sequence[Json]) -> None:
        for node in nodes:
            name = _text(node["target"])
            if name in SIZE_FUNCTIONS:
                made = self.graph.call_function(SIZE_FUNCTIONS[name], tuple(self._positional(node)))
            elif name in REGIONS:
                made = self.graph.call_function(REGIONS[name], tuple(self._positional(node)))
            else:
                made = self.graph.call_function(*self._call(name, node))
            made.meta = _origin(node.get("metadata") or {})
            whole = name not in REGIONS or node.get("is_hop_single_tensor_return") is not False
            self._name_outputs(made, node["outputs"], whole)

    def argument(self, given: Json) -> Any:
        kind, value = _only(given)
        if kind not in _READERS:
            raise SptraceError(
                f"the file holds an argument of the kind {ascii(kind)[:40]}, which is more than numbers and tensors: "
                "export the network without custom objects"
            )
        return _READERS[kind](self, value)

    def value(self, name: Json) -> Any:
        return self.values[_text(name)]

    def bind(self, name: Json, node: fx.Node) -> None:
        if _text(name) in self.values:
            raise ValueError("two values of one name")
        self.values[name] = node

    def region(self, value: Json) -> fx.Node:
        """The body of a region, as a module of its own; its inputs have the names that they have outside."""
        body = fx.GraphModule(nn.Module(), fx.Graph())
        inner, record = _Scope(body), value["graph"]
        for given in record["inputs"]:
            inner.bind(_only(given)[1]["name"], body.graph.placeholder(f"value_{len(inner.values)}"))
        inner.read_nodes(record["nodes"])
        outputs = tuple(inner.argument(given) for given in record["outputs"])
        body.graph.output(outputs[0] if record.get("is_single_tensor_return") is True else outputs)
        body.recompile()
        name = next(
            f"region_{number}" for number in range(1 << 30) if not hasattr(self.module, f"region_{number}")
        )
        self.module.add_module(name, body)
        return self.graph.get_attr(name)

    def _positional(self, node: Json) -> list[Any]:
        return [self.argument(given["arg"]) for given in node["inputs"]]

    def _call(self, name: str, node: Json) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """An operator and its arguments, by position or by name as they were."""
        target = operator_named(name)
        given = {_text(item["name"]): self.argument(item["arg"]) for item in node["inputs"]}
        by_name = {_text(item["name"]) for item in node["inputs"] if item.get("kind") == _KEYWORD}
        unsaid = {_text(item["name"]) for item in node["inputs"] if item.get("kind") is None}
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        named = False  # once one is left out or named, those after it have to be named
        for wanted in target._schema.arguments:
            if wanted.name not in given:
                named = True
                continue
            value = given.pop(wanted.name)
            optional = wanted.has_default_value() or wanted.kwarg_only
            named = named or wanted.name in by_name or (wanted.name in unsaid and optional)
            if named:
                kwargs[wanted.name] = value
            else:
                args.append(value)
        if given:
            raise ValueError(f"{target} has no arguments {sorted(given)}")
        return target, tuple(args), kwargs

    def _name_outputs(self, made: fx.Node, outputs: Sequence[Json], whole: bool) -> None:
        """Give what a node makes the names that the file has for it: one value, or several that are taken out of it."""
        if len(outputs) == 1 and whole:
            kind, value = _only(outputs[0])
            if isinstance(value, list):
                self._take_out(made, [{"as_tensor": item} for item in value])
            elif kind != "as_none":
                self.bind(value["name"] if kind == "as_tensor" else value["as_name"], made)
        else:
            self._take_out(made, outputs)

    def _take_out(self, made: fx.Node, outputs: Sequence[Json]) -> None:
        for index, output in enumerate(outputs):
            kind, _ = _only(output)
            if kind != "as_none":
                item = self.graph.call_function(operator.getitem, (made, index))
                item.meta = dict(made.meta)
                self._name_outputs(item, [output], True)


def _read_inputs(scope: _Scope, archive: Archive) -> dict[str, fx.Node]:
    """Make the input, and place what the file holds. Gives the nodes of all that by path."""
    exported, tensors = archive.program["graph_module"], archive.weights | archive.constants
    held: dict[str, fx.Node] = {}
    for spec, given in zip(exported["signature"]["input_specs"], exported["graph"]["inputs"], strict=True):
        kind, value = _only(spec)
        if kind == "user_input":
            node = scope.graph.placeholder("image")
        elif kind in _HELD and _text(value[_HELD[kind]]) in tensors:
            path = value[_HELD[kind]]
            _place(scope.module, path, tensors[path], persistent=path in archive.weights)
            node = held[path] = scope.graph.get_attr(path)
        else:
            raise SptraceError(
                f"the network takes {ascii(kind)[:40]}, which the file does not hold as a tensor"
            )
        scope.bind(_only(given)[1]["name"], node)
    return held


def _read_outputs(scope: _Scope, exported: Json, held: Mapping[str, fx.Node]) -> Any:
    """What the network returned; before that, what it writes into its buffers is written."""
    returned: list[Any] = []
    for spec, given in zip(exported["signature"]["output_specs"], exported["graph"]["outputs"], strict=True):
        kind, value = _only(spec)
        if kind == "user_output":
            returned.append(scope.argument(given))
        elif kind == "buffer_mutation":
            scope.graph.call_function(
                torch.ops.aten.copy_.default, (held[value["buffer_name"]], scope.argument(given))
            )
        else:
            raise SptraceError(f"the network gives {ascii(kind)[:40]}: export it for inference")
    (root,) = (entry for entry in exported["module_call_graph"] if entry["fqn"] == "")
    version, tree = json.loads(root["signature"]["out_spec"])
    if version != 1:
        raise ValueError("an unknown form of what the network returns")
    leaves = iter(returned)
    answer = _tree(tree, leaves)
    if next(leaves, None) is not None:
        raise ValueError("more outputs than the network returns")
    return answer


def _tree(spec: Json, leaves: Any) -> Any:
    """Put outputs into the containers in which the network returned them."""
    kind, children = spec["type"], spec["children_spec"]
    if kind is None:
        return next(leaves)
    items = [_tree(child, leaves) for child in children]
    if kind in ("builtins.tuple", "builtins.list"):
        return tuple(items) if kind == "builtins.tuple" else items
    if kind in ("builtins.dict", "collections.OrderedDict"):
        keys = json.loads(spec["context"])
        if not all(type(key) in (str, int) for key in keys):
            raise ValueError("keys that are neither texts nor numbers")
        return dict(zip(keys, items, strict=True))
    raise SptraceError(f"the network returns a {ascii(kind)[:80]}: {_HOW_TO_RETURN}")


def _place(module: fx.GraphModule, path: str, tensor: Tensor, *, persistent: bool) -> None:
    """Put a tensor where the network had it."""
    if not _PATH.fullmatch(path):
        raise SptraceError(
            f"the file holds a tensor of the name {ascii(path)[:80]}: rename it in the network"
        )
    *parents, name = path.split(".")
    owner: nn.Module = module
    for parent in parents:
        if parent not in owner._modules:
            owner.add_module(parent, nn.Module())
        owner = getattr(owner, parent)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(name, tensor)
    else:
        owner.register_buffer(name, tensor, persistent=persistent)


def _origin(metadata: Json) -> dict[str, Any]:
    """Where the network called an operator: texts for messages, without what would steer a terminal."""
    meta: dict[str, Any] = {"nn_module_stack": {}}
    for item in filter(None, str(metadata.get("nn_module_stack") or "").split(";")):
        key, _, rest = item.partition(",")
        path, _, kind = rest.rpartition(",")
        if all(map(_is_shown, (key, path, kind))):
            meta["nn_module_stack"][key] = (path, kind)
    trace = metadata.get("stack_trace")
    if isinstance(trace, str) and all(map(_is_shown, trace.splitlines())):
        meta["stack_trace"] = trace
    return meta


def _is_shown(text: str) -> bool:
    return text.replace("\t", " ").isprintable()


def _only(union: Json) -> tuple[str, Any]:
    """The one field of a union, and its value."""
    ((kind, value),) = union.items()
    return kind, value


def _exactly(kind: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"{ascii(value)[:40]} is no {kind.__name__}")
        return value

    return check


_text, _integer, _truth = _exactly(str), _exactly(int), _exactly(bool)


def _real(value: Json) -> float:
    if isinstance(value, str):
        return _SPECIAL[value]
    if type(value) not in (float, int):
        raise TypeError(f"{ascii(value)[:40]} is no number")
    return float(value)


def _plain(check: Callable[[Any], Any]) -> Callable[[_Scope, Json], Any]:
    return lambda scope, value: check(value)


def _several(reader: Callable[[_Scope, Json], Any]) -> Callable[[_Scope, Json], Any]:
    return lambda scope, values: [reader(scope, value) for value in _exactly(list)(values)]


def _tensor(scope: _Scope, value: Json) -> Any:
    return scope.value(value["name"])


def _union(scope: _Scope, value: Json) -> Any:
    """A number, or the name of a value: what sizes are given as in lists."""
    kind, inner = _only(value)
    return scope.value(inner) if kind == "as_name" else scope.argument(value)


_READERS: dict[str, Callable[[_Scope, Json], Any]] = {
    "as_none": lambda scope, value: None,
    "as_tensor": _tensor,
    "as_tensors": _several(_tensor),
    "as_optional_tensor": _union,
    "as_optional_tensors": _several(_union),
    "as_nested_tensors": _several(_several(_tensor)),
    "as_int": _plain(_integer),
    "as_ints": _several(_plain(_integer)),
    "as_int_lists": _several(_several(_plain(_integer))),
    "as_float": _plain(_real),
    "as_floats": _several(_plain(_real)),
    "as_float_lists": _several(_several(_plain(_real))),
    "as_bool": _plain(_truth),
    "as_bools": _several(_plain(_truth)),
    "as_string": _plain(_text),
    "as_complex": lambda scope, value: complex(_real(value["real"]), _real(value["imag"])),
    "as_sym_int": _union,
    "as_sym_ints": _several(_union),
    "as_sym_float": _union,
    "as_sym_floats": _several(_union),
    "as_sym_bool": _union,
    "as_sym_bools": _several(_union),
    "as_scalar_type": lambda scope, value: DTYPES[value],
    "as_memory_format": lambda scope, value: _MEMORY_FORMATS[value],
    "as_layout": lambda scope, value: _LAYOUTS[value],
    # A network that lay elsewhere is run where its weights are put.
    "as_device": lambda scope, value: torch.device("cpu"),
    "as_graph": lambda scope, value: scope.region(value),
}
