"""The page in a real Chromium: what it shows is what Python computes."""

from __future__ import annotations

import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from helpers.consumers import require
from helpers.small_networks import classifier, transformer
from PIL import Image

import sptrace
from sptrace.artifact.onnx_file import without_defaults
from sptrace.cli import main
from sptrace.deploy.web import export, onnxruntime_web, server
from sptrace.errors import SptraceError
from sptrace.runtime.photo import prepare, read

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),  # a GPU made of software
)
TOLERANCE = 1e-4
"""Of the largest value."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    require(shutil.which("chromium") and shutil.which("chromedriver"), "chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--window-size=1200,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Callable[..., None]]:
    running = []

    def open_page(artifact: Path, query: str = "?threads=2") -> None:
        try:
            export(artifact, tmp_path / "site")
        except SptraceError as error:
            require("cannot download" not in str(error), str(error))
            raise
        running.append(server(tmp_path / "site", 0))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        browser.get(f"http://localhost:{running[-1].server_address[1]}/{query}")
        wait(browser, "return document.getElementById('status').textContent.startsWith('Ready')")

    yield open_page
    for one in running:
        one.shutdown()
        one.server_close()


def wait(browser: Any, script: str, seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := browser.execute_script(script):
            return answer
        time.sleep(0.1)
    status = browser.execute_script("return document.getElementById('status').textContent")
    raise AssertionError(f"{script} stayed false; status: {status}; {browser.get_log('browser')}")


def explained(browser: Any, act: Callable[[], object]) -> dict[str, Any]:
    """What the page computes after an action."""
    browser.execute_script("window.sptrace.result = null")
    act()
    return dict(wait(browser, "return window.sptrace.result"))


def choose(browser: Any, photograph: Path) -> Callable[[], object]:
    return lambda: browser.find_element("id", "file").send_keys(str(photograph))


@pytest.fixture(scope="module")
def rocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from skimage import data

    path = tmp_path_factory.mktemp("photographs") / "rocket.png"
    Image.fromarray(data.rocket()).save(path)
    return path


def close(given: list[float], expected: np.ndarray) -> bool:
    error = np.abs(np.array(given) - expected.reshape(-1)).max() / np.abs(expected).max()
    print(f"{error:.1e} of the largest value")
    return bool(error <= TOLERANCE)


@pytest.mark.slow
def test_a_photograph_is_explained(
    browser: Any, open_page: Callable[..., None], lite0: Callable[..., Path], rocket: Path, tmp_path: Path
) -> None:
    artifact = lite0("soft_pullback")
    open_page(artifact)
    explainer = sptrace.load(artifact)
    expected = explainer.explain(np.asarray(read(rocket))[None])
    given = explained(browser, choose(browser, rocket))
    assert given["target"] == expected.target[0]
    assert close(given["attribution"], expected.attribution)
    assert close(given["logits"], expected.logits)
    buttons = browser.find_elements("css selector", "#top button")
    best = np.argsort(-expected.logits[0])[:5]
    assert [button.text.splitlines()[0] for button in buttons] == [explainer.labels[i] for i in best]
    assert buttons[0].text.splitlines()[1] == f"{100 * expected.probabilities[0, best[0]]:.1f} %"

    second = explained(browser, buttons[1].click)
    assert second["target"] == best[1]
    assert close(second["attribution"], explainer.attribute(np.asarray(read(rocket))[None], int(best[1])))

    search = browser.find_element("id", "search")
    third = explained(browser, lambda: search.send_keys("space shuttle\n"))
    assert explainer.labels[third["target"]] == "space shuttle"
    assert "ms" in browser.find_element("id", "status").text
    browser.save_screenshot(tmp_path / "page.png")
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


@pytest.mark.slow
def test_artifacts_that_take_prepared_images(
    browser: Any, open_page: Callable[..., None], rocket: Path, tmp_path: Path
) -> None:
    """There the page resizes, to the same bytes as Pillow."""
    path = tmp_path / "small.onnx"
    sptrace.compile(classifier(), np_example(), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)).save(path)
    open_page(path, "?threads=1")
    explainer = sptrace.load(path)
    image = prepare(read(rocket), explainer.description.preprocessing)
    given = explained(browser, choose(browser, rocket))
    expected = explainer.explain(image)
    assert given["target"] == expected.target[0]
    assert close(given["attribution"], expected.attribution)
    assert close(given["logits"], expected.logits)


def one_output() -> Any:
    """A linear classifier of two classes, or a regression: nobody knows which."""
    from helpers.small_networks import small
    from torch import nn

    return small(lambda self, x: self.head(x.mean((2, 3))), head=nn.Linear(3, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("link", "labels"), [("sigmoid", ["healthy", "sick"]), ("sigmoid", ["sick"]), ("none", None)]
)
def test_what_is_shown_of_one_output(
    link: str,
    labels: list[str] | None,
    browser: Any,
    open_page: Callable[..., None],
    rocket: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "one.onnx"
    sptrace.compile(one_output(), np_example(), link=link, labels=labels).save(path)
    open_page(path, "?threads=1")
    explainer = sptrace.load(path)
    image = prepare(read(rocket), explainer.description.preprocessing)
    given = explained(browser, choose(browser, rocket))
    for target in (None, *range(explainer.classes)):
        expected = explainer.explain(image, target)
        (index,) = expected.target
        if target is not None:
            wanted = expected.label()
            (button,) = [
                button
                for button in browser.find_elements("css selector", "#top button")
                if button.text.splitlines()[0] == wanted
            ]
            shown = button.text.splitlines()[1]
            if expected.probabilities is None:
                assert float(shown) == pytest.approx(expected.scores[0, index], rel=1e-3)
            else:
                assert shown == f"{100 * expected.probabilities[0, index]:.1f} %"
            given = explained(browser, button.click)
        assert given["target"] == index
        assert close(given["attribution"], expected.attribution)
    browser.save_screenshot(tmp_path / "page.png")
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["EfficientNet-Lite0", "transformer", "ascent"])
def test_webgpu(
    network: str,
    browser: Any,
    open_page: Callable[..., None],
    lite0: Callable[..., Path],
    rocket: Path,
    tmp_path: Path,
) -> None:
    if network == "EfficientNet-Lite0":
        path = lite0("soft_pullback", size=96)  # a GPU made of software takes a minute and a half for 224
    else:
        path = tmp_path / "small.onnx"
        model = transformer() if network == "transformer" else classifier()
        program = "pullback_ascent" if network == "ascent" else "soft_pullback"
        sptrace.compile(model, np_example(), program=program, input="uint8").save(path)
    open_page(path, "?backend=webgpu")
    explainer = sptrace.load(path)
    expected = explainer.explain(np.asarray(read(rocket))[None])
    given = explained(browser, choose(browser, rocket))
    assert given["target"] == expected.target[0]
    assert close(given["attribution"], expected.attribution)
    assert close(given["logits"], expected.logits)
    assert browser.execute_script("return window.sptrace.state.ort.env.webgpu.device !== undefined")
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def np_example() -> Any:
    from helpers.deterministic import images

    return images(1, 1, 64)


@pytest.mark.slow
def test_an_ascent_has_sliders(
    browser: Any, open_page: Callable[..., None], lite0: Callable[..., Path], rocket: Path
) -> None:
    """With short steps: what runtimes round differently grows with every long one (docs/deployment.md)."""
    from selenium.webdriver.common.keys import Keys

    artifact = lite0("pullback_ascent")
    open_page(artifact)
    explainer = sptrace.load(artifact)
    pixels = np.asarray(read(rocket))[None]
    first = explained(browser, choose(browser, rocket))
    steps, alpha = (browser.find_element("id", f"setting-{name}") for name in ("steps", "alpha"))
    assert int(steps.get_attribute("value")) == explainer.description.settings["steps"]
    explained(browser, partial(steps.send_keys, Keys.HOME))
    explained(browser, partial(alpha.send_keys, Keys.HOME))
    explained(browser, partial(alpha.send_keys, Keys.ARROW_RIGHT))
    length = float(alpha.get_attribute("value"))
    assert 0 < length < explainer.description.settings["alpha"]
    for count in (2, 3):
        given = explained(browser, partial(steps.send_keys, Keys.ARROW_RIGHT))
        expected = explainer.explain(pixels, int(first["target"]), steps=count, alpha=length)
        assert close(given["attribution"], expected.attribution)
        assert close(given["image_out"], expected.image_out)
    assert browser.find_element("id", "arrived").is_displayed()


@pytest.mark.slow
def test_it_fits_a_phone_and_speaks_of_mistakes(
    browser: Any, open_page: Callable[..., None], lite0: Callable[..., Path], rocket: Path, tmp_path: Path
) -> None:
    open_page(lite0("soft_pullback"))
    assert "Pictures never leave it" in browser.find_element("tag name", "body").text
    no_picture = tmp_path / "notes.png"
    no_picture.write_text("no picture")
    browser.find_element("id", "file").send_keys(str(no_picture))
    wait(browser, "return document.getElementById('status').textContent.includes('is not a picture')")
    explained(browser, choose(browser, rocket))
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        assert browser.execute_script("return document.getElementById('overlay').clientWidth") > 300
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_defaults_become_inputs(lite0: Callable[..., Path], tmp_path: Path) -> None:
    artifact, bare = lite0("pullback_ascent"), tmp_path / "bare.onnx"
    bare.write_bytes(without_defaults(artifact, ["steps", "alpha"]))
    before, after = (onnxruntime.InferenceSession(path) for path in (artifact, bare))
    assert {item.name for item in after.get_inputs()} == {"image", "target", "steps", "alpha"}
    assert [item.name for item in after.get_overridable_initializers()] == [
        item.name for item in before.get_overridable_initializers() if item.name not in ("steps", "alpha")
    ]
    image = np.zeros((1, 40, 30, 3), np.uint8)
    feeds = {"image": image, "target": np.array([3])}
    settings = {"steps": np.array(2), "alpha": np.array(5, np.float32)}
    one, other = (session.run(["attribution"], {**feeds, **settings})[0] for session in (before, after))
    assert np.array_equal(one, other)
    assert without_defaults(artifact, []) == artifact.read_bytes()


def test_what_the_page_cannot_explain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["web", str(tmp_path / "nothing.onnx"), "--export", str(tmp_path / "site")])
    assert "cannot read" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()
    path = tmp_path / "direction.onnx"
    sptrace.compile(classifier(), np_example(), direction=True).save(path)
    with pytest.raises(SptraceError, match="the page explains classes"):
        export(path, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_another_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(onnxruntime_web, "_download", lambda: b"something else")
    with pytest.raises(SptraceError, match="is not that package"):
        onnxruntime_web.files()
    assert list(tmp_path.rglob("*.wasm")) == []
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    with pytest.raises(SptraceError, match=r"cannot download http://127\.0\.0\.1:9/onnxruntime-web/"):
        onnxruntime_web.files()


def test_the_port_is_taken(tmp_path: Path) -> None:
    with server(tmp_path, 0) as running, pytest.raises(SptraceError, match="give another with --port"):
        server(tmp_path, running.server_address[1])


def test_the_server_allows_threads(tmp_path: Path) -> None:
    (tmp_path / "a.mjs").write_text("1")
    with server(tmp_path, 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        with urllib.request.urlopen(f"http://localhost:{running.server_address[1]}/a.mjs") as answer:
            headers = dict(answer.headers)
        running.shutdown()
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["Content-type"] == "text/javascript"
