"""The model repository: read by Triton's own schema, and served over HTTP by a server that speaks KServe v2."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.consumers import folder
from PIL import Image

import sptrace
from sptrace.cli import main
from sptrace.deploy import triton
from sptrace.errors import SptraceError

PARSE = (
    "import sys; from google.protobuf import json_format, text_format;"
    "from tritonclient.grpc.model_config_pb2 import ModelConfig;"
    "print(json_format.MessageToJson(text_format.Parse(open(sys.argv[1]).read(), ModelConfig())))"
)


@pytest.fixture(scope="module")
def environment() -> Path:
    return folder("MLSERVER", "a virtual environment with mlserver and onnxruntime")


@pytest.fixture
def parsed(environment: Path) -> Callable[[Path], dict[str, Any]]:
    """A configuration as Triton's own schema reads it."""

    def parsed(path: Path) -> dict[str, Any]:
        command = [environment / "bin" / "python", "-c", PARSE, path]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return parsed


def tensors(config: dict[str, Any], kind: str) -> dict[str, tuple[str, list[int]]]:
    return {item["name"]: (item["dataType"], [int(size) for size in item["dims"]]) for item in config[kind]}


def test_the_configuration_says_what_the_file_takes(toy: Any, parsed: Any, tmp_path: Path) -> None:
    model = triton.write(toy.path, tmp_path / "models", "toy-1.0", max_batch=4)
    config = parsed(model / "config.pbtxt")
    assert (config["name"], config["backend"], config["maxBatchSize"]) == ("toy-1.0", "onnxruntime", 4)
    assert tensors(config, "input") == {"image": ("TYPE_FP32", [3, 24, 32]), "target": ("TYPE_INT64", [1])}
    assert config["input"][1]["reshape"] == {}  # to no dimension but the batch
    assert tensors(config, "output") == {
        "attribution": ("TYPE_FP32", [3, 24, 32]),
        "logits": ("TYPE_FP32", [7]),
    }
    assert config["output"][1]["labelFilename"] == "labels.txt"
    assert "dynamicBatching" in config
    assert (model / "labels.txt").read_text().splitlines() == list(toy.description.labels)
    assert (model / "1" / "model.onnx").read_bytes() == toy.path.read_bytes()
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["toy-1.0"]


def test_one_logit_of_two_classes_is_called_by_its_own(tmp_path: Path) -> None:
    """The server's classification extension names what stands in `logits`; the link tells what it is."""
    from helpers.small_networks import images, small
    from torch import nn

    network = small(lambda self, x: self.head(x.mean((2, 3))).sigmoid(), head=nn.Linear(3, 1))
    artifact = tmp_path / "pair.onnx"
    sptrace.compile(network, images(1), labels=["healthy", "sick"]).save(artifact)
    model = triton.write(artifact, tmp_path / "models")
    assert (model / "labels.txt").read_text() == "sick\n"
    config = (model / "config.pbtxt").read_text()
    assert 'parameters { key: "link" value { string_value: "sigmoid" } }' in config


def test_photographs_of_any_size(lite0: Callable[[str], Path], parsed: Any, tmp_path: Path) -> None:
    """Settings with defaults are no inputs: they have no batch dimension, and Triton would ask for them."""
    config = parsed(triton.write(lite0("pullback_ascent"), tmp_path) / "config.pbtxt")
    assert config["name"] == "pullback_ascent"
    assert tensors(config, "input") == {"image": ("TYPE_UINT8", [-1, -1, 3]), "target": ("TYPE_INT64", [1])}
    outputs = tensors(config, "output")
    assert outputs["overlay"] == ("TYPE_UINT8", [-1, -1, 3])
    assert outputs["image_out"] == ("TYPE_FP32", [3, 224, 224])


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


@pytest.fixture
def served(environment: Path, lite0: Callable[[str], Path], tmp_path: Path) -> Iterator[str]:
    """Address of the model on a running server."""
    repository = tmp_path / "models"
    with pytest.raises(SystemExit) as exit_:
        main(["package", str(lite0("soft_pullback")), "--triton", str(repository), "--name", "lite0"])
    assert exit_.value.code in (0, None)
    settings = {
        "name": "lite0",
        "implementation": "runtime.Onnx",
        "parameters": {"uri": str(repository / "lite0")},
    }
    (tmp_path / "model-settings.json").write_text(json.dumps(settings))
    http, grpc, metrics = free_ports(3)
    ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    server_settings = {"host": "127.0.0.1", "parallel_workers": 0, **ports}
    (tmp_path / "settings.json").write_text(json.dumps(server_settings))
    shutil.copy(Path(__file__).parent / "runtime.py", tmp_path)
    log = (tmp_path / "log").open("w")
    command = [environment / "bin" / "mlserver", "start", tmp_path]
    server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
    address = f"http://127.0.0.1:{http}/v2/models/lite0"
    try:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/ready").close()
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.3)
        yield address
    finally:
        server.terminate()
        server.wait(30)
        log.close()


@pytest.mark.slow
def test_it_explains_over_http(served: str, lite0: Callable[[str], Path]) -> None:
    from skimage import data

    pictures = np.stack(
        [np.asarray(Image.fromarray(picture).resize((90, 70))) for picture in (data.coffee(), data.rocket())]
    )
    targets = np.array([[-1], [657]])
    request = {
        "inputs": [
            {
                "name": "image",
                "datatype": "UINT8",
                "shape": pictures.shape,
                "data": pictures.ravel().tolist(),
            },
            {"name": "target", "datatype": "INT64", "shape": targets.shape, "data": targets.ravel().tolist()},
        ]
    }
    headers = {"Content-Type": "application/json"}
    message = urllib.request.Request(f"{served}/infer", json.dumps(request).encode(), headers)
    with urllib.request.urlopen(message, timeout=120) as answer:
        outputs = {item["name"]: item for item in json.load(answer)["outputs"]}
    expected = sptrace.load(lite0("soft_pullback")).explain(pictures, targets.ravel())
    assert expected.overlay is not None
    for name, wanted in (("attribution", expected.attribution), ("logits", expected.logits)):
        given = np.reshape(outputs[name]["data"], outputs[name]["shape"])
        assert given.shape == wanted.shape
        assert np.abs(given - wanted).max() <= 1e-5 * np.abs(wanted).max()
    drawn = np.reshape(outputs["overlay"]["data"], outputs["overlay"]["shape"])
    assert np.abs(drawn - expected.overlay.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--name", "a/b"], "'a/b' is no name for a model"),
        (["--max-batch", "0"], "cannot put 0 pictures together: give 1 or more"),
        (["--name", "there"], "exists already: remove it, or give another name with --name"),
    ],
)
def test_mistakes(
    arguments: list[str], error: str, toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    (models / "there").mkdir(parents=True)
    with pytest.raises(SystemExit) as exit_:
        main(["package", str(toy.path), "--triton", str(models), *arguments])
    assert exit_.value.code == 2
    assert error in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in models.iterdir()] == ["there"]


def test_a_repository_that_cannot_be_written(toy: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SptraceError, match="cannot write"):
        triton.write(toy.path, tmp_path / "file")
    with pytest.raises(SptraceError, match="cannot read"):
        triton.write(tmp_path / "nothing.onnx", tmp_path / "models")
