from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sptrace.artifact.description import Preprocessing
from sptrace.bench import cold, job, timing
from sptrace.bench.job import Failed, Job
from sptrace.bench.prepare import prepare
from sptrace.bench.worker import Worker
from sptrace.compiler.network import Network
from sptrace.errors import SptraceError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that is ready to be measured at batch sizes 1 and 2."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    module.eval().requires_grad_(False)
    network = Network(module, "small", Preprocessing(size=(20, 24)), None, "random")
    path = tmp_path_factory.mktemp("bench")
    prepared = prepare(network, "soft_pullback", path, [1, 2], ["eager", "aotinductor"])
    assert prepared.unavailable == {}
    assert not prepared.by_norm
    assert prepared.gflop[2] == pytest.approx(2 * prepared.gflop[1])
    return path


def test_every_side_is_measured(folder: Path) -> None:
    seen = []
    rows, peak = timing.measure(
        folder, 2, ["eager"], threads=1, rounds=3, gflop=1e-3, progress=lambda words, done: seen.append(done)
    )
    assert [row.side for row in rows] == ["sptrace", "eager"]
    ours, eager = rows
    for row in rows:
        assert row.why == ""
        assert 0 < row.min_ms <= row.median_ms <= row.max_ms
        assert row.peak_megabytes > 20
    assert eager.difference < 1e-5
    assert (ours.difference, ours.ratio) == (None, 1.0)
    assert eager.ratio == pytest.approx(eager.median_ms / ours.median_ms)
    assert ours.gflops == pytest.approx(1e-3 / (ours.median_ms / 1e3))
    assert ours.share_of_peak == pytest.approx(ours.gflops / peak)
    # torch alone is larger than our whole side.
    assert eager.peak_megabytes > ours.peak_megabytes
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_a_peer_that_disagrees_is_not_measured(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    record = torch.load(tmp_path / job.NETWORK, weights_only=False)
    record["rules"] = {**record["rules"], "relu": record["rules"]["relu"]._replace(tau=0.61)}
    torch.save(record, tmp_path / job.NETWORK)
    rows, _ = timing.measure(tmp_path, 1, ["eager"], threads=1, rounds=1)
    assert rows[0].median_ms is not None
    assert rows[1].median_ms is None
    assert rows[1].difference > timing.TOLERANCE
    assert "differs from ours" in rows[1].why


def test_what_is_known_to_be_missing(folder: Path) -> None:
    rows, _ = timing.measure(folder, 1, ["eager"], threads=1, rounds=1, unavailable={"eager": "no such luck"})
    assert (rows[1].why, rows[1].median_ms) == ("no such luck", None)


def test_without_an_artifact(tmp_path: Path) -> None:
    np.savez(tmp_path / job.INPUT, image=np.zeros((1, 3, 4, 4), np.float32), target=np.zeros(1, np.int64))
    with pytest.raises(SptraceError, match=r"cannot measure sptrace at batch size 1: .*artifact\.onnx"):
        timing.measure(tmp_path, 1, [], threads=1, rounds=1)


def test_a_side_that_fails_says_why(folder: Path) -> None:
    with Worker(Job("eager", folder / "absent", 1, 1)) as worker:
        ready = worker.start()
    assert isinstance(ready, Failed)
    assert ready.reason.startswith("FileNotFoundError: ")
    assert "\n" not in ready.reason


def test_a_process_that_dies_says_why(folder: Path) -> None:
    with Worker(Job("sptrace", folder, 1, 1)) as worker:
        worker.start()
        worker._process.kill()
        with pytest.raises(SptraceError, match="the process ended with status -9"):
            worker.run()


@pytest.mark.slow
def test_openvino_and_aotinductor(folder: Path) -> None:
    pytest.importorskip("openvino")
    rows, _ = timing.measure(folder, 2, ["aotinductor", "openvino"], threads=1, rounds=2)
    for row in rows[1:]:
        assert row.why == ""
        assert row.difference < 1e-5


def test_a_library_that_is_missing_is_a_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sptrace.bench import sides

    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SptraceError, match="not installed: pip install openvino"):
        sides.openvino(Job("openvino", folder, 1, 1))


def test_difference() -> None:
    wanted = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
    given = wanted + np.array([[0.0, 0.5], [0.0, 0.0]], np.float32)
    assert timing.difference(given, wanted, by_norm=False) == pytest.approx(0.125)
    assert timing.difference(given, wanted, by_norm=True) == pytest.approx(0.1)
    assert timing.difference(given[:1], wanted, by_norm=False) == float("inf")
    assert timing.difference(given * np.nan, wanted, by_norm=False) == float("inf")


def test_cold_start(folder: Path) -> None:
    starts = cold.measure(folder, 1, runs=1)
    assert [start.side for start in starts] == ["sptrace", "eager"]
    ours, eager = starts
    assert 0 < ours.seconds < eager.seconds
    assert 20 < ours.peak_megabytes < eager.peak_megabytes


def test_a_cold_start_that_fails(tmp_path: Path) -> None:
    with pytest.raises(SptraceError, match="the cold start of sptrace failed: FileNotFoundError"):
        cold.measure(tmp_path, 1, runs=1)


@pytest.mark.parametrize("module", ["sptrace.bench.worker", "sptrace.bench.timing", "sptrace.cli.bench"])
def test_without_torch(module: str) -> None:
    """The process of our own side must not carry torch, nor the command line."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rows_are_data() -> None:
    row = timing.Row(1, "sptrace")
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.batch = 2  # type: ignore[misc]
