"""Convolution with point spread functions on mirrored images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tta_restore import ops


def convolve(x: Tensor, kernels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Convolve every image with R kernels and mix the results per pixel.

    Borders are mirrored, as often as a kernel larger than the image needs.

    Shape:
        - x: (B, C, H, W), float32 or float64
        - kernels: (B, R, K, K), K odd
        - weights: (B, R, H, W), summing to 1 over R; None where R is 1
        - output: (B, C, H, W)
    """
    if not len(x):
        return x
    height, width = x.shape[-2:]
    if weights is None:
        weights = x.new_ones(1, 1, 1, 1).expand(len(x), kernels.shape[1], height, width)
    padded = mirror(x, kernels.shape[-1] // 2)
    return ops.product_conv2d(padded, kernels[:, :, None], weights, padding_mode="valid")


def mirror(x: Tensor, margin: int) -> Tensor:
    """Continue images by mirroring, beyond their own size where the margin is larger: (..., H + 2 M, W + 2 M)."""
    return _mirror_axis(_mirror_axis(x, margin, 0), margin, 1)


def _mirror_axis(x: Tensor, margin: int, axis: int) -> Tensor:
    while margin > 0:
        step = min(margin, x.shape[-2 + axis] - 1)
        mode = "reflect" if step else "replicate"
        step = step or margin
        x = F.pad(x, (0, 0, step, step) if axis == 0 else (step, step, 0, 0), mode=mode)
        margin -= step
    return x
