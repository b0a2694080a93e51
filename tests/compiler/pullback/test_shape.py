"""Ops that move numbers, against their matrices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.rule_checks import Op, check_linear, compile_pullback, numbers
from torch import Tensor, nn

from sptrace.errors import UnsupportedError

Body = Callable[..., Tensor]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda x: x.flatten(1), id="flatten"),
        pytest.param(lambda x: x.flatten(-2), id="flatten from the end"),
        pytest.param(lambda x: x.flatten(1, 2), id="flatten in the middle"),
        pytest.param(lambda x: x.flatten(0, 1).mul(2).view(-1, 3, 4, 5), id="flatten into the batch"),
        pytest.param(lambda x: x.view(x.shape[0], -1), id="view with the batch's size"),
        pytest.param(lambda x: x.view(x.size(0), 5, 4, 3), id="view"),
        pytest.param(lambda x: x.reshape(-1, 12, 5), id="reshape"),
        pytest.param(
            lambda x: x.reshape(x.shape[0] * 3, 4, 5).mean(1).reshape(x.shape[0], -1),
            id="reshape over the batch",
        ),
        pytest.param(lambda x: x.transpose(1, 3).reshape(-1, 4, 15), id="reshape of a transpose"),
        pytest.param(lambda x: x.unflatten(2, (2, 2)), id="unflatten"),
        pytest.param(lambda x: x.permute(0, 2, 3, 1), id="permute"),
        pytest.param(lambda x: x.permute(0, -1, 1, -2), id="permute from the end"),
        pytest.param(lambda x: x.permute(1, 2, 3, 0).mul(2).permute(3, 0, 1, 2), id="permute the batch"),
        pytest.param(
            lambda x: x.permute(2, 0, 3, 1).mul(2).permute(1, 0, 2, 3), id="permute, not its own inverse"
        ),
        pytest.param(lambda x: x.transpose(1, 3), id="transpose"),
        pytest.param(lambda x: x.transpose(-1, -2), id="transpose from the end"),
        pytest.param(lambda x: x.mT, id="mT"),
        pytest.param(lambda x: x.flatten(1).T.mul(2).T, id="T"),
        pytest.param(lambda x: x.flatten(1).t().mul(2).t(), id="t"),
        pytest.param(lambda x: x.swapaxes(1, 2), id="swapaxes"),
        pytest.param(lambda x: x.movedim(1, -1), id="movedim"),
        pytest.param(lambda x: x.movedim(-1, 1), id="movedim back"),
        pytest.param(lambda x: x[:, :1].squeeze(1), id="squeeze"),
        pytest.param(lambda x: x.squeeze(2), id="squeeze of nothing"),
        pytest.param(lambda x: x[:, :1, :1].squeeze((1, 2)), id="squeeze of two"),
        pytest.param(lambda x: x[:, :1].squeeze(), id="squeeze of all"),
        pytest.param(lambda x: x.unsqueeze(1), id="unsqueeze"),
        pytest.param(lambda x: x.unsqueeze(-1), id="unsqueeze at the end"),
        pytest.param(lambda x: x[:, None, ..., None], id="None"),
        pytest.param(lambda x: x.contiguous(memory_format=torch.channels_last), id="contiguous"),
    ],
)
def test_another_shape(body: Body) -> None:
    check_linear(Op(body), 3, 4, 5)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda x: x[:, :1].expand(-1, 3, -1, -1), id="channels"),
        pytest.param(lambda x: x[:, :, :1, :1].expand(-1, 3, 2, 6), id="pixels"),
        pytest.param(lambda x: x[:, :1].expand(x.shape[0], 6, 4, 5), id="with the batch's size"),
        pytest.param(
            lambda x: x.expand(2, -1, -1, -1, -1).transpose(0, 1), id="a dimension before the batch"
        ),
        pytest.param(lambda x: x[:, :1].expand_as(x), id="expand_as"),
    ],
)
def test_expand(body: Body) -> None:
    check_linear(Op(body), 3, 4, 5)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda x, c: torch.cat([c.expand(x.shape[0], -1, -1), x.flatten(2)], 1), id="expand"),
        pytest.param(
            lambda x, c: torch.cat([c.expand(x.shape[0], 2, 20) * 2, x.flatten(2)], 1), id="sizes given"
        ),
        pytest.param(
            lambda x, c: torch.stack([x.flatten(2)[:, :2], c.expand_as(x.flatten(2)[:, 1:])]), id="as"
        ),
        pytest.param(
            lambda x, c: c[:, :, :5].expand(x.shape[0] * 3, -1, -1) * x.flatten(0, 1)[:, :2], id="thrice"
        ),
    ],
)
def test_a_constant_for_every_picture(body: Body) -> None:
    def op(image: Tensor, constant: Tensor) -> Tensor:
        result = body(image, constant)
        return result.transpose(0, 1) if result.ndim == 4 else result.reshape(image.shape[0], -1)

    check_linear(Op(op, numbers(1, 2, 20)), 3, 4, 5)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda x: torch.cat([x, x * 2], 1), id="cat"),
        pytest.param(lambda x: torch.cat([x, x[..., :2] * 2, x[..., 1:]], -1), id="cat from the end"),
        pytest.param(lambda x: torch.cat([x], 1), id="cat of one"),
        pytest.param(lambda x: torch.cat([torch.cat([x, x], 2), x], 2), id="cat of cats"),
        pytest.param(lambda x: torch.concat([x, -x], 2), id="concat"),
        pytest.param(lambda x: torch.stack([x, x * 2], 1), id="stack"),
        pytest.param(lambda x: torch.stack([x, x * 2, x], -1), id="stack at the end"),
        pytest.param(lambda x: torch.stack([x, x * 2], -3), id="stack in the middle"),
        pytest.param(lambda x: torch.stack([x, x * 2]).transpose(0, 1), id="stack before the batch"),
    ],
)
def test_cat_and_stack(body: Body) -> None:
    check_linear(Op(body), 3, 4, 5)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda x: x[:, 1], id="select"),
        pytest.param(lambda x: x[:, -1], id="select the last"),
        pytest.param(lambda x: x.select(-1, -2), id="select from the end"),
        pytest.param(lambda x: x[:, 0, :, 4], id="select twice"),
        pytest.param(lambda x: x[:, 1:], id="slice"),
        pytest.param(lambda x: x[:, :, -2:], id="slice of the last"),
        pytest.param(lambda x: x[..., 1:-1], id="slice without the ends"),
        pytest.param(lambda x: x[:, :100], id="slice beyond the end"),
        pytest.param(lambda x: x[:], id="slice of everything"),
        pytest.param(lambda x: x[..., ::2], id="step 2, to the end"),
        pytest.param(lambda x: x[:, :, ::2], id="step 2, not to the end"),
        pytest.param(lambda x: x[..., 1:5:3], id="step 3"),
        pytest.param(lambda x: x[..., 2::7], id="step beyond the end"),
        pytest.param(lambda x: x[:, :, 1::2, :4:3], id="steps in two dimensions"),
        pytest.param(lambda x: x[:, 1:][:, :, ::2][..., 0].unsqueeze(-1)[:, :, :1], id="slices of slices"),
        pytest.param(
            lambda x: torch.cat([x[..., i::2, j:4:2] for i in (0, 1) for j in (0, 1)], 1), id="Swin's merge"
        ),
        pytest.param(lambda x: x.narrow(2, 1, 2), id="narrow"),
        pytest.param(lambda x: x.flip(2), id="flip"),
        pytest.param(lambda x: x.flip((-1, 1)), id="flip of two"),
        pytest.param(
            lambda x: x.flatten(1).transpose(0, 1)[7:30:5].transpose(0, 1), id="slice before the batch"
        ),
    ],
)
def test_select_slice_and_flip(body: Body) -> None:
    check_linear(Op(body), 3, 4, 5)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda x: F.pad(x, (1, 2)), id="columns"),
        pytest.param(lambda x: F.pad(x, (1, 2, 0, 3)), id="rows and columns"),
        pytest.param(lambda x: F.pad(x, (0, 0, 0, 0, 2, 1)), id="channels"),
        pytest.param(lambda x: F.pad(x, (1, 2), value=3.5), id="with a number"),
        pytest.param(lambda x: F.pad(x, (-1, -2)), id="cropped"),
        pytest.param(lambda x: F.pad(x, (-1, 2, 1, -1), value=1.5), id="cropped and padded"),
        pytest.param(lambda x: F.pad(x, (0, 0)), id="not at all"),
        pytest.param(nn.ZeroPad2d((1, 0, 2, 1)), id="ZeroPad2d"),
        pytest.param(nn.ConstantPad2d(1, -2.0), id="ConstantPad2d"),
    ],
)
def test_pad_with_a_number(body: Body) -> None:
    check_linear(Op(body), 3, 4, 5)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda x, mode: F.pad(x, (1, 2, 3, 0), mode), id="of an image"),
        pytest.param(lambda x, mode: F.pad(x, (4, 4, 3, 3), mode), id="as far as it goes"),
        pytest.param(lambda x, mode: F.pad(x, (-1, 2, 0, -1), mode), id="cropped and padded"),
        pytest.param(lambda x, mode: F.pad(x, (0, 0, -1, -1), mode), id="cropped"),
        pytest.param(lambda x, mode: F.pad(x.flatten(2), (1, 2), mode), id="of a sequence"),
        pytest.param(lambda x, mode: F.pad(x.unsqueeze(1), (1, 2, 0, 1, 1, 1), mode), id="of a volume"),
    ],
)
def test_pad_with_the_image(body: Body, mode: str) -> None:
    check_linear(Op(lambda x: body(x, mode)), 3, 4, 5)


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_pad_crops_after_it_has_padded(mode: str) -> None:
    check_linear(Op(lambda x: F.pad(x, (-3, 4, 2, -2), mode)), 2, 4, 5)


@pytest.mark.parametrize(
    "dropout",
    [
        nn.Dropout(),
        nn.Dropout(inplace=True),
        nn.Dropout1d(),
        nn.Dropout2d(),
        nn.Dropout3d(),
        nn.AlphaDropout(),
        nn.FeatureAlphaDropout(),
        nn.Identity(),
    ],
    ids=str,
)
def test_dropout_in_eval_mode(dropout: nn.Module) -> None:
    body = nn.Sequential(nn.Flatten(2), dropout) if isinstance(dropout, nn.Dropout1d) else dropout
    check_linear(Op(body), 2, 3, 4)


@pytest.mark.parametrize(
    ("body", "op"),
    [
        pytest.param(lambda x: x + x[:1], "slice.Tensor", id="slice"),
        pytest.param(lambda x: x + x[0], "select.int", id="select"),
        pytest.param(lambda x: x + x.flip(0), "flip.default", id="flip"),
        pytest.param(lambda x: torch.cat([x, x]).mean(0) + x, "mean.dim", id="cat"),
    ],
)
def test_ops_along_the_batch_are_refused(body: Body, op: str) -> None:
    op = op.replace(".", r"\.")
    with pytest.raises(
        UnsupportedError, match=rf"aten\.{op} has no pullback here: .* the others of its batch"
    ):
        compile_pullback(Op(body), torch.zeros(2, 3, 4, 5))


def assigned(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1, 2:] = x[:, 0, :2] * 3
    y[:, :, :, 1] = 4
    y[:, 0, 0].fill_(5)
    y[:, 1, 0].fill_(torch.tensor(6))
    y[:, 2] += x[:, 1]
    return y


def test_parts_that_are_overwritten() -> None:
    check_linear(Op(assigned), 3, 4, 5)
