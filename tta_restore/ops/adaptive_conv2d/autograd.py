"""Autograd function of the per-pixel convolution, differentiable to any order.

The three ops are the partial derivatives of one form that is linear in each argument (reference.py). The derivative of
one of them in an argument is the partial derivative in that argument, with the upstream gradient in the free place.
``forward`` names every argument: torch.compile of older versions counts them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tta_restore.ops.adaptive_conv2d import schema as ops


class _Partial(torch.autograd.Function):
    generate_vmap_rule = True


class AdaptiveConv(_Partial):
    @staticmethod
    def forward(
        x: Tensor, kernels: Tensor,
        kernel_size: int, groups: int, dilation: int, stride: int, scale: int, padding: int,
    ) -> Tensor:  # fmt: skip
        return ops.adaptive_conv2d(x, kernels, kernel_size, groups, dilation, stride, scale, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, kernels, *ctx.options = inputs
        ctx.save_for_backward(x, kernels)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, kernels = ctx.saved_tensors
        need_x, need_kernels = ctx.needs_input_grad[:2]
        return (
            GradX.apply(g, kernels, *ctx.options, *x.shape[2:]) if need_x else None,
            GradKernels.apply(g, x, *ctx.options) if need_kernels else None,
            *[None] * 6,
        )


class GradX(_Partial):
    @staticmethod
    def forward(
        g: Tensor, kernels: Tensor,
        kernel_size: int, groups: int, dilation: int, stride: int, scale: int, padding: int, height: int, width: int,
    ) -> Tensor:  # fmt: skip
        options = kernel_size, groups, dilation, stride, scale, padding
        return ops.adaptive_conv2d_grad_x(g, kernels, *options, height, width)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, kernels, *options = inputs
        ctx.options = options[:-2]
        ctx.save_for_backward(g, kernels)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor | None, ...]:
        g, kernels = ctx.saved_tensors
        need_g, need_kernels = ctx.needs_input_grad[:2]
        return (
            AdaptiveConv.apply(x, kernels, *ctx.options) if need_g else None,
            GradKernels.apply(g, x, *ctx.options) if need_kernels else None,
            *[None] * 8,
        )


class GradKernels(_Partial):
    @staticmethod
    def forward(
        g: Tensor, x: Tensor,
        kernel_size: int, groups: int, dilation: int, stride: int, scale: int, padding: int,
    ) -> Tensor:  # fmt: skip
        return ops.adaptive_conv2d_grad_kernels(g, x, kernel_size, groups, dilation, stride, scale, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, x, *ctx.options = inputs
        ctx.save_for_backward(g, x)

    @staticmethod
    def backward(ctx: Any, kernels: Tensor) -> tuple[Tensor | None, ...]:
        g, x = ctx.saved_tensors
        need_g, need_x = ctx.needs_input_grad[:2]
        return (
            AdaptiveConv.apply(x, kernels, *ctx.options) if need_g else None,
            GradX.apply(g, kernels, *ctx.options, *x.shape[2:]) if need_x else None,
            *[None] * 6,
        )
