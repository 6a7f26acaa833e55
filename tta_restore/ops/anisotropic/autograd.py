"""Autograd functions of the anisotropic Gaussian blur, to second order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tta_restore.ops.anisotropic import schema as ops


class AnisotropicReblur(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(padded: Tensor, precision: Tensor, kernel_size: int) -> Tensor:
        return ops.anisotropic_reblur(padded, precision, kernel_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        padded, precision, ctx.kernel_size = inputs
        ctx.save_for_backward(padded, precision)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_image, need_precision, _ = ctx.needs_input_grad
        needs = need_image, need_precision
        image, precision = AnisotropicReblurBackward.apply(grad, *ctx.saved_tensors, ctx.kernel_size, *needs)
        return image if need_image else None, precision if need_precision else None, None


class AnisotropicReblurBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor, padded: Tensor, precision: Tensor, kernel_size: int, need_image: bool, need_precision: bool
    ) -> tuple[Tensor, Tensor]:
        return ops.anisotropic_reblur_backward(grad, padded, precision, kernel_size, need_image, need_precision)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.kernel_size, ctx.need_image, ctx.need_precision = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, dimage: Tensor, dprecision: Tensor) -> tuple[Tensor | None, ...]:
        direction = dimage if ctx.need_image else None, dprecision if ctx.need_precision else None
        grads = AnisotropicReblurDoubleBackward.apply(*direction, *ctx.saved_tensors, ctx.kernel_size)
        return *grads, None, None, None


class AnisotropicReblurDoubleBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        dimage: Tensor | None, dprecision: Tensor | None, grad: Tensor, padded: Tensor, precision: Tensor,
        kernel_size: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        return ops.anisotropic_reblur_double_backward(dimage, dprecision, grad, padded, precision, kernel_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("anisotropic_reblur: the third derivative is not implemented")
