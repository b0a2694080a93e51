from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from sptrace.artifact.description import FORMAT, Description, GateCount, Measured, Preprocessing, Verification
from sptrace.artifact.softening import Softening
from sptrace.errors import SptraceError

FULL = Description(
    version="1.2",
    program="soft_pullback",
    network="torchvision:resnet50",
    weights="«random», seed 3\n",
    parameters=25_557_032,
    classes=3,
    preprocessing=Preprocessing(
        size=(224, 192),
        resize=256,
        interpolation="bicubic",
        input_range=(0.0, 255.0),
        mean=(0.1, 0.2, 0.3),
        std=(0.2, 0.3, 0.4),
    ),
    softening=Softening("paper", overrides={"features.*": {"relu": "0.3std"}}),
    gates=(GateCount("relu", "phi", 0.6, 17), GateCount("hardtanh", "gate", None, 1)),
    labels=("tench, Tinca tinca", 'the "other"', "日本"),
    verification=Verification(
        tolerance=1e-4,
        measure="maximum",
        onnxruntime="1.21",
        torch="2.9",
        batches=(Measured(1, 1e-7, 2e-7, 3e-7, 4e-7), Measured(2, 1.5e-7, 0.0, 3e-7, 4e-7)),
    ),
)
BARE = dataclasses.replace(FULL, labels=None, verification=None, gates=())


@pytest.mark.parametrize("description", [FULL, BARE])
def test_there_and_back(description: Description) -> None:
    text = description.to_json()
    again = Description.from_json(text)
    assert again == description
    assert again.to_json() == text
    assert isinstance(again.gates, tuple)
    assert isinstance(again.preprocessing.size, tuple)


def test_one_line_of_json_for_others_to_read() -> None:
    text = FULL.to_json()
    assert "\n" not in text
    data = json.loads(text)
    assert data["format"] == FORMAT
    assert data["labels"][2] == "日本"
    assert "日本" in text
    assert data["gates"][0] == {"kind": "relu", "rule": "phi", "tau": 0.6, "count": 17}
    assert data["preprocessing"]["size"] == [224, 192]
    assert data["preprocessing"]["std"] == [0.2, 0.3, 0.4]
    assert data["taken_off"] is None


def altered(**changes: Any) -> str:
    return json.dumps({**json.loads(FULL.to_json()), **changes})


def test_a_newer_format() -> None:
    text = altered(format=FORMAT + 1, version="9.0", something_new=1, gates={"of": "another shape"})
    with pytest.raises(SptraceError, match=r"written by sptrace 9\.0, .*: upgrade sptrace$") as error:
        Description.from_json(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "7",
        "{}",
        FULL.to_json()[:-40],
        altered(format=None),
        altered(format="1"),
        altered(unknown=1),
        altered(preprocessing=None),
        altered(preprocessing={"size": [1, 2], "colour": True}),
        altered(preprocessing={}),
        altered(gates=None),
        altered(gates=[{"kind": "relu"}]),
        altered(gates=["relu"]),
        altered(verification={"tolerance": 1}),
        altered(verification=[1]),
        altered(classes="3"),
        altered(classes=0),
        altered(classes=3.5),
        altered(classes=True),
        altered(labels="abc"),
        altered(labels=[1, 2, 3]),
        altered(program=7),
        altered(parameters=-1),
        altered(format=0),
        altered(format=True),
        altered(taken_off="tanh"),
        altered(taken_off="softmax", link="sigmoid"),
        altered(gates=[{"kind": "relu", "rule": "phi", "tau": 0.6, "count": -3}]),
        altered(network=None),
        altered(parameters=[]),
        altered(settings=[]),
        altered(precision="fp8"),
        altered(input="float64"),
        altered(overlay="yes"),
        altered(softening="paper"),
        altered(softening={"preset": "nonsense"}),
        altered(softening={"tau": {"relu": 1e-30}}),
        altered(softening={"temperature": 1}),
        altered(scales=[{"path": "a", "scale": "large"}]),
        altered(scales=[{"path": "a", "scale": float("nan")}]),
        altered(gates=[{"kind": "relu", "rule": "phi", "tau": [1], "count": 1}]),
        *(
            altered(preprocessing={**json.loads(FULL.to_json())["preprocessing"], **change})
            for change in (
                {"size": [224]},
                {"size": [0, 224]},
                {"size": [224, 10**9]},
                {"size": ["224", "224"]},
                {"resize": -1},
                {"interpolation": "magic"},
                {"input_range": [1, -1]},
                {"input_range": [0, float("inf")]},
                {"mean": [0.1, float("nan"), 0.3]},
                {"std": [0.1, 0.0, 0.3]},
                {"std": [0.1, 0.2]},
                {"std": None},
            )
        ),
        "[" * 100_000,
        json.dumps({key: value for key, value in json.loads(FULL.to_json()).items() if key != "classes"}),
    ],
)
def test_damage(text: str) -> None:
    with pytest.raises(
        SptraceError, match=r"^the artifact's description is damaged \(.*compile it again$"
    ) as error:
        Description.from_json(text)
    assert "\n" not in str(error.value)


def test_it_needs_no_torch() -> None:
    code = "import sys, sptrace.artifact.description; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
