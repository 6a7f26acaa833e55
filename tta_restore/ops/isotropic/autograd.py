"""Autograd functions of the isotropic blur, differentiable twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tta_restore.ops.isotropic import schema as ops


class Reblur(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(image: Tensor, seeds: Tensor, weights: Tensor, kernel_sizes: list[int]) -> Tensor:
        return ops.isotropic_reblur(image, seeds, weights, kernel_sizes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.kernel_sizes = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_image, need_seeds, need_weights, _ = ctx.needs_input_grad
        options = (ctx.kernel_sizes, need_image, need_seeds or need_weights)
        image, seeds, weights = ReblurBackward.apply(grad, *ctx.saved_tensors, *options)
        return image if need_image else None, seeds if need_seeds else None, weights if need_weights else None, None


class ReblurBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor, image: Tensor, seeds: Tensor, weights: Tensor, kernel_sizes: list[int],
        need_image: bool, need_kernels: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        return ops.isotropic_reblur_backward(grad, image, seeds, weights, kernel_sizes, need_image, need_kernels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.kernel_sizes, ctx.need_image, ctx.need_kernels = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, dimage: Tensor, dseeds: Tensor, dweights: Tensor) -> tuple[Tensor | None, ...]:
        tangents = (
            dimage if ctx.need_image else None,
            *((dseeds, dweights) if ctx.need_kernels else (None, None)),
        )
        return *ReblurDoubleBackward.apply(*tangents, *ctx.saved_tensors, ctx.kernel_sizes), None, None, None


class ReblurDoubleBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        dimage: Tensor | None, dseeds: Tensor | None, dweights: Tensor | None,
        grad: Tensor, image: Tensor, seeds: Tensor, weights: Tensor, kernel_sizes: list[int],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        tangents = dimage, dseeds, dweights
        return ops.isotropic_reblur_double_backward(*tangents, grad, image, seeds, weights, kernel_sizes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("isotropic_reblur: the third derivative is not implemented")
