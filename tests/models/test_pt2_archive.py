"""Files that were made to run a shell command must not, and answer in one line."""

import contextlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pt2_files import (
    Document,
    Entries,
    Network,
    Shell,
    archive,
    changed,
    entries,
    exported,
    pickled,
    saved,
    written,
)

from sptrace.errors import SptraceError
from sptrace.models import resolve

Attack = Callable[[Entries, str], Entries]
MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
INPUTS = "data/sample_inputs/model.pt"


@pytest.fixture(scope="module")
def good() -> Entries:
    return entries(exported())


def graph(document: Document) -> Document:
    return document["graph_module"]["graph"]


def call(command: str) -> str:
    """An expression of Python that runs a command."""
    return f"__import__('os').system({command!r})"


def in_a_size(content: Entries, command: str) -> Entries:
    def change(document: Document) -> None:
        graph(document)["tensor_values"]["image"]["sizes"][0]["as_expr"]["expr_str"] = call(command)

    return changed(content, MODEL, change)


def in_a_stride(content: Entries, command: str) -> Entries:
    def change(document: Document) -> None:
        name = graph(document)["nodes"][0]["outputs"][0]["as_tensor"]["name"]
        graph(document)["tensor_values"][name]["strides"][0] = {"as_expr": {"expr_str": call(command)}}

    return changed(content, MODEL, change)


def in_the_name_of_a_symbol(content: Entries, command: str) -> Entries:
    def change(document: Document) -> None:
        text = f"Symbol('s77', positive={call(command)} == 0, integer=True)"
        graph(document)["tensor_values"]["image"]["sizes"][0]["as_expr"]["expr_str"] = text

    return changed(content, MODEL, change)


def in_a_condition(content: Entries, command: str) -> Entries:
    return changed(content, MODEL, lambda document: document["guards_code"].append(f"{call(command)} == 0"))


def in_a_range(content: Entries, command: str) -> Entries:
    def change(document: Document) -> None:
        document["range_constraints"][call(command)] = {"min_val": call(command), "max_val": None}

    return changed(content, MODEL, change)


def in_the_name_of_an_input(content: Entries, command: str) -> Entries:
    """torch.fx writes names into the code that it runs."""
    old, new = "image", f"image={call(command)}"

    def rename(value: Any) -> Any:
        if isinstance(value, dict):
            return {(new if key == old else key): rename(item) for key, item in value.items()}
        if isinstance(value, list):
            return list(map(rename, value))
        return new if value == old else value

    return {**content, MODEL: json.dumps(rename(json.loads(content[MODEL]))).encode()}


def in_the_path_of_a_parameter(content: Entries, command: str) -> Entries:
    old, new = "head.bias", f'head.bias"); {call(command)}; getattr(self, "x'
    content = changed(
        content, WEIGHTS, lambda document: document["config"].update({new: document["config"].pop(old)})
    )
    return {**content, MODEL: content[MODEL].replace(json.dumps(old).encode(), json.dumps(new).encode())}


def in_the_inputs(content: Entries, command: str) -> Entries:
    return {**content, INPUTS: saved(((Shell(command),), {}))}


def in_the_weights(content: Entries, command: str) -> Entries:
    content = changed(
        content, WEIGHTS, lambda document: document["config"]["head.bias"].update(use_pickle=True)
    )
    name = json.loads(content[WEIGHTS])["config"]["head.bias"]["path_name"]
    return {**content, f"data/weights/{name}": saved(Shell(command))}


def in_the_constants(content: Entries, command: str) -> Entries:
    content = changed(
        content, CONSTANTS, lambda document: document["config"]["scale"].update(use_pickle=True)
    )
    name = json.loads(content[CONSTANTS])["config"]["scale"]["path_name"]
    return {**content, f"data/constants/{name}": saved(Shell(command))}


def in_an_opaque_object(content: Entries, command: str) -> Entries:
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    content = changed(content, CONSTANTS, lambda document: document["config"].update(extra=entry))
    return {**content, "data/constants/opaque_obj_0": pickled(command)}


def in_the_old_weights(content: Entries, command: str) -> Entries:
    return {**content, "data/weights/model.pt": saved({"head.bias": Shell(command)})}


def in_the_oldest_form(content: Entries, command: str) -> Entries:
    return {
        "version": b"8.20",
        "serialized_exported_program.json": content[MODEL],
        "serialized_state_dict.pt": saved({"head.bias": Shell(command)}),
        "serialized_constants.pt": saved({}),
        "serialized_example_inputs.pt": saved(((), {})),
    }


def in_the_tree_of_outputs(content: Entries, command: str) -> Entries:
    """A tree specification imports the module of a default factory; here one that runs a command."""

    def change(document: Document) -> None:
        context = {"default_factory_module": "antigravity", "default_factory_name": "fly"}
        leaf = {"type": None, "context": None, "children_spec": []}
        tree = {
            "type": "collections.defaultdict",
            "context": json.dumps([context, ["out"]]),
            "children_spec": [leaf],
        }
        (root,) = (entry for entry in document["graph_module"]["module_call_graph"] if entry["fqn"] == "")
        root["signature"]["out_spec"] = json.dumps([1, tree])

    return changed(content, MODEL, change)


def retargeted(target: str) -> Callable[[Entries, str], Entries]:
    def change(content: Entries, command: str) -> Entries:
        def into(document: Document) -> None:
            graph(document)["nodes"][0] |= {
                "target": target,
                "inputs": [{"name": "", "arg": {"as_string": command}, "kind": 1}],
            }

        return changed(content, MODEL, into)

    return change


def in_the_origin_of_a_node(content: Entries, command: str) -> Entries:
    def change(document: Document) -> None:
        graph(document)["nodes"][0]["metadata"] |= {
            "source_fn_stack": f"x,torch.os.system({command!r})",
            "stack_trace": f'File "x", line 1, in forward\n    pass\n{call(command)}',
            "nn_module_stack": f"x,\n{call(command)},y",
        }

    return changed(content, MODEL, change)


def with_machine_code(content: Entries, command: str) -> Entries:
    return {**content, "data/aotinductor/model/wrapper.so": b"\x7fELF" + command.encode()}


# Refused: of the first ones torch.export.load of torch 2.14, or the module that it gives, runs the command.
REFUSED_RUN_BY_TORCH = [
    in_a_size,
    in_a_condition,
    in_the_weights,
    in_the_constants,
    in_an_opaque_object,
    in_the_oldest_form,
]
REFUSED = [
    in_the_name_of_a_symbol,
    in_a_range,
    in_the_path_of_a_parameter,
    in_the_old_weights,
    in_the_tree_of_outputs,
    *map(
        retargeted,
        [
            "torch.os.system",
            "torch.utils.cpp_extension.os.system",
            "torch.ops.load_library",
            "torch.ops.aten.from_file.default",
            "torch.ops.aten.save.default",
            "torch.ops.aten.__class__.mro",
            "torch.hub.load",
            "_operator.methodcaller",
            "_operator.attrgetter",
            "math.__loader__.load_module",
            "torch.ops.higher_order.triton_kernel_wrapper_functional",
            "torch.ops.higher_order.aoti_call_delegate",
            "#extension:op",
        ],
    ),
]
# Left unread, and the network is as it was.
UNREAD_RUN_BY_TORCH = [in_a_stride, in_the_name_of_an_input, in_the_inputs]
UNREAD = [in_the_origin_of_a_node, with_machine_code]


def attacked(folder: Path, content: Entries, attack: Attack) -> tuple[Path, Path]:
    """The file, and the one that its command would make."""
    marker, path = folder / "marker", folder / "net.pt2"
    content = attack(content, f"touch {marker}")
    path.write_bytes(archive(content, root="" if "version" in content else "archive/"))
    return path, marker


@pytest.mark.parametrize("attack", [*REFUSED_RUN_BY_TORCH, *REFUSED])
def test_code_is_refused(tmp_path: Path, good: Entries, attack: Attack) -> None:
    path, marker = attacked(tmp_path, good, attack)
    with pytest.raises(SptraceError) as caught:
        resolve(str(path))
    assert not marker.exists()
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("attack", [*UNREAD_RUN_BY_TORCH, *UNREAD])
def test_code_is_left_unread(tmp_path: Path, good: Entries, attack: Attack) -> None:
    path, marker = attacked(tmp_path, good, attack)
    network = resolve(str(path))
    images = torch.randn(3, 3, 16, 16)
    torch.manual_seed(0)
    torch.testing.assert_close(network.module(images), Network().eval()(images), rtol=0, atol=0)
    assert not marker.exists()


@pytest.mark.parametrize("attack", [*REFUSED_RUN_BY_TORCH, *UNREAD_RUN_BY_TORCH])
def test_torch_itself_runs_it(tmp_path: Path, good: Entries, attack: Attack) -> None:
    """So that the files above are what they are said to be."""
    path, marker = attacked(tmp_path, good, attack)
    with contextlib.suppress(Exception):  # what it thinks of the file afterwards
        torch.export.load(path).module()(torch.randn(2, 3, 16, 16))
    assert marker.exists()


def test_machine_code_alone_is_no_program(tmp_path: Path) -> None:
    content = {"archive_format": b"pt2", "data/aotinductor/model/wrapper.so": b"\x7fELF"}
    with pytest.raises(SptraceError, match="holds no exported program"):
        resolve(written(tmp_path / "net.pt2", content))


def config(change: Callable[[Document], object]) -> Callable[[Entries], Entries]:
    return lambda content: changed(
        content, WEIGHTS, lambda document: change(document["config"]["head.weight"])
    )


@pytest.mark.parametrize(
    "change",
    [
        config(lambda entry: entry.update(path_name="../../models/../data/weights/weight_0")),
        config(lambda entry: entry.update(path_name="/etc/passwd")),
        config(lambda entry: entry["tensor_meta"].update(sizes=[{"as_int": 5}, {"as_int": 400}])),
        config(lambda entry: entry["tensor_meta"].update(sizes=[{"as_int": 5}, {"as_int": -4}])),
        config(lambda entry: entry["tensor_meta"].update(strides=[{"as_int": 1 << 40}, {"as_int": 1}])),
        config(lambda entry: entry["tensor_meta"].update(storage_offset={"as_int": 1})),
        config(
            lambda entry: entry["tensor_meta"].update(sizes=[{"as_int": 1 << 40}], strides=[{"as_int": 0}])
        ),
        config(lambda entry: entry["tensor_meta"].update(layout=1)),
        config(lambda entry: entry["tensor_meta"].update(dtype=99)),
        lambda content: {**content, "data/weights/weight_0": b""},
        lambda content: {**content, "byteorder": b"big"},
        lambda content: {**content, MODEL: b"[" * 100_000},
        lambda content: {**content, MODEL: content[MODEL][:1000]},
        lambda content: changed(content, MODEL, lambda document: document["schema_version"].update(major=9)),
    ],
)
def test_damaged_archives(tmp_path: Path, good: Entries, change: Callable[[Entries], Entries]) -> None:
    with pytest.raises(SptraceError) as caught:
        resolve(written(tmp_path / "net.pt2", change(good)))
    assert len(str(caught.value).splitlines()) == 1


def test_archives_that_grow_are_refused(tmp_path: Path, good: Entries) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(
        archive({**good, "data/weights/weight_0": bytes(1 << 20)}, compression=zipfile.ZIP_DEFLATED)
    )
    with pytest.raises(SptraceError, match="is compressed"):
        resolve(str(path))
