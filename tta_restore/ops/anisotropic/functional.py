"""Anisotropic Gaussian blur: checks and docstring; reference.py has the definition."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tta_restore._core import checks, library
from tta_restore._core.library import autocast_dtype
from tta_restore._core.padding import expect_padding, pad
from tta_restore.ops.anisotropic.autograd import AnisotropicReblur

_NAME = "anisotropic_reblur"
# Smaller standard deviations blur nothing: a neighbor one pixel away has a weight of exp(-5000) = 0.
_LEAST_SIGMA = 0.01


def anisotropic_reblur(
    image: Tensor,
    sigma: Tensor,
    theta: Tensor,
    *,
    kernel_size: int = 15,
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "reflect",
) -> Tensor:
    r"""Blur every pixel with its own oriented Gaussian.

    ``out[p] = sum_t k[t; p] x[p + t]`` with ``k[t; p] = exp(-(u^2 / sigma_0^2 + v^2 / sigma_1^2) / 2) / Z`` over
    a window of K x K pixels, ``u = dx cos(theta) + dy sin(theta)`` the offset along the first axis and
    ``v = dy cos(theta) - dx sin(theta)`` the one across it; Z makes the taps sum to 1. The kernel belongs to the
    *output* pixel and is never held. Differentiable to second order in all three tensors.

    Args:
        image: frames, any range.
        sigma: standard deviations along and across the axis, in pixels; below 0.01 they act as 0.01, the identity. The
            window cuts off a Gaussian with a standard deviation above about ``kernel_size / 6``.
        theta: angle of the first axis in radians, from the direction of x towards that of y (clockwise on a screen).
        kernel_size: K, odd.
        padding_mode: what lies outside the frame: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.

    Shape:
        - image: (B, C, H, W)
        - sigma: (B, 2, H, W)
        - theta: (B, 1, H, W)
        - output: (B, C, H, W), contiguous

    Half-precision dtypes are computed in float32. Under autocast tensors of several dtypes are cast to the widest.

    Raises:
        TypeError: an argument is no floating-point tensor, dtypes differ outside autocast, kernel_size is no integer.
        ValueError: shapes or devices do not match, kernel_size is even, or the frame is too small for the padding.

    Source: the oriented Gaussian of blind super-resolution (Zhang et al., CVPR 2018, SRMD), one for every pixel.

    >>> impulse = torch.zeros(1, 1, 3, 3)
    >>> impulse[..., 1, 1] = 1
    >>> sigma = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    >>> out = anisotropic_reblur(impulse, sigma, torch.zeros(1, 1, 3, 3), kernel_size=3, padding_mode="zeros")
    >>> out[0, 0].mul(100).round().tolist()  # along x
    [[0.0, 0.0, 0.0], [27.0, 45.0, 27.0], [0.0, 0.0, 0.0]]
    """
    checks.expect_floating(_NAME, image=image, sigma=sigma, theta=theta)
    shape = checks.expect_shape(_NAME, "image", image, "(B, C, H, W)")
    b, _, h, w = shape
    if min(shape[1:]) < 1:
        raise ValueError(f"{_NAME}: expected image of shape (B, C, H, W) with C, H and W at least 1, got {shape}")
    checks.expect_shape(_NAME, "sigma", sigma, "(B, 2, H, W)", (b, 2, h, w))
    checks.expect_shape(_NAME, "theta", theta, "(B, 1, H, W)", (b, 1, h, w))
    checks.expect_int(_NAME, "kernel_size", kernel_size, minimum=1, odd=True)
    expect_padding(_NAME, padding_mode, kernel_size // 2, "image", (h, w))
    checks.expect_same_device(_NAME, image=image, sigma=sigma, theta=theta)
    if autocast_dtype(image.device.type) is not None:
        widest = torch.promote_types(torch.promote_types(image.dtype, sigma.dtype), theta.dtype)
        image, sigma, theta = (t.to(widest) for t in (image, sigma, theta))
    checks.expect_same_dtype(_NAME, image=image, sigma=sigma, theta=theta)
    # A precision rounded to a half type would move taps far from the center: the whole blur is computed in float32.
    dtype = image.dtype
    wide = torch.promote_types(dtype, torch.float32)
    image, sigma, theta = (t.to(wide) for t in (image, sigma, theta))
    padded = pad(image, kernel_size // 2, padding_mode)
    return library.differentiate(AnisotropicReblur, _NAME, padded, _precision(sigma, theta), kernel_size).to(dtype)


def _precision(sigma: Tensor, theta: Tensor) -> Tensor:
    """Coefficients (a, b, c) of ``a dx^2 + 2 b dx dy + c dy^2``, the exponent of the Gaussian."""
    along, across = (0.5 / sigma.clamp(min=_LEAST_SIGMA).square()).unbind(1)
    cos, sin = theta[:, 0].cos(), theta[:, 0].sin()
    cos2, sin2 = cos.square(), sin.square()
    return torch.stack((along * cos2 + across * sin2, (along - across) * sin * cos, along * sin2 + across * cos2), 1)
