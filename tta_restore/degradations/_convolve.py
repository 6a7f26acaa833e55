"""Spatially varying convolution with point spread functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LARGEST_DIRECT = 13  # side of kernels above which products of spectra are faster


def convolve(function: str, x: Tensor, kernels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Convolve every image with R kernels and mix the results per pixel; borders are mirrored.

    Shape:
        - x: (B, C, H, W)
        - kernels: (B, R, K, K), K odd
        - weights: (B, R, H, W), summing to 1 over R; None where R is 1
        - output: (B, C, H, W)

    Raises:
        ValueError: H or W is not above K // 2, which mirroring needs.
    """
    b, c, h, w = x.shape
    count, size = kernels.shape[1], kernels.shape[-1]
    margin = size // 2
    if min(h, w) <= margin:
        raise ValueError(f"{function}: expected sharp (B, C, H, W) with H, W > {margin} for this blur, got {(h, w)}")
    if b == 0:
        return x
    if size > _LARGEST_DIRECT:
        return _convolve_spectra(x, kernels, weights)
    # conv2d correlates: flipped kernels convolve
    taps = kernels.flip((-2, -1))[:, None].expand(b, c, count, size, size).reshape(b * c * count, 1, size, size)
    padded = F.pad(x.reshape(1, b * c, h, w), (margin,) * 4, mode="reflect")
    out = F.conv2d(padded, taps, groups=b * c).view(b, c, count, h, w)
    return out[:, :, 0] if weights is None else torch.einsum("bcrhw,brhw->bchw", out, weights)


def _convolve_spectra(x: Tensor, kernels: Tensor, weights: Tensor | None) -> Tensor:
    margin = kernels.shape[-1] // 2
    padded = F.pad(x, (margin,) * 4, mode="reflect")
    sides = list(padded.shape[-2:])
    spectrum = torch.fft.rfft2(padded)
    total = torch.zeros_like(x)
    for index, kernel in enumerate(kernels.unbind(1)):
        # circular is enough: the part that wraps around is the margin
        transfer = torch.fft.rfft2(kernel, s=sides)[:, None]
        blurred = torch.fft.irfft2(spectrum * transfer, s=sides)[..., 2 * margin :, 2 * margin :]
        total = total + (blurred if weights is None else blurred * weights[:, index : index + 1])
    return total
