"""Per-pixel convolution and upsampling: checks and docstrings; reference.py has the definition."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tta_restore._core import checks, library
from tta_restore._core.library import autocast_dtype
from tta_restore._core.padding import PADDING_MODES, expect_padding
from tta_restore.ops.adaptive_conv2d.autograd import AdaptiveConv
from tta_restore.ops.adaptive_conv2d.reference import output_size

Normalize = Literal["sum", "softmax"]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


def adaptive_conv2d(
    x: Tensor,
    kernels: Tensor,
    *,
    kernel_size: int,
    groups: int | None = None,
    dilation: int = 1,
    stride: int = 1,
    padding_mode: PaddingMode = "replicate",
    normalize: Normalize | None = None,
) -> Tensor:
    r"""Filter every pixel with its own K x K kernel.

    ``out[c, y, x] = sum_(i, j) kernels[g, i, j, y, x] x[c, s y + d (i - m), s x + d (j - m)]`` with stride s, dilation
    d, ``m = (K - 1) / 2`` and g the group of channel c: a cross-correlation, as in :class:`torch.nn.Conv2d`. No K x K
    neighborhoods are gathered in memory. Gradients of every order exist in both tensors.

    Args:
        x: frames or features.
        kernels: tap ``(i, j)`` of group g in channel ``g*K*K + i*K + j``.
        kernel_size: K, odd.
        groups: G, how many kernels a pixel has; channel c uses kernel ``c // (C/G)``. None means C, one kernel per
            channel (KPN, DDF); 1 is one for all channels (PAC, FeatUp); numbers between are involution.
        dilation: distance between taps in pixels.
        stride: distance in pixels of x between pixels of the output.
        padding_mode: what lies outside the frame: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        normalize: None uses the taps as they are; ``"sum"`` divides them by their sum; ``"softmax"`` takes logits.

    Shape:
        - x: (B, C, H, W)
        - kernels: (B, G*K*K, H', W') with ``H' = (H - 1) // stride + 1``, W' likewise
        - output: (B, C, H', W'), contiguous

    Half-precision dtypes are accumulated in float32. Under autocast ``x`` follows the dtype of ``kernels``, which are
    too large to convert.

    Raises:
        TypeError: an argument is no floating-point tensor or no integer, or dtypes differ outside autocast.
        ValueError: shapes, devices or options do not match, or the frame is too small for the padding.

    Source: Burst denoising with kernel prediction networks (Mildenhall et al., CVPR 2018); Pixel-adaptive convolution
    (Su et al., CVPR 2019); Involution (Li et al., CVPR 2021); Decoupled dynamic filters (Zhou et al., CVPR 2021).

    >>> x = torch.arange(4.0).view(1, 1, 1, 4)
    >>> right = torch.zeros(1, 9, 1, 4)
    >>> right[:, 5] = 1
    >>> adaptive_conv2d(x, right, kernel_size=3).flatten().tolist()
    [1.0, 2.0, 3.0, 3.0]
    """
    name = "adaptive_conv2d"
    b, c, h, w = _frames(name, x, kernels, kernel_size)
    checks.expect_int(name, "dilation", dilation, minimum=1)
    checks.expect_int(name, "stride", stride, minimum=1)
    groups = _groups(name, groups, c, default=c)
    expect_padding(name, padding_mode, dilation * (kernel_size // 2), "x", (h, w))
    size = output_size(h, stride, 1), output_size(w, stride, 1)
    checks.expect_shape(name, "kernels", kernels, "(B, G*K*K, H', W')", (b, groups * kernel_size**2, *size))
    return _apply(name, x, kernels, normalize, kernel_size, groups, dilation, stride, 1, padding_mode)


def adaptive_upsample(
    x: Tensor,
    kernels: Tensor,
    *,
    scale: int,
    kernel_size: int,
    groups: int | None = 1,
    padding_mode: PaddingMode = "zeros",
    normalize: Normalize | None = "softmax",
) -> Tensor:
    r"""Upsample by an integer factor with K x K taps of its own for every pixel of the output.

    ``out[c, y, x] = sum_(i, j) kernels[g, i, j, y, x] x[c, y // scale + i - m, x // scale + j - m]`` with
    ``m = (K - 1) / 2`` and g the group of channel c. Neither the neighborhoods nor an enlarged x are held. Gradients of
    every order exist in both tensors.

    Args:
        x: frames or features.
        kernels: tap ``(i, j)`` of group g in channel ``g*K*K + i*K + j``, at the size of the output.
        scale: upsampling factor.
        kernel_size: K, odd.
        groups: G, how many kernels a pixel has, 1 for all channels alike as published; None means C.
        padding_mode: what lies outside the frame: ``"zeros"`` as published, ``"reflect"``, ``"replicate"``
            or ``"circular"``.
        normalize: ``"softmax"`` takes logits, as published; ``"sum"`` divides taps by their sum; None uses them as
            they are.

    Shape:
        - x: (B, C, H, W)
        - kernels: (B, G*K*K, scale*H, scale*W)
        - output: (B, C, scale*H, scale*W), contiguous

    Half-precision dtypes are accumulated in float32. Under autocast ``x`` follows the dtype of ``kernels``.

    Raises:
        TypeError: an argument is no floating-point tensor or no integer, or dtypes differ outside autocast.
        ValueError: shapes, devices or options do not match, or the frame is too small for the padding.

    Source: CARAFE, content-aware reassembly of features (Wang et al., ICCV 2019).

    >>> x = torch.arange(2.0).view(1, 1, 1, 2)
    >>> center = torch.zeros(1, 9, 2, 4)
    >>> center[:, 4] = 1
    >>> adaptive_upsample(x, center, scale=2, kernel_size=3, normalize=None)[0, 0].tolist()
    [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    """
    name = "adaptive_upsample"
    b, c, h, w = _frames(name, x, kernels, kernel_size)
    checks.expect_int(name, "scale", scale, minimum=1)
    groups = _groups(name, groups, c, default=c)
    expect_padding(name, padding_mode, kernel_size // 2, "x", (h, w))
    size = scale * h, scale * w
    checks.expect_shape(name, "kernels", kernels, "(B, G*K*K, scale*H, scale*W)", (b, groups * kernel_size**2, *size))
    return _apply(name, x, kernels, normalize, kernel_size, groups, 1, 1, scale, padding_mode)


def _frames(name: str, x: Tensor, kernels: Tensor, kernel_size: int) -> tuple[int, ...]:
    checks.expect_floating(name, x=x, kernels=kernels)
    shape = checks.expect_shape(name, "x", x, "(B, C, H, W)")
    if min(shape[1:]) < 1:
        raise ValueError(f"{name}: expected x of shape (B, C, H, W) with C, H and W at least 1, got {shape}")
    checks.expect_int(name, "kernel_size", kernel_size, minimum=1, odd=True)
    return shape


def _groups(name: str, groups: int | None, channels: int, *, default: int) -> int:
    if groups is None:
        return default
    checks.expect_int(name, "groups", groups, minimum=1)
    if channels % groups:
        raise ValueError(f"{name}: expected groups to divide the C = {channels} channels of x, got {groups}")
    return groups


def _apply(
    name: str, x: Tensor, kernels: Tensor, normalize: str | None,
    kernel_size: int, groups: int, dilation: int, stride: int, scale: int, padding_mode: str,
) -> Tensor:  # fmt: skip
    checks.expect_choice(name, "normalize", normalize, (None, "sum", "softmax"))
    checks.expect_same_device(name, x=x, kernels=kernels)
    if autocast_dtype(x.device.type) is not None and torch.float64 not in (x.dtype, kernels.dtype):
        x = x.to(kernels.dtype)
    checks.expect_same_dtype(name, x=x, kernels=kernels)
    if normalize is not None:
        kernels = _normalized(kernels, normalize, groups)
    options = kernel_size, groups, dilation, stride, scale, PADDING_MODES.index(padding_mode)
    # apply() looks the op up by the name of the public function
    run = library.apply if name == "adaptive_conv2d" else library.differentiate
    return run(AdaptiveConv, name, x, kernels, *options)


def _normalized(kernels: Tensor, normalize: str, groups: int) -> Tensor:
    taps = kernels.unflatten(1, (groups, -1))
    if normalize == "softmax":
        return taps.softmax(2).flatten(1, 2).to(kernels.dtype)
    return (taps / taps.sum(2, keepdim=True)).flatten(1, 2)
