"""Registered ops of per-pixel convolution: schemas, shapes of results, and what they do under vmap."""

from __future__ import annotations

from tta_restore._core import library

from . import reference

_OPTIONS = "int kernel_size, int groups, int dilation, int stride, int scale, int padding"
_TRITON = "tta_restore.ops.adaptive_conv2d.triton"

adaptive_conv2d = library.define(
    f"adaptive_conv2d(Tensor x, Tensor kernels, {_OPTIONS}) -> Tensor",
    reference=reference.adaptive_conv2d,
    fake=lambda x, kernels, *options: x.new_empty(*x.shape[:2], *kernels.shape[2:]),
    triton=_TRITON,
)
adaptive_conv2d_grad_x = library.define(
    f"adaptive_conv2d_grad_x(Tensor g, Tensor kernels, {_OPTIONS}, SymInt height, SymInt width) -> Tensor",
    reference=reference.adaptive_conv2d_grad_x,
    fake=lambda g, kernels, *options: g.new_empty(*g.shape[:2], *options[-2:]),
    triton=_TRITON,
)
adaptive_conv2d_grad_kernels = library.define(
    f"adaptive_conv2d_grad_kernels(Tensor g, Tensor x, {_OPTIONS}) -> Tensor",
    reference=reference.adaptive_conv2d_grad_kernels,
    fake=lambda g, x, kernel_size, groups, *options: g.new_empty(g.shape[0], groups * kernel_size**2, *g.shape[2:]),
    triton=_TRITON,
)

for _op in (adaptive_conv2d, adaptive_conv2d_grad_x, adaptive_conv2d_grad_kernels):
    library.fold_into_batch(_op, 2)
