"""One rule for what a text means, in Python and in the browser; cpp/test_explain asks the C++ program the same."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.class_names import LABELS, RULE
from helpers.consumers import require
from PIL import Image

import sptrace
from sptrace.cli import main
from sptrace.runtime import explainer as runtime
from sptrace.runtime.targets import of_text


@pytest.mark.parametrize(("text", "wanted"), RULE)
def test_the_rule(text: str, wanted: int | str) -> None:
    if isinstance(wanted, int):
        assert of_text(text, LABELS, len(LABELS)) == wanted
        return
    with pytest.raises(sptrace.SptraceError, match=wanted) as error:
        of_text(text, LABELS, len(LABELS))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_the_rule_in_the_browser(tmp_path: Path) -> None:
    node = shutil.which("node")
    require(node, "node")
    module = shutil.copy(
        Path(sptrace.__file__).parent / "deploy" / "web" / "page" / "classes.js", tmp_path / "classes.mjs"
    )
    code = (
        f"const {{ classOf }} = await import({json.dumps(str(module))});"
        f"const answers = {json.dumps([text for text, _ in RULE])}"
        f".map((text) => classOf(text, {json.dumps(LABELS)}, {len(LABELS)}));"
        "console.log(JSON.stringify(answers));"
    )
    command = [str(node), "--input-type=module", "-e", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for (text, wanted), answer in zip(RULE, json.loads(done.stdout), strict=True):
        if isinstance(wanted, int):
            assert answer == {"index": wanted}, text
        else:
            assert wanted in answer["error"], text


def test_python_and_the_command_line_explain_the_same(make_toy: Any, tmp_path: Path) -> None:
    toy = make_toy(labels=LABELS)
    Image.new("RGB", (40, 40), "teal").save(tmp_path / "photo.png")
    explainer = runtime.load(toy.path)
    image = np.zeros((1, 3, 24, 32), np.float32)
    for text, wanted in RULE:
        if isinstance(wanted, int) and wanted >= 0:
            assert explainer.explain(image, text).target.tolist() == [wanted]
    for text, wanted in (("3", 3), ("label:3", 1), ("12", 5)):
        numbers = tmp_path / "numbers.npz"
        files = (tmp_path / "photo.png", "-o", tmp_path / "out.png", "--save-npz", numbers)
        with pytest.raises(SystemExit) as exit_:
            main(["explain", *map(str, (toy.path, *files)), "--target", text])
        assert not exit_.value.code
        assert np.load(numbers)["target"].tolist() == [wanted]


def test_channels_have_numbers_alone(make_toy: Any) -> None:
    """Labels are those of classes: a layer's channel 3 is channel 3."""
    explainer = runtime.load(make_toy(labels=LABELS).path)
    explainer._layer = "features"
    image = np.zeros((1, 3, 24, 32), np.float32)
    assert explainer.explain(image, "3").target.tolist() == [3]
    for text, complaint in (
        ("label:3", "have no names"),
        ("12", "there is no channel 12"),
        ("4_2", "have no names"),
    ):
        with pytest.raises(sptrace.SptraceError, match=complaint):
            explainer.explain(image, text)
