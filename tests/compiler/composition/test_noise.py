"""The noise of the programs: normal, and the same everywhere."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import fx, nn

from sptrace.compiler.composition.noise import normal
from sptrace.compiler.emission import emit
from sptrace.compiler.emission.saving import to_bytes
from sptrace.compiler.graph.builder import GraphBuilder
from sptrace.compiler.graph.facts import Facts, record
from sptrace.compiler.graph.results import give
from sptrace.compiler.graph.sizes import BATCHES
from sptrace.compiler.reference.eager_programs import normal as normal_in_numpy

SHAPE = (3, 224, 224)
COUNT = 3 * 224 * 224


def program(seed: int) -> fx.GraphModule:
    """draw -> noise."""
    builder = GraphBuilder(fx.GraphModule(nn.Module(), fx.Graph()))
    draw = builder.graph.placeholder("draw")
    number = torch.empty((), dtype=torch.int64, device="meta")
    record(draw, Facts((number,) * len(BATCHES)))
    give(builder.graph, {"noise": normal(builder, draw, list(SHAPE), seed)})
    builder.module.recompile()
    return builder.module


@pytest.mark.parametrize("seed", [0, 2**31 - 2])
def test_onnxruntime_torch_and_numpy_agree(seed: int) -> None:
    module = program(seed)
    session = onnxruntime.InferenceSession(to_bytes(emit(module, "noise")))
    for draw in (0, 1, 49):
        (noise,) = session.run(None, {"draw": np.array(draw)})
        np.testing.assert_allclose(noise, module(torch.tensor(draw))[0].numpy(), atol=1e-5)
        np.testing.assert_allclose(noise, normal_in_numpy(draw, SHAPE, seed), atol=1e-5)
        np.testing.assert_array_equal(noise, session.run(None, {"draw": np.array(draw)})[0])


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_it_is_normal(seed: int) -> None:
    noise = normal_in_numpy(1, SHAPE, seed).astype(np.float64).ravel()
    assert abs(noise.mean()) < 4 / np.sqrt(COUNT)
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / COUNT)
    assert abs((noise**3).mean()) < 4 * np.sqrt(15 / COUNT)
    assert abs((noise**4).mean() - 3) < 4 * np.sqrt(96 / COUNT)
    for sigmas, share in ((1, 0.317311), (2, 0.045500), (3, 0.002700)):
        assert abs((np.abs(noise) > sigmas).mean() - share) < 4 * np.sqrt(share / COUNT)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_neighbours_draws_and_seeds_are_independent(seed: int) -> None:
    noise = normal_in_numpy(1, SHAPE, seed).ravel()
    bound = 4.5 / np.sqrt(COUNT)
    for lag in (1, 2, 3, 224, 225, 448, 224 * 224):
        assert abs(np.corrcoef(noise[:-lag], noise[lag:])[0, 1]) < bound
        assert abs(np.corrcoef(noise[:-lag] ** 2, noise[lag:] ** 2)[0, 1]) < bound
    for other in (normal_in_numpy(2, SHAPE, seed), normal_in_numpy(1, SHAPE, seed + 1)):
        assert abs(np.corrcoef(noise, other.ravel())[0, 1]) < bound
