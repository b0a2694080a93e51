"""Does an explanation depend on the weights? The model randomisation check (Adebayo et al., arXiv 1810.03292).

From the last layer to the first, the weights of one part of the network after the other are shuffled, and every time
the explanation is compared with that of the trained network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sptrace.compiler.compile import example_image, program_of
from sptrace.compiler.network import Network
from sptrace.evaluation import RANDOMISATION
from sptrace.evaluation.methods import named
from sptrace.evaluation.perturbations import pearson
from sptrace.evaluation.rows import Row

STAGES = 8
"""At most so many parts."""


def randomisation(
    network: Network,
    names: Sequence[str],
    images: NDArray[np.float32],
    pictures: Sequence[str],
    seed: int,
    progress: Callable[[str, int, int], None] = lambda doing, done, total: None,
) -> Iterator[Row]:
    """Rows with the metric ``randomisation:KK PATH``: KK parts, the last of them PATH, have shuffled weights.

    The score is the rank correlation (Spearman) of the attributions, summed over the channels, with those of the
    trained network; 1 before anything is shuffled. ``randomisation of sizes`` is the same of absolute attributions, in
    which the picture's edges show whatever the weights are.

    Arguments:
        network: the trained network. It is not changed.
        names: of programs, or PROGRAM@PRESET.
        images: float32 [N, 3, H, W] in [-1, 1].
        pictures: their names.
        seed: of the shuffling.
        progress: called before every explanation with a few words, how many were made, and how many will be.
    """
    module = copy.deepcopy(network.module)
    changed = replace(network, module=module)
    example = example_image(network.preprocessing)

    def changed_program(name: str) -> torch.fx.GraphModule:
        return program_of(changed, example, *named(name))

    with torch.no_grad():
        images_ = torch.from_numpy(np.ascontiguousarray(images))
        targets = changed_program("gradient")(images_, torch.full((len(images),), -1))[1].argmax(1)
    generator = torch.Generator().manual_seed(seed)
    first: dict[tuple[str, str], NDArray[np.float64]] = {}
    stages = [[], *_stages(module)]
    total = len(stages) * len(names)
    for number, stage in enumerate(stages):
        for path in stage:
            _shuffle(module.get_submodule(path), generator)
        label = f"{number:02} {stage[-1] if stage else 'trained'}"
        for index, name in enumerate(names):
            progress(f"{name}, randomisation {label}", number * len(names) + index, total)
            with torch.no_grad():
                attribution = changed_program(name)(images_, targets)[0].numpy()
            for metric, maps in zip(RANDOMISATION, (attribution, np.abs(attribution)), strict=True):
                ranks = _ranks(maps.sum(axis=1))
                trained = first.setdefault((name, metric), ranks)
                for picture, ours, theirs in zip(pictures, ranks, trained, strict=True):
                    yield Row(picture, name, f"{metric}:{label}", pearson(ours, theirs))
    progress("done", total, total)


def _stages(module: nn.Module) -> list[list[str]]:
    """The modules that hold weights, last first, in about equally many a stage."""
    paths = [
        path
        for path, part in module.named_modules()
        if any(weight.dim() > 1 for weight in part.parameters(recurse=False))
    ][::-1]
    bounds = np.linspace(0, len(paths), min(STAGES, len(paths)) + 1).round().astype(int)
    return [paths[start:end] for start, end in pairwise(bounds)]


@torch.no_grad()
def _shuffle(module: nn.Module, generator: torch.Generator) -> None:
    """Its weights in a random order: as many, of the same sizes."""
    for weight in module.parameters(recurse=False):
        order = torch.randperm(weight.numel(), generator=generator)
        weight.copy_(weight.flatten()[order].reshape(weight.shape))


def _ranks(maps: NDArray[np.float32]) -> NDArray[np.float64]:
    return maps.reshape(len(maps), -1).argsort(axis=1, kind="stable").argsort(axis=1).astype(np.float64)
