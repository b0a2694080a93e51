"""An artifact as a model repository, for Triton and servers of the Open Inference Protocol (KServe v2)."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from sptrace.artifact.description import METADATA_KEY, Description
from sptrace.artifact.files import folder_replacing
from sptrace.artifact.onnx_file import OnnxFile, Value, outline
from sptrace.errors import SptraceError

MAX_BATCH = 8
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8"}
_REQUIRED = ("image", "target", "direction")


def write(
    artifact: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    name: str | None = None,
    max_batch: int = MAX_BATCH,
) -> Path:
    """Add an artifact to a model repository: NAME/config.pbtxt, NAME/labels.txt, NAME/1/model.onnx.

    Requests of one picture each are put together, up to `max_batch`. Settings of the program stay as they were
    compiled. In a request `target` has the shape [N, 1]: Triton has no inputs without a dimension beside the batch.

    Arguments:
        artifact: an ONNX file written by sptrace.
        repository: a folder; created if missing, other models in it stay.
        name: of the model; None takes the file's.
        max_batch: the largest number of pictures that the server runs at once.

    Returns:
        The model's folder.

    Raises:
        SptraceError: the file is no artifact, the repository holds such a model already or cannot be written,
            or the name or the number is none that Triton takes.
    """
    artifact = Path(artifact)
    file = outline(artifact)
    if METADATA_KEY not in file.metadata:
        raise SptraceError(
            f"{artifact} was not written by sptrace: compile the network with `sptrace compile`"
        )
    description = Description.from_json(file.metadata[METADATA_KEY])
    name = artifact.stem if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise SptraceError(
            f"{name!r} is no name for a model: give one of letters, digits, '_', '-' and '.' with --name"
        )
    if max_batch < 1:
        raise SptraceError(f"cannot put {max_batch} pictures together: give 1 or more")
    folder = Path(repository) / name
    if folder.exists():
        raise SptraceError(f"{folder} exists already: remove it, or give another name with --name")
    with folder_replacing(folder) as model:
        (model / "1").mkdir()
        shutil.copyfile(artifact, model / "1" / "model.onnx")
        weights = artifact.with_name(f"{artifact.name}.data")  # of more than fits into the file, beside it
        if weights.exists():
            shutil.copyfile(weights, model / "1" / weights.name)
        if description.labels:
            # The server names what stands in `logits`: of one logit for two classes that is class 1.
            (outputs,) = (value.shape[1] for value in file.outputs if value.name == "logits")
            named = description.labels[-1:] if outputs == 1 else description.labels
            labels = "".join(f"{label}\n" for label in named)
            (model / "labels.txt").write_text(labels, encoding="utf-8")
        config = _config(name, file, max_batch, description)
        (model / "config.pbtxt").write_text(config, encoding="utf-8")
    return folder


def _config(name: str, file: OnnxFile, max_batch: int, description: Description) -> str:
    """The model's configuration, a ModelConfig of Triton as protobuf text.

    Its parameter `link` says what makes probabilities of the logits, one of `sptrace.artifact.links.LINKS`.
    """
    labelled = bool(description.labels)
    inputs = [_input(value) for value in file.inputs if value.name in _REQUIRED]
    outputs = [
        _tensor(value, 'label_filename: "labels.txt"' if labelled and value.name == "logits" else "")
        for value in file.outputs
    ]
    return "\n".join(
        [
            f'name: "{name}"',
            'backend: "onnxruntime"',
            f"max_batch_size: {max_batch}",
            "input [",
            ",\n".join(inputs),
            "]",
            "output [",
            ",\n".join(outputs),
            "]",
            f'parameters {{ key: "link" value {{ string_value: "{description.link}" }} }}',
            "dynamic_batching { max_queue_delay_microseconds: 2000 }",
            "",
        ]
    )


def _input(value: Value) -> str:
    if len(value.shape) > 1:
        return _tensor(value)
    return (
        f'  {{ name: "{value.name}" data_type: {_TYPES[value.dtype]} dims: [ 1 ] reshape {{ shape: [ ] }} }}'
    )


def _tensor(value: Value, more: str = "") -> str:
    """One tensor without its batch dimension; sizes that are free are -1."""
    sizes = ", ".join(str(size if isinstance(size, int) else -1) for size in value.shape[1:])
    parts = (f'name: "{value.name}"', f"data_type: {_TYPES[value.dtype]}", f"dims: [ {sizes} ]", more)
    return f"  {{ {' '.join(part for part in parts if part)} }}"
