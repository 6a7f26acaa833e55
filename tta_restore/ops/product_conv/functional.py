"""Product convolution: checks and docstring; reference.py has the definition."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tta_restore._core import checks, library
from tta_restore._core.library import autocast_dtype
from tta_restore._core.padding import PADDING_MODES, expect_padding, fold, pad
from tta_restore.ops.product_conv.autograd import Adjoint, ProductConv

_NAME = "product_conv2d"


def product_conv2d(
    x: Tensor,
    kernels: Tensor,
    weights: Tensor,
    *,
    adjoint: bool = False,
    padding_mode: Literal["zeros", "reflect", "replicate", "circular", "valid"] = "reflect",
) -> Tensor:
    r"""Blur with a point spread function (PSF) that varies over the frame: a weighted sum of R convolutions.

    ``out[c, p] = sum_r weights[r, p] sum_t kernels[r, c, t] x[c, p + m - t]`` with ``m = (K - 1) / 2``: a true
    convolution, so that a bright point becomes the kernel itself, mixed with the weights of the *output* pixels. With
    one-hot weights every pixel has one of R kernels; with interpolated weights the PSF varies smoothly.

    With ``adjoint`` the transpose: ``out[c, q] = sum_r sum_p kernels[r, c, p + m - q] weights[r, p] x[c, p]``. What
    falls into the padding returns to the pixels that the padding was filled from, so that ``<A x, y> = <x, A^T y>`` in
    every mode. It is also the *scatter* form of the blur: mirrored kernels, mixed with weights of the *input* pixels.

    Gradients of every order exist in all three tensors, for both forms. Kernels of 5 taps across and more, on
    CUDA of 13 and more, go through Fourier transforms. Half-precision dtypes are computed in float32.

    Args:
        x: frames, any range.
        kernels: R kernels for all channels or for each, for all frames or for each; K odd.
        weights: weight maps of the kernels, usually in [0, 1] with a sum of 1 over R.
        adjoint: apply the transpose.
        padding_mode: what lies outside the frame: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"`` as in
            :class:`torch.nn.Conv2d`. With ``"valid"`` nothing is added: x is larger than the weights by ``K - 1``, and
            with ``adjoint`` the output is.

    Shape:
        - x: (B, C, H, W); (B, C, H+K-1, W+K-1) for ``"valid"``
        - kernels: (B or 1, R, C or 1, K, K)
        - weights: (B or 1, R, H, W)
        - output: (B, C, H, W); (B, C, H+K-1, W+K-1) for ``"valid"`` with ``adjoint``

    Under autocast tensors of several dtypes are cast to the widest.

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes or devices do not match, K is even, or the frame is too small for the padding.

    Source: product-convolution operators (Nagy and O'Leary, SIAM J. Sci. Comput. 1998).

    >>> x = torch.zeros(1, 1, 3, 5)
    >>> x[..., 1, 2] = 1
    >>> kernel = torch.arange(9.0).view(1, 1, 1, 3, 3)
    >>> product_conv2d(x, kernel, torch.ones(1, 1, 3, 5), padding_mode="zeros")[0, 0].tolist()
    [[0.0, 0.0, 1.0, 2.0, 0.0], [0.0, 3.0, 4.0, 5.0, 0.0], [0.0, 6.0, 7.0, 8.0, 0.0]]
    """
    checks.expect_floating(_NAME, x=x, kernels=kernels, weights=weights)
    b, c, h, w = checks.expect_shape(_NAME, "x", x, "(B, C, H, W)")
    if min(c, h, w) < 1:
        raise ValueError(f"{_NAME}: expected x of shape (B, C, H, W) with C, H and W at least 1, got {tuple(x.shape)}")
    shape = checks.expect_shape(_NAME, "kernels", kernels, "(B, R, C, K, K)")
    count, size = shape[1], shape[4]
    if shape[0] not in (1, b) or count < 1 or shape[2] not in (1, c) or shape[3] != size or size % 2 == 0:
        raise ValueError(
            f"{_NAME}: expected kernels of shape (B or 1, R, C or 1, K, K) = ({b} or 1, R, {c} or 1, K, K), R at "
            f"least 1 and K odd, got {shape}"
        )
    margin = size // 2
    if not isinstance(adjoint, bool):
        raise TypeError(f"{_NAME}: expected adjoint to be a bool, got {type(adjoint).__name__} {adjoint!r}")
    checks.expect_choice(_NAME, "padding_mode", padding_mode, (*PADDING_MODES, "valid"))
    valid = padding_mode == "valid"
    if not valid:
        expect_padding(_NAME, padding_mode, margin, "x", (h, w))
    elif not adjoint:
        if min(h, w) < size:
            raise ValueError(
                f"{_NAME}: expected x with H and W at least K = {size} for padding_mode 'valid', got {h}, {w}"
            )
        h, w = h - 2 * margin, w - 2 * margin
    found = checks.expect_shape(_NAME, "weights", weights, "(B, R, H, W)")
    if found[0] not in (1, b) or found[1:] != (count, h, w):
        raise ValueError(
            f"{_NAME}: expected weights of shape (B or 1, R, H, W) = ({b} or 1, {count}, {h}, {w}), got {found}"
        )
    checks.expect_same_device(_NAME, x=x, kernels=kernels, weights=weights)
    if autocast_dtype(x.device.type) is not None:
        widest = torch.promote_types(torch.promote_types(x.dtype, kernels.dtype), weights.dtype)
        x, kernels, weights = (t.to(widest) for t in (x, kernels, weights))
    checks.expect_same_dtype(_NAME, x=x, kernels=kernels, weights=weights)
    # Views: what is shared stays shared, and its gradient is summed by torch.
    kernels = kernels.expand(b, count, c, size, size)
    weights = weights.expand(b, count, h, w)
    if not adjoint:
        return library.differentiate(ProductConv, _NAME, x if valid else pad(x, margin, padding_mode), kernels, weights)
    out = library.differentiate(Adjoint, _NAME, x, kernels, weights)
    return out if valid else fold(out, margin, padding_mode).contiguous()
