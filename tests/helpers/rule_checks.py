"""A second, slow computation of what the table of adjoints says: dense matrices, in float64.

An op stands alone in a network, image -> op -> flattened, and goes through all stages of the compiler. Its pullback is
linear in the cotangent, so all of it is one matrix a picture: the Jacobian of the softened op. The checks here compare
this matrix, in torch.fx at float64 and in onnxruntime at float32, at several batch sizes, with

- `check_linear`: the op itself, evaluated on a picture of a single pixel for every column;
- `check_ordinary`: torch.autograd on the op itself, one row at a time;
- `check_jacobians`: a matrix that the caller has written out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from torch import Tensor, fx, nn

from sptrace import passes
from sptrace.artifact.softening import Softening
from sptrace.compiler.capture.from_torch import capture
from sptrace.compiler.emission import emit
from sptrace.compiler.emission.saving import to_bytes
from sptrace.compiler.graph.builder import placeholder, static_shape, without_data
from sptrace.compiler.graph.facts import Facts, record
from sptrace.compiler.graph.results import give
from sptrace.compiler.pullback import pull_back

EXACT = 1e-11
"""Of the largest number: what is left of float64."""
ROUNDED = 1e-6
"""Where a pass has computed a constant and stored it in float32."""
SINGLE = 2e-5
"""What is left of float32."""


class Op(nn.Module):
    """The network of one op: `body` is a module, or a function of the image and of constants."""

    def __init__(self, body: nn.Module | Callable[..., Tensor], *constants: Tensor) -> None:
        super().__init__()
        self.body = body
        self._names = [f"constant{index}" for index in range(len(constants))]
        for name, constant in zip(self._names, constants, strict=True):
            self.register_buffer(name, constant)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        # A clone, or an op in place would change the caller's picture; the compiler drops it.
        result: Tensor = self.body(image.clone(), *(getattr(self, name) for name in self._names))
        return result.flatten(1)


class SideBySide(nn.Module):
    """Several modules that read the same image: as good as a test of each, and one capture in place of many."""

    def __init__(self, *bodies: nn.Module) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([body(image).flatten(1) for body in self.bodies], dim=1)


def numbers(*sizes: int, seed: int = 0) -> Tensor:
    """Normally distributed float32 numbers, the same on every run."""
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def randomized(module: nn.Module) -> nn.Module:
    """The module with random parameters and running statistics."""
    for seed, (name, data) in enumerate(module.state_dict().items()):
        if data.is_floating_point():
            drawn = numbers(*data.shape, seed=seed)
            data.copy_(drawn.abs() + 0.1 if name.endswith("running_var") else drawn)
    return module


def compile_pullback(op: nn.Module, image: Tensor, softening: Softening | str = "paper") -> fx.GraphModule:
    """(image, cotangent) -> (attribution, outputs), through all stages up to the emitter. float32."""
    module = capture(op, image.float())
    passes.run(passes.PREPARE, module)
    passes.soften(module, Softening.of(softening))
    graph = module.graph
    output = next(node for node in graph.nodes if node.op == "output")
    source, outputs = placeholder(graph, "image"), output.args[0]
    assert isinstance(outputs, fx.Node)
    with graph.inserting_after(source):
        cotangent = graph.placeholder("cotangent")
    values = without_data(*static_shape(outputs, [1]), dtype=torch.float32)
    record(cotangent, Facts(values, adjoint=True))
    with graph.inserting_before(output):
        attribution = pull_back(module, outputs, cotangent, source)
    give(graph, {"attribution": attribution, "logits": outputs})
    passes.run(passes.LOWER, module)
    return module


def check_jacobians(
    op: nn.Module,
    image: Tensor,
    jacobians: Tensor,
    *,
    softening: Softening | str = "paper",
    tolerance: float = EXACT,
) -> fx.GraphModule:
    """The pullback of `op` at every picture must be its matrix; returns the compiled module, now float64.

    Arguments:
        op: float32; takes [N, C, H, W], gives [N, outputs].
        image: float64 [N, C, H, W], numbers that float32 holds too.
        jacobians: float64 [N, outputs, C H W]: the derivative of output by pixel, softened.
        softening: the rules of the gates.
        tolerance: in float64, of the largest number.
    """
    count, outputs, _ = jacobians.shape
    cotangents = numbers(count, outputs, seed=99).double()
    expected = torch.einsum("no,noi->ni", cotangents, jacobians).reshape(image.shape)
    values = _float64(op)(image)
    module = compile_pullback(op, image, softening)
    session = _session(module)
    module.double()
    for size in (count, 1):
        fed, sent = image[:size], cotangents[:size]
        given = session.run(None, {"image": fed.float().numpy(), "cotangent": sent.float().numpy()})
        _assert_close(torch.from_numpy(given[0]), expected[:size], SINGLE)
        _assert_close(torch.from_numpy(given[1]), values[:size], SINGLE)
        attribution, logits = module(fed, sent)
        _assert_close(attribution, expected[:size], tolerance)
        _assert_close(logits, values[:size], tolerance)
    # The matrix of the first picture, row by row; not every row of a large one.
    chosen = slice(None, None, 1 + outputs // 200)
    units = torch.eye(outputs, dtype=torch.float64)[chosen]
    rows, _ = module(image[:1].expand(len(units), -1, -1, -1), units)
    _assert_close(rows.flatten(1), jacobians[0, chosen], tolerance)
    return module


def check_linear(op: nn.Module, *sizes: int, tolerance: float = EXACT) -> None:
    """The pullback of an affine op must be the transpose of its matrix, whatever the picture. `sizes`: C, H, W."""
    twin, pixels = _float64(op), math.prod(sizes)
    # The first picture is black: some ops see a batch of one with other eyes.
    units = torch.cat([torch.zeros(1, pixels), torch.eye(pixels)]).double().reshape(-1, *sizes)
    offset, *columns = twin(units)
    matrix = torch.stack([column - offset for column in columns], dim=1)

    image = numbers(3, *sizes, seed=1).double()
    moved = twin(image) - offset
    _assert_close(
        moved, image.flatten(1) @ matrix.T, EXACT
    )  # or the op is not affine, and this the wrong check
    module = check_jacobians(op, image, matrix.expand(len(image), -1, -1), tolerance=tolerance)

    cotangents = numbers(*moved.shape, seed=2).double()
    attribution, _ = module(image, cotangents)
    _assert_close((attribution * image).sum((1, 2, 3)), (cotangents * moved).sum(1), 10 * tolerance)


def check_ordinary(op: nn.Module, *sizes: int, image: Tensor | None = None, tolerance: float = EXACT) -> None:
    """The pullback must be the gradient of torch.autograd. `sizes`: C, H, W of a random picture if none is given."""
    twin = _float64(op)
    image = numbers(3, *sizes, seed=1).double() if image is None else image
    leaf = image.clone().requires_grad_()
    outputs = twin(leaf).sum(0)
    rows = [torch.autograd.grad(output, leaf, retain_graph=True)[0].flatten(1) for output in outputs]
    check_jacobians(op, image, torch.stack(rows, dim=1), softening="hard", tolerance=tolerance)


def check_all(image: Tensor, *functions: Callable[[Tensor], Tensor], tolerance: float = EXACT) -> None:
    """`check_ordinary` of several functions of the same image, in one network."""
    check_ordinary(SideBySide(*map(Op, functions)).eval(), image=image, tolerance=tolerance)


def _session(module: fx.GraphModule) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(to_bytes(emit(module, "op")), options)


def _float64(op: nn.Module) -> nn.Module:
    return copy.deepcopy(op).double()


def _assert_close(given: Tensor, expected: Tensor, tolerance: float) -> None:
    assert given.shape == expected.shape
    largest = expected.abs().max().item()
    np.testing.assert_allclose(given.detach(), expected.detach(), rtol=0, atol=tolerance * (largest or 1.0))
