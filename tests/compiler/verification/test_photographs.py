from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from helpers.small_networks import classifier, images

import sptrace
from sptrace.artifact.description import Preprocessing
from sptrace.compiler.emission import saving
from sptrace.compiler.emission.photographs import take_pictures
from sptrace.compiler.verification.photographs import verify_pictures
from sptrace.errors import VerificationError

HOW = Preprocessing(size=(16, 16), resize=20, input_range=(-1.0, 1.0))


@pytest.fixture(scope="module")
def prepared() -> bytes:
    return sptrace.compile(classifier(), images(1)).onnx_model


def taking(prepared: bytes, how: Preprocessing) -> bytes:
    model = ir.from_proto(onnx.load_from_string(prepared))
    take_pictures(model, how, overlay=True)
    return saving.to_bytes(model)


def test_a_program_that_prepares_rightly(prepared: bytes) -> None:
    assert 0 <= verify_pictures(taking(prepared, HOW), prepared, HOW) <= 1.001


@pytest.mark.parametrize(
    "other",
    [
        Preprocessing(size=(16, 16), resize=20, input_range=(0.0, 1.0)),
        Preprocessing(size=(16, 16), resize=21, input_range=(-1.0, 1.0)),
        Preprocessing(size=(16, 16), resize=20, interpolation="nearest", input_range=(-1.0, 1.0)),
    ],
)
def test_a_program_that_prepares_otherwise_is_refused(prepared: bytes, other: Preprocessing) -> None:
    with pytest.raises(VerificationError, match="of a photograph differs from that of its prepared image"):
        verify_pictures(taking(prepared, other), prepared, HOW)


def test_what_is_far_from_pillow_is_refused(prepared: bytes) -> None:
    with pytest.raises(VerificationError, match=r"otherwise than Pillow does, by [\d.]+ levels"):
        verify_pictures(taking(prepared, HOW), prepared, HOW, levels=-1.0)
