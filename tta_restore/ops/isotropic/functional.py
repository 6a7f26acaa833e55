"""Isotropic kernels and the blur with them: public functions with checks and documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tta_restore._core import checks as _checks
from tta_restore._core import library
from tta_restore._core.library import autocast_dtype
from tta_restore._core.padding import expect_padding, pad
from tta_restore.ops.isotropic import reference, symmetry
from tta_restore.ops.isotropic.autograd import Reblur


def isotropic_kernels(seeds: Tensor, kernel_size: int) -> Tensor:
    r"""Return normalized isotropic kernels from radial kernel logits.

    The magnitude of seed k is the logit at distance k from the center; signs are ignored. A tap at distance r between
    two integers interpolates linearly, and a corner tap, farther than ``m = (K-1)/2``, has logit 0. The taps
    are the softmax over all K x K logits, so seeds of zero give a box. Half-precision seeds are computed in float32.

    Shape:
        - seeds: (B, m+1, H, W)
        - output: (B, K*K, H, W), tap ``(i, j)``, row and column of the kernel, in channel ``i*K + j``; they sum to 1

    Raises:
        TypeError: ``seeds`` is not a floating-point tensor, or ``kernel_size`` not an integer.
        ValueError: shapes do not match, or ``kernel_size`` is even.

    Source: JDRL (Li et al., AAAI 2023), its isotropic blur kernels.

    >>> isotropic_kernels(torch.zeros(1, 2, 1, 1), 3).flatten().mul(9).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    _checks.expect_int("isotropic_kernels", "kernel_size", kernel_size, minimum=1, odd=True)
    _checks.expect_floating("isotropic_kernels", seeds=seeds)
    channels = (kernel_size + 1) // 2
    _checks.expect_shape("isotropic_kernels", "seeds", seeds, "(B, (K+1)/2, H, W)", (None, channels, None, None))
    return reference.isotropic_kernels(seeds, kernel_size)


def isotropic_reblur(
    image: Tensor,
    seeds: Tensor,
    weights: Tensor,
    *,
    kernel_sizes: Sequence[int] = (3, 5, 7, 9, 11, 13, 15),
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
) -> Tensor:
    r"""Blur every pixel with its own mixture of isotropic kernels, without storing the kernels.

    ``out[p] = w_0[p] x[p] + sum_n w_n[p] sum_t kernel_n[t; p] x[p + t]`` with the kernels of :func:`isotropic_kernels`,
    the kernel of the output pixel for all channels alike. Zeros outside the frame, as published, darken the border; the
    other padding modes do not, and compute the blur of a margin, too. The weights are used as they are: pass them
    through a softmax for a mean.

    Args:
        image: image to blur, in any range.
        seeds: radial kernel logits, ``(K+1)/2`` channels for each kernel size in turn.
        weights: mixing weights; channel 0 weighs the unblurred image, channel n the n-th kernel size.
        kernel_sizes: kernel widths in pixels, odd.
        padding_mode: values outside the image: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.

    Shape:
        - image: (B, C, H, W)
        - seeds: (B, sum((K+1)/2), H, W), 35 channels for the default sizes
        - weights: (B, 1+N, H, W), N the number of kernel sizes
        - output: (B, C, H, W), contiguous

    Half-precision tensors are computed in float32. Under autocast, tensors are converted to the widest of their dtypes.

    Raises:
        TypeError: an argument is not a floating-point tensor, dtypes differ outside autocast, a size is not an integer.
        ValueError: shapes or devices do not match, a kernel size is even, or the frame is too small for the padding.

    Source: JDRL (Li et al., AAAI 2023), its reblurring module.

    >>> impulse = torch.zeros(1, 1, 3, 3)
    >>> impulse[..., 1, 1] = 9
    >>> weights = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    >>> isotropic_reblur(impulse, torch.zeros(1, 2, 3, 3), weights, kernel_sizes=(3,)).round().flatten().tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    name = "isotropic_reblur"
    _checks.expect_floating(name, image=image, seeds=seeds, weights=weights)
    shape = _checks.expect_shape(name, "image", image, "(B, C, H, W)")
    if min(shape[1:]) < 1:
        raise ValueError(f"{name}: expected image of shape (B, C, H, W) with C, H and W at least 1, got {shape}")
    if not isinstance(kernel_sizes, Sequence) or isinstance(kernel_sizes, str) or not kernel_sizes:
        raise TypeError(f"{name}: expected kernel_sizes to be a sequence of odd integers, got {kernel_sizes!r}")
    for size in kernel_sizes:
        _checks.expect_int(name, "every kernel size", size, minimum=1, odd=True)
    b, _, h, w = shape
    channels = symmetry.seed_channels(tuple(kernel_sizes))
    _checks.expect_shape(name, "seeds", seeds, "(B, sum((K+1)/2), H, W)", (b, channels, h, w))
    _checks.expect_shape(name, "weights", weights, "(B, 1+N, H, W)", (b, 1 + len(kernel_sizes), h, w))
    _checks.expect_same_device(name, image=image, seeds=seeds, weights=weights)
    if autocast_dtype(image.device.type) is not None:
        widest = torch.promote_types(torch.promote_types(image.dtype, seeds.dtype), weights.dtype)
        image, seeds, weights = (t.to(widest) for t in (image, seeds, weights))
    _checks.expect_same_dtype(name, image=image, seeds=seeds, weights=weights)
    radius = symmetry.largest_radius(tuple(kernel_sizes))
    expect_padding(name, padding_mode, radius, "image", (h, w))
    if padding_mode == "zeros" or radius == 0:
        return library.apply(Reblur, name, image, seeds, weights, list(kernel_sizes))
    padded = pad(image, radius, padding_mode), *(pad(t, radius, "zeros") for t in (seeds, weights))
    out = library.differentiate(Reblur, name, *padded, list(kernel_sizes))
    return out[:, :, radius : radius + h, radius : radius + w].contiguous()
