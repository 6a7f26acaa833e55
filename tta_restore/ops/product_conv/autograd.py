"""Autograd function of the product convolution, differentiable to any order.

The four ops are the partial derivatives of one form that is linear in each argument (reference.py). The derivative of
one of them in an argument is the partial derivative in that argument, with the upstream gradient in the free place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tta_restore.ops.product_conv import schema as ops


class _Partial(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


class ProductConv(_Partial):
    @staticmethod
    def forward(x: Tensor, kernels: Tensor, weights: Tensor) -> Tensor:
        return ops.product_conv2d(x, kernels, weights)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, kernels, weights = ctx.saved_tensors
        need_x, need_kernels, need_weights = ctx.needs_input_grad
        return (
            Adjoint.apply(g, kernels, weights) if need_x else None,
            GradKernels.apply(g, x, weights) if need_kernels else None,
            GradWeights.apply(g, x, kernels) if need_weights else None,
        )


class Adjoint(_Partial):
    @staticmethod
    def forward(g: Tensor, kernels: Tensor, weights: Tensor) -> Tensor:
        return ops.product_conv2d_adjoint(g, kernels, weights)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor | None, ...]:
        g, kernels, weights = ctx.saved_tensors
        need_g, need_kernels, need_weights = ctx.needs_input_grad
        return (
            ProductConv.apply(x, kernels, weights) if need_g else None,
            GradKernels.apply(g, x, weights) if need_kernels else None,
            GradWeights.apply(g, x, kernels) if need_weights else None,
        )


class GradKernels(_Partial):
    @staticmethod
    def forward(g: Tensor, x: Tensor, weights: Tensor) -> Tensor:
        return ops.product_conv2d_grad_kernels(g, x, weights)

    @staticmethod
    def backward(ctx: Any, kernels: Tensor) -> tuple[Tensor | None, ...]:
        g, x, weights = ctx.saved_tensors
        need_g, need_x, need_weights = ctx.needs_input_grad
        return (
            ProductConv.apply(x, kernels, weights) if need_g else None,
            Adjoint.apply(g, kernels, weights) if need_x else None,
            GradWeights.apply(g, x, kernels) if need_weights else None,
        )


class GradWeights(_Partial):
    @staticmethod
    def forward(g: Tensor, x: Tensor, kernels: Tensor) -> Tensor:
        return ops.product_conv2d_grad_weights(g, x, kernels)

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        g, x, kernels = ctx.saved_tensors
        need_g, need_x, need_kernels = ctx.needs_input_grad
        return (
            ProductConv.apply(x, kernels, weights) if need_g else None,
            Adjoint.apply(g, kernels, weights) if need_x else None,
            GradKernels.apply(g, x, weights) if need_kernels else None,
        )
