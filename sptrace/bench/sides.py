"""The sides that are measured: each makes a job into a function that explains the job's pictures.

Every side imports what it needs itself, so that none carries another's libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sptrace.bench.job import ARTIFACT, NETWORK, OURS, PEAK, Job
from sptrace.errors import SptraceError

Explain = Callable[[], NDArray[np.float32] | None]
"""Explains the job's pictures: attribution float32 [N, 3, H, W]."""

PEAK_SIZE = 2048
"""Rows and columns of the matrices whose product stands for what the machine can do."""

PEAK_GFLOP = 2 * PEAK_SIZE**3 / 1e9


def ours(job: Job) -> Callable[[], Explain]:
    """The artifact, run as anybody would: sptrace.load and explain."""
    from sptrace.runtime import explainer as runtime

    image, target = job.input()

    def load() -> Explain:
        explainer = runtime.load(job.folder / ARTIFACT, threads=job.threads)
        return lambda: explainer.explain(image, target).attribution

    return load


def eager(job: Job) -> Callable[[], Explain]:
    """The network under autograd with soft gates: `sptrace.bench.peers`."""
    import sptrace.bench.peers  # noqa: F401  # imports are not part of the time to load

    return lambda: _explaining(job, _peer(job))


def compiled(job: Job) -> Callable[[], Explain]:
    """The same through torch.compile: forward and backward pass as one graph, or if torch cannot, the network alone."""
    import torch._inductor.compile_fx

    import sptrace.bench.peers  # noqa: F401

    def load() -> Explain:
        peer = _peer(job)
        peer.compile()
        explain = _explaining(job, peer)
        try:
            explain()
        except Exception:  # what torch.compile cannot do it says in many types
            torch._dynamo.reset()
            peer.compile(whole=False)
        return explain

    return load


def package(job: Job) -> Callable[[], Explain]:
    """No side: compiles our torch.fx program with AOTInductor, for the side `aotinductor` to load."""
    import torch

    if not job.exported().exists():
        raise SptraceError("torch.export refused the torch.fx program")
    torch.set_num_threads(job.threads)

    def compile() -> Explain:
        program = torch.export.load(job.exported())
        torch._inductor.aoti_compile_and_package(program, package_path=str(job.package()))
        return lambda: None

    return compile


def aotinductor(job: Job) -> Callable[[], Explain]:
    """Our torch.fx program, compiled to machine code by `package`."""
    import torch

    torch.set_num_threads(job.threads)
    image, target = (torch.from_numpy(array) for array in job.input())

    def load() -> Explain:
        program = torch._inductor.aoti_load_package(str(job.package()))
        return lambda: np.asarray(program(image, target)[0].numpy())

    return load


def openvino(job: Job) -> Callable[[], Explain]:
    """Our ONNX file in OpenVINO, in float32: it would take bfloat16 on processors that have it."""
    try:
        import openvino as ov
    except ModuleNotFoundError as error:
        raise SptraceError("OpenVINO is not installed: pip install openvino") from error
    image, target = job.input()
    settings = {
        "INFERENCE_NUM_THREADS": job.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }

    def load() -> Explain:
        core = ov.Core()
        model = core.read_model(job.folder / ARTIFACT)
        model.reshape({"image": list(image.shape), "target": list(target.shape)})
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        feeds = {"image": image, "target": target}
        return lambda: np.array(request.infer(feeds)["attribution"])

    return load


def peak(job: Job) -> Callable[[], Explain]:
    """What the machine can do: a product of large float32 matrices in torch."""
    import torch

    torch.set_num_threads(job.threads)

    def load() -> Explain:
        generator = torch.Generator().manual_seed(0)
        first, second = (torch.randn(PEAK_SIZE, PEAK_SIZE, generator=generator) for _ in range(2))
        product = torch.empty_like(first)

        def multiply() -> None:
            torch.mm(first, second, out=product)

        return multiply

    return load


def _peer(job: Job) -> Any:
    import torch

    from sptrace.bench.peers import Peer

    torch.set_num_threads(job.threads)
    # A whole network, whose code runs: written a moment ago by this very program, into a folder of its own.
    record = torch.load(job.folder / NETWORK, weights_only=False)
    return Peer(**record)


def _explaining(job: Job, peer: Any) -> Explain:
    import torch

    image, target = (torch.from_numpy(array) for array in job.input())
    return lambda: np.asarray(peer(image, target)[0].numpy())


SIDES: Mapping[str, Callable[[Job], Callable[[], Explain]]] = {
    OURS: ours,
    "eager": eager,
    "compile": compiled,
    "package": package,
    "aotinductor": aotinductor,
    "openvino": openvino,
    PEAK: peak,
}
"""Called with a job a side imports its libraries; what it returns loads the side; what that returns explains."""

BEFOREHAND: Mapping[str, str] = {"aotinductor": "package"}
"""The side that has to have run, in a process of its own, before another can."""
