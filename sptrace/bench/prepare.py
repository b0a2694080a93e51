"""What the processes of the sides need, written into a folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx

from sptrace.artifact.description import LARGEST_DOUBT, SPREAD, Description, Preprocessing
from sptrace.artifact.softening import Softening
from sptrace.bench.flops import gflop
from sptrace.bench.job import ARTIFACT, INPUT, NETWORK, Job, one_line
from sptrace.bench.peers import calls_gates
from sptrace.bench.timing import TOLERANCE
from sptrace.compiler.compile import Program, compile_network, example_image
from sptrace.compiler.network import Network
from sptrace.errors import SptraceError
from sptrace.models import untrained
from sptrace.models.recording import assemble

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Prepared:
    """A folder that is ready to be measured.

    Arguments:
        gflop: of the artifact, by batch size; None where it cannot be counted.
        by_norm: does the artifact have hard gates, so that attributions are compared by their norm?
        tolerance: how far a peer may be from the artifact.
        unavailable: why peers cannot take part, by name.
    """

    gflop: dict[int, float | None]
    by_norm: bool
    tolerance: float
    unavailable: dict[str, str]


def random_network(model: str, size: int | None = None) -> Network:
    """An architecture with the random weights of `sptrace.models.untrained`: its speed is that of the trained one.

    Arguments:
        model: torchvision:NAME or timm:NAME.
        size: height and width of the input in pixels; None: the architecture's own.

    Raises:
        SptraceError: there is no such architecture, its library is missing, or it refuses the size.
    """
    source, colon, name = model.partition(":")
    if not colon or source not in ("torchvision", "timm"):
        raise SptraceError(f"--random builds torchvision:NAME or timm:NAME, not {model}")
    try:
        module, own_size = untrained.build(source, name)
    except ModuleNotFoundError as error:
        raise SptraceError(f"the package {error.name} is not installed: pip install {error.name}") from error
    except Exception as error:  # each library says in a type of its own that it has no such architecture
        raise SptraceError(f"cannot build {model}: {one_line(error)}") from error
    preprocessing = Preprocessing(size=(size or own_size,) * 2, mean=_IMAGENET[0], std=_IMAGENET[1])
    return assemble(module, model=model, preprocessing=preprocessing, weights="random")


def prepare(
    network: Network,
    program: str,
    folder: Path,
    batches: Sequence[int],
    peers: Sequence[str],
    progress: Callable[[str], None] = lambda words: None,
) -> Prepared:
    """Compile the network's explanation, and write what all sides need.

    Arguments:
        network: what is explained.
        program: a name of `sptrace.artifact.programs.PROGRAMS`; its options are at their defaults.
        folder: an empty folder.
        batches: batch sizes.
        peers: names of `sptrace.bench.job.PEERS`.
        progress: called with a few words as each stage begins.

    Raises:
        SptraceError: the network or the program cannot be compiled.
    """
    example = example_image(network.preprocessing)
    compiled = compile_network(
        network, example, program=program, softening=Softening("paper"), progress=progress
    )
    compiled.save(folder / ARTIFACT)
    description = compiled.description
    images = torch.cat([example.roll(7 * number, -1) for number in range(max(batches))])
    targets = torch.arange(len(images)) % description.classes
    np.savez(folder / INPUT, image=images.numpy(), target=targets.numpy())
    unavailable: dict[str, str] = {}
    if not {"eager", "compile"}.isdisjoint(peers):
        progress("writing the network")
        try:
            _save(network, description, folder / NETWORK)
        except Exception as error:  # a network's own code decides how it is pickled
            reason = f"the network cannot be written to a file ({one_line(error)})"
            unavailable |= {"eager": reason, "compile": reason}
    if "aotinductor" in peers:
        progress("exporting the torch.fx program")
        try:
            _export(compiled, folder, batches, images, targets)
        except Exception as error:  # of torch.export, in many types
            unavailable["aotinductor"] = f"torch.export refused the torch.fx program ({one_line(error)})"
    verification = description.verification
    assert verification is not None
    # Peers may put hard gates that float32 cannot decide on the other side, as verification allows the program.
    by_norm = verification.measure == "norm"
    return Prepared(
        gflop={batch: gflop(compiled.onnx_model, batch) for batch in batches},
        by_norm=by_norm,
        tolerance=TOLERANCE + (SPREAD * LARGEST_DOUBT if by_norm else 0.0),
        unavailable=unavailable,
    )


def _save(network: Network, description: Description, path: Path) -> None:
    """Write the arguments of `sptrace.bench.peers.Peer`."""
    module, rules = network.module, description.softening.gates()
    if isinstance(module, fx.GraphModule):
        # As torch.export gives it, it holds functions that cannot be written.
        graph = copy.deepcopy(module.graph)
        for node in list(graph.nodes):
            if node.op == "call_module" and node.name == "_guards_fn":
                graph.erase_node(node)
        module = fx.GraphModule(module, graph).eval()
    record = {
        "network": module,
        "preprocessing": network.preprocessing,
        "rules": rules,
        "program": description.program,
        "settings": description.settings,
        "by_mode": calls_gates(module, rules, network.preprocessing.size),
    }
    torch.save(record, path)


def _export(compiled: Program, folder: Path, batches: Sequence[int], images: Tensor, targets: Tensor) -> None:
    """Write the torch.fx program for each batch size."""
    for batch in batches:
        exported = torch.export.export(compiled.module, (images[:batch], targets[:batch]))
        torch.export.save(exported, Job("aotinductor", folder, batch, 1).exported())
