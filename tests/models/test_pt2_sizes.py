"""Sizes for which a graph was exported: expressions worked out without evaluating them as Python."""

from pathlib import Path

import pytest
import torch
from helpers.pt2_files import changed, entries, exported, written
from torch import Tensor, nn
from torch.export import Dim

from sptrace.errors import SptraceError
from sptrace.models import resolve
from sptrace.models.pt2_sizes import evaluate

SYMBOL = "Symbol('s1', positive=True, integer=True)"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f"Add(Mul(Integer(-4), {SYMBOL}), Integer(3))", -25),
        (f"Max(Integer(1), FloorDiv({SYMBOL}, Integer(2)))", 3),
        (f"Mod({SYMBOL}, Integer(4))", 3),
        ("(L['x'].size()[2] % 4) == 0", True),
        ("((-2) + L['args'][0].size()[3]) != 1", True),
        ("2 <= L['x'].size()[0] and L['x'].size()[0] <= 1", False),
        ("not L['x'].size()[1] > 3 or 1 == 2", True),
        ("torch.sym_max(1, (-2) + L['x'].size()[3])*torch.sym_min(1, 5) < 9", False),
        ("math.floor(1.5*torch.sym_float(L['x'].size()[2])) >= 2", True),
        ("math.ceil(L['x'].size()[2] / 3) == 6", True),
        ("1 < L['x'].size()[1] < 3", False),
    ],
)
def test_expressions(text: str, value: int) -> None:
    assert evaluate(text, (2, 3, 16, 24), {"s1": 7}) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "().__class__",
        "L['x'].size().__class__",
        "L['x'].size()[1].bit_length()",
        "L[__import__('os')].size()[1]",
        "X['x'].size()[1]",
        "[1 for _ in (1,)]",
        "(lambda: 1)()",
        "Max(*[1, 2])",
        "Max(1, key=print)",
        "Max(1)",
        "Symbol('s1', positive=print())",
        "9**9**9**9",
        "9 << 99999999",
        "'a' * 999",
        "1 if 2 else 3",
        "(x := 1)",
        "1 // 0",
        "True",
        "L['x'].size()[9]",
        "exec('')",
        "os.system",
        "math.factorial(5)",
        "-" * 3000 + "1",
        "(" * 3000,
        "1" * 5000,
        "",
        "1\n1",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no expression of sizes"):
        evaluate(text, (2, 3, 16, 24), {"s1": 7})


class Deciding(nn.Module):
    """What it computes hangs on the size of its pictures."""

    def forward(self, image: Tensor) -> Tensor:
        return (image if image.shape[2] % 4 == 0 else -image).mean((2, 3))


def load(tmp_path: Path, module: nn.Module, dynamic: object, size: int | None) -> nn.Module:
    path = tmp_path / "net.pt2"
    path.write_bytes(exported(module, dynamic=dynamic))
    return resolve(str(path), size=size).module


def test_a_condition_of_the_size(tmp_path: Path) -> None:
    dynamic = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(load(tmp_path, Deciding(), dynamic, 32)(image), Deciding()(image))
    with pytest.raises(SptraceError, match=r"other input than 1 pictures of 18 x 18 .*% 4\) == 0"):
        load(tmp_path, Deciding(), dynamic, 18)


def test_sizes_that_hang_on_a_dimension(tmp_path: Path) -> None:
    side = Dim("side", max=16)
    dynamic = {0: Dim("batch"), 2: 4 * side, 3: 4 * side}
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(load(tmp_path, Deciding(), dynamic, 32)(image), Deciding()(image))
    for size in (30, 68):
        with pytest.raises(SptraceError, match=f"1 pictures of {size} x {size}"):
            load(tmp_path, Deciding(), dynamic, size)


def test_a_condition_that_cannot_be_checked(tmp_path: Path) -> None:
    content = changed(
        entries(exported(Deciding())),
        "models/model.json",
        lambda document: document["guards_code"].append("L['image'].is_contiguous()"),
    )
    with pytest.raises(SptraceError, match=r"under a condition that sptrace cannot check .*is_contiguous"):
        resolve(written(tmp_path / "net.pt2", content))


def test_a_largest_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SptraceError, match=r"13 pictures of 16 x 16 \(its condition: at most 10\)"):
        load(tmp_path, Deciding(), {0: Dim("batch", max=10)}, None)
