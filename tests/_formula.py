"""Weights in closed form, as the recorded tensors of JDRL use them: see their README."""

import numpy as np
import torch


def formula(place, shape):
    """Weights in closed form: file README of the recorded tensors."""
    h = np.arange(np.prod(shape), dtype=np.uint64) + place * 1000003 + 1
    h &= 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h ^= h >> np.uint64(shift)
        h = h * np.uint64(factor) & 0xFFFFFFFF
    u = (h ^ (h >> np.uint64(16))) / 2**32 - 0.5
    scale = (12 * 2 / np.prod(shape[1:])) ** 0.5 if len(shape) >= 2 else 0.1
    return torch.from_numpy((u * scale).astype(np.float32)).view(shape)


def with_formula_weights(module):
    weights = {name: formula(i, tuple(t.shape)) for i, (name, t) in enumerate(module.state_dict().items())}
    module.load_state_dict(weights)
    return module.eval()
