"""Weights and inputs that any machine rebuilds bit for bit: NumPy's PCG64 seeded by tensor name.

Random nets built this way stand in for checkpoints that no package registry ships
(ResNet-50, VGG, DenseNet, PVT, ViT, ConvNeXt), so that two implementations of the
same explanation method can be compared on the same network.
"""

import zlib

import numpy as np
import torch


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))


def fill(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Overwrite every parameter and buffer of `model` in place; returns it in eval mode, frozen."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            rng = _rng(seed, name)
            shape = tuple(tensor.shape)
            leaf = name.rsplit(".", 1)[-1]
            if leaf == "running_var":
                value = rng.uniform(0.5, 1.5, shape)
            elif leaf == "running_mean":
                value = rng.normal(0.0, 0.1, shape)
            elif tensor.ndim >= 2:  # conv, linear, position embeddings
                fan_in = int(np.prod(shape[1:]))
                value = rng.normal(0.0, np.sqrt(1.6 / fan_in), shape)
            elif leaf in ("weight", "layer_scale", "gamma"):  # norms, layer scales
                value = rng.uniform(0.4, 0.8, shape)
            else:  # biases, class tokens
                value = rng.normal(0.0, 0.1, shape)
            tensor.copy_(torch.from_numpy(np.asarray(value, dtype=np.float32)))
    return model.eval().requires_grad_(False)


def images(seed: int, n: int, size: int = 224) -> torch.Tensor:
    """Smooth random pictures in [-1, 1], shape [n, 3, size, size], float32."""
    rng = _rng(seed, "images")
    coarse = torch.from_numpy(rng.normal(0.0, 1.0, (n, 3, size // 8, size // 8)).astype(np.float32))
    fine = torch.from_numpy(rng.normal(0.0, 0.3, (n, 3, size, size)).astype(np.float32))
    up = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)
    return torch.tanh(0.7 * up + fine)


def sample_index(seed: int, numel: int, k: int = 8192) -> np.ndarray:
    """Positions at which a golden attribution is kept."""
    return np.sort(_rng(seed, "sample").choice(numel, size=min(k, numel), replace=False))
