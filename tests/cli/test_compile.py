from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sptrace
from sptrace.artifact.softening import MEASURED
from sptrace.cli import main
from sptrace.runtime import picture

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line: exit status, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        output, errors = capsys.readouterr()
        return int(exit_.value.code or 0), output, errors

    return run


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU())
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A small network as a .pt2 file."""
    path = tmp_path / "tiny.pt2"
    batch = torch.export.Dim("batch")
    program = torch.export.export(Tiny().eval(), (torch.zeros(2, 3, 20, 24),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


def test_class_names_from_a_file(run: Run, exported: Path, tmp_path: Path) -> None:
    """A .pt2 file names no classes; four names for five classes are refused before anything is written."""
    artifact, names = tmp_path / "tiny.onnx", tmp_path / "names.txt"
    names.write_text("7\n3\ncat\ndog\n")
    status, _, errors = run("compile", exported, "-o", artifact, "--labels", names)
    assert (status, errors.splitlines()[-1]) == (2, "error: 4 labels for 5 classes: give one name per class")
    assert not artifact.exists()
    names.write_text("7\n3\ncat\ndog\n10\n")
    assert run("compile", exported, "-o", artifact, "--labels", names)[0] == 0
    explainer = sptrace.load(artifact)
    assert explainer.labels == ("7", "3", "cat", "dog", "10")
    image = np.zeros((1, 3, 20, 24), np.float32)
    assert [int(explainer.explain(image, text).target[0]) for text in ("3", "label:3", "10")] == [3, 1, 4]


def test_from_network_to_picture(run: Run, exported: Path, tmp_path: Path) -> None:
    artifact, photograph, picture = tmp_path / "tiny.onnx", tmp_path / "photo.png", tmp_path / "why.png"
    status, output, _ = run(
        "compile", exported, "-o", artifact, "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"
    )
    assert status == 0
    assert f"1 relu (phi, tau {MEASURED})" in output
    assert str(artifact) in output
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(photograph)
    status, output, _ = run("explain", artifact, photograph, "-o", picture)
    assert status == 0
    assert Image.open(picture).width > 1000
    status, output, _ = run("inspect", artifact)
    assert "soft_pullback" in output


def test_options_reach_the_artifact(run: Run, exported: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "tiny.onnx"
    options = ("--tau", "relu=0.25", "--rule", "relu=sigmoid")
    assert run("compile", exported, "-o", artifact, *options)[0] == 0
    (gate,) = sptrace.load(artifact).description.gates
    assert (gate.kind, gate.rule, gate.tau, gate.count) == ("relu", "sigmoid", 0.25, 1)
    assert run("compile", exported, "-o", artifact, "--program", "gradient")[0] == 0
    description = sptrace.load(artifact).description
    assert (description.program, description.gates[0].rule) == ("gradient", "hard")


def test_normalisation_is_part_of_the_artifact(run: Run, exported: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "tiny.onnx"
    assert run("compile", exported, "-o", artifact, "--mean", "0.1,0.2,0.3", "--std", "0.5,0.6,0.7")[0] == 0
    image = torch.rand(2, 3, 20, 24) * 2 - 1
    pixels = (image + 1) / 2
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    expected = Tiny().eval()((pixels - mean) / std).detach().numpy()
    np.testing.assert_allclose(sptrace.load(artifact).explain(image.numpy()).logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("efficientnet_lite9",), "efficientnet_lite0"),
        (("torchvision:resnet5",), "torchvision:resnet50"),
        (("{exported}", "--tau", "relu"), "NAME=VALUE"),
        (("{exported}", "--tau", "relu=warm"), "must be a number"),
        (("{exported}", "--tau", "relu=-1"), "above 0"),
        (("{exported}", "--tau", "rely=1"), "relu"),
        (("{exported}", "--rule", "relu=softly"), "phi"),
        (("{exported}", "--preset", "papery"), "paper"),
        (("{exported}", "--program", "soft_pushback"), "soft_pullback"),
        (("{exported}", "--mean", "0.5,0.5,0.5"), "together"),
        (("{exported}", "--mean", "0.5,0.5", "--std", "1,1,1"), "three numbers"),
        (("{exported}", "--mean", "0,0,0", "--std", "1,0,1"), "above 0"),
        (("torchvision:resnet18", "--weights", "{folder}/absent.pth"), "absent.pth"),
    ],
)
def test_mistakes_are_one_line(
    run: Run, exported: Path, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    artifact = tmp_path / "out.onnx"
    words = [word.format(exported=exported, folder=tmp_path) for word in arguments]
    status, output, errors = run("compile", *words, "-o", artifact)
    line = errors.strip().splitlines()[-1]
    assert status == 2
    assert output == ""
    assert line.startswith("error: ")
    assert complaint in line
    assert "Traceback" not in errors
    assert not artifact.exists()


def test_wrong_weights_name_the_keys(run: Run, tmp_path: Path) -> None:
    weights = tmp_path / "wrong.safetensors"
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7), "surplus": torch.zeros(1)}, weights)
    artifact = tmp_path / "out.onnx"
    status, _, errors = run("compile", "torchvision:resnet18", "--weights", weights, "-o", artifact)
    assert status == 2
    assert "surplus" in errors
    assert "bn1.weight" in errors
    assert not artifact.exists()


@pytest.mark.parametrize("name", ["out.txt", "absent/out.onnx"])
def test_unwritable_outputs_are_refused_before_the_work(
    run: Run, exported: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sptrace.models.resolve", lambda *_, **__: pytest.fail("the work had begun"))
    status, _, errors = run("compile", exported, "-o", tmp_path / name)
    assert status == 2
    assert errors.startswith("error: cannot write")
    assert not os.path.exists(tmp_path / name)


def test_a_network_without_rules_leaves_no_file(run: Run, tmp_path: Path) -> None:
    class LogGamma(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.lgamma(x.flatten(1))[:, :5]

    batch = torch.export.Dim("batch")
    program = torch.export.export(LogGamma().eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    path, artifact = tmp_path / "log_gamma.pt2", tmp_path / "out.onnx"
    torch.export.save(program, path)
    artifact.write_bytes(b"what was there before")
    status, _, errors = run("compile", path, "-o", artifact)
    assert status == 2
    assert "aten.lgamma" in errors
    assert artifact.read_bytes() == b"what was there before"
    assert {file.name for file in tmp_path.iterdir()} == {"log_gamma.pt2", "out.onnx"}


def test_a_softening_from_flags(run: Run, exported: Path, tmp_path: Path) -> None:
    artifact, folder = tmp_path / "tiny.onnx", tmp_path / "pictures"
    folder.mkdir()
    for shade in (10, 200):
        noise = np.random.default_rng(shade).integers(0, shade, (30, 30, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{shade}.png")
    (folder / "notes.txt").write_text("no picture")
    softened = ("--tau", "relu=0.5std", "--calibrate", folder)
    status, output, errors = run("compile", exported, "-o", artifact, *softened)
    assert (status, errors) == (0, "")
    assert "1 relu (phi, tau 0.5std)" in output
    description = sptrace.load(artifact).description
    assert description.softening == sptrace.Softening("relative", tau={"relu": "0.5std"}, scale="calibration")
    assert len(description.scales) == 1
    run("compile", exported, "-o", artifact, "--override", "*:relu=sigmoid", "--override", "*:max_pool=hard")
    status, _, errors = run("compile", exported, "-o", artifact, "--override", "*:relu=0.25")
    assert status == 0
    wanted = sptrace.Softening(overrides={"*": {"relu": 0.25}})
    assert sptrace.load(artifact).description.softening == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--override", "relu=0.3"), "write PATTERN:KIND=VALUE"),
        (("--override", "a:relu"), "--override relu: write NAME=VALUE"),
        (("--override", "nowhere:relu=0.3"), "matches no relu gate"),
        (("--tau", "relu=0.5std", "--calibrate", "{tmp_path}/none"), "there is no folder"),
        (("--tau", "relu=0.5std", "--calibrate", "{tmp_path}"), "holds no pictures"),
    ],
)
def test_mistakes_in_a_softening(
    run: Run, exported: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    words = tuple(word.format(tmp_path=tmp_path) for word in words)
    status, _, errors = run("compile", exported, "-o", tmp_path / "tiny.onnx", *words)
    assert status == 2
    assert message in errors.replace("\n", " ")
    assert not (tmp_path / "tiny.onnx").exists()


def rows(output: str) -> list[str]:
    return [" ".join(line.split()) for line in output.splitlines()]


def test_a_channel_of_a_layer_from_network_to_picture(run: Run, tmp_path: Path) -> None:
    artifact, photograph, numbers = tmp_path / "b.onnx", tmp_path / "photo.png", tmp_path / "n.npz"
    neuron = ("--layer", "_blocks.5", "--unit", 7, "--position", "1,2")
    status, output, errors = run("compile", "efficientnet_lite0", "-o", artifact, "--size", 64, *neuron)
    assert status == 0, errors
    assert "at _blocks.5, unit 7, position (1, 2); gates" in output
    assert "settings layer _blocks.5, unit 7, position (1, 2), channels 1" in rows(
        run("inspect", artifact)[1]
    )
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(photograph)
    outputs = ("-o", tmp_path / "why.png", "--save-npz", numbers)
    status, output, _ = run("explain", artifact, photograph, *outputs, "--top", 3)
    assert status == 0
    with np.load(numbers) as saved:
        activation, target = saved["activation"], saved["target"]
    assert activation.shape == (3, 80)
    ranked = [index for index in np.argsort(-activation[0]).tolist() if index != 7]
    assert target.tolist() == [7, *ranked[:2]]
    assert rows(output)[1:4] == [
        f"{index} channel {index} {activation[0, index]:.3f}" for index in target.tolist()
    ]


def test_an_ascent_from_network_to_picture(run: Run, exported: Path, tmp_path: Path) -> None:
    artifact, photograph, numbers = tmp_path / "a.onnx", tmp_path / "photo.png", tmp_path / "n.npz"
    program = ("--program", "pullback_ascent", "--option", "clamp=every")
    assert run("compile", exported, "-o", artifact, *program)[0] == 0
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(photograph)
    outputs = ("-o", tmp_path / "why.png", "--save-npz", numbers)
    status, output, _ = run("explain", artifact, photograph, *outputs, "--top", 2, "--option", "alpha=200")
    assert status == 0
    with np.load(numbers) as saved:
        arrived, logits_out, target = saved["image_out"], saved["logits_out"], saved["target"]
    assert arrived.shape == (2, 3, 20, 24)
    there = sptrace.load(artifact).explain(arrived, target)
    np.testing.assert_allclose(logits_out, there.logits, atol=1e-5)
    header, *rows = output.splitlines()[:3]
    assert header.split()[-6:] == ["after", "the", "ascent", "then", "most", "probable"]
    for row, (sample, index) in zip(rows, enumerate(target), strict=True):
        assert f"{there.probabilities[sample, index]:.2%}" in row
        assert row.rstrip().endswith(f"class {there.logits[sample].argmax()}")
    drawn = np.asarray(Image.open(tmp_path / "why.png"))
    width, height = 448, round(448 * 20 / 24)
    top, left = picture.MARGIN + picture.TITLE_HEIGHT, picture.MARGIN + 2 * (width + picture.GAP)
    panel = Image.fromarray(drawn[top : top + height, left : left + width])
    pixels = sptrace.photo.restore(arrived, sptrace.load(artifact).description.preprocessing)[0]
    wanted = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    assert (np.asarray(panel) == wanted).all()


def test_a_class_activation_map_at_a_layer_of_its_own_choice(run: Run, tmp_path: Path) -> None:
    artifact = tmp_path / "cam.onnx"
    asked = ("--program", "gradcam", "--option", "interpolation=nearest")
    status, output, errors = run("compile", "efficientnet_lite0", "-o", artifact, "--size", 64, *asked)
    assert status == 0, errors
    assert "gradcam of efficientnet_lite0 at _conv_head; gates" in output
    assert "settings layer _conv_head, channels 1, interpolation nearest" in rows(run("inspect", artifact)[1])
    by_name = run(
        "compile", "efficientnet_lite0", "-o", tmp_path / "no.onnx", "--size", 64, *asked, "--unit", 3
    )
    assert by_name[0] == 2
    assert "no option 'unit': it takes layer, channels, prefix_tokens, interpolation" in by_name[2]


def test_a_direction_on_the_command_line(run: Run, exported: Path, tmp_path: Path) -> None:
    artifact, photograph, numbers = tmp_path / "tiny.onnx", tmp_path / "photo.png", tmp_path / "n.npz"
    assert run("compile", exported, "-o", artifact, "--direction")[0] == 0
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(photograph)
    vector = np.array([1, 0, -2, 0, 0.5], np.float32)
    np.save(tmp_path / "direction.npy", vector)
    explain = ("explain", artifact, photograph, "-o", tmp_path / "why.png", "--save-npz", numbers)
    assert run(*explain, "--direction", tmp_path / "direction.npy")[0] == 0
    explainer = sptrace.load(artifact)
    image = sptrace.photo.prepare(sptrace.photo.read(photograph), explainer.description.preprocessing)
    with np.load(numbers) as saved:
        assert sorted(saved) == ["attribution", "logits"]
        np.testing.assert_array_equal(saved["attribution"], explainer.attribute(image, direction=vector))
    for arguments, complaint in (
        ((), "pass direction="),
        (("--target", "3"), "takes no target"),
        (("--direction", photograph), "write it with numpy.save"),
        (("--direction", numbers), "several arrays"),
        (("--direction", tmp_path / "direction.npy", "--target", "3"), "leave one of them out"),
        (("--top", "2"), "leave out --top"),
    ):
        status, _, errors = run(*explain, *arguments)
        assert (status, errors.count("\n")) == (2, 1)
        assert complaint in errors


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--position", "1,2"), "position belongs to a layer"),
        (("--layer", "features", "--position", "1;2"), "--position 1;2: write row and column"),
        (("--layer", "features", "--option", "layer=head"), "--layer and --option layer= say the same"),
        (("--layer", "feature"), "no layer 'feature': did you mean features"),
        (("--layer", "features"), "never calls 'features' as a module"),
        (("--layer", "features", "--unit", "1", "--direction"), "leave out one of unit and direction"),
    ],
)
def test_wrong_neurons(
    run: Run, exported: Path, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    status, _, errors = run("compile", exported, "-o", tmp_path / "tiny.onnx", *arguments)
    assert (status, errors.count("\n")) == (2, 1)
    assert complaint in errors
    assert not (tmp_path / "tiny.onnx").exists()


def test_from_photograph_to_overlay(run: Run, exported: Path, tmp_path: Path) -> None:
    """The artifact prepares the photograph, and what it says of that can be read."""
    artifact, photograph, numbers = tmp_path / "tiny.onnx", tmp_path / "photo.png", tmp_path / "numbers.npz"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(photograph)
    status, _, errors = run("compile", exported, "-o", artifact, "--input", "uint8", "--overlay")
    assert (status, errors) == (0, "")
    _, output, _ = run("inspect", artifact)
    assert "(by the artifact" in output
    assert "levels of 255 of Pillow's" in " ".join(output.split())
    arguments = ("-o", tmp_path / "why.png", "--save-npz", numbers, "--top", 2)
    assert run("explain", artifact, photograph, *arguments)[0] == 0
    assert np.load(numbers)["overlay"].shape == (2, 50, 70, 3)


def test_an_overlay_needs_a_photograph(run: Run, exported: Path, tmp_path: Path) -> None:
    status, _, errors = run("compile", exported, "-o", tmp_path / "tiny.onnx", "--overlay")
    assert status == 2
    assert "compile with input uint8" in errors
    assert not (tmp_path / "tiny.onnx").exists()
