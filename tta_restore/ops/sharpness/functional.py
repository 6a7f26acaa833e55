"""Sharpness scores of images: schema, checks, documentation and autograd functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tta_restore._core import checks as _checks
from tta_restore._core import library

from . import reference

# Both ops are bilinear and each is the derivative of the other, so derivatives of any order are made of these two.
_products = library.define(
    "self_shift_products(Tensor a, Tensor b) -> Tensor",
    reference=reference.self_shift_products,
    fake=lambda a, b: a.new_empty(a.shape[0], 4, dtype=torch.promote_types(a.dtype, torch.float32)),
)
_laplacian = library.define(
    "self_shift_laplacian(Tensor x, Tensor weights) -> Tensor",
    reference=reference.self_shift_laplacian,
    fake=lambda x, weights: torch.empty_like(x, memory_format=torch.contiguous_format),
)
for _op in (_products, _laplacian):
    library.fold_into_batch(_op, 2)


def self_shift_score(x: Tensor) -> Tensor:
    r"""Return the self-shift sharpness score of each image, in decibels; lower is sharper.

    The image is compared with itself shifted by one pixel: ``score = sum over 4 directions of
    10 log10(1 / mean((p - q)^2))``, where p and q are the pixels of the overlap. A direction without any difference
    counts 100. All channels are compared jointly. The score ranks crops of one scene; noise and texture lower it as
    detail does. float16 and bfloat16 images are summed and scored in float32.

    Shape:
        - x: (B, C, H, W), RGB in [0, 1], H and W at least 2
        - output: (B,)

    Raises:
        TypeError: ``x`` is no floating-point tensor.
        ValueError: ``x`` is not (B, C, H, W), or smaller than 2 x 2 pixels.

    Source: Meta Transferring for Deblurring (Liu et al., BMVC 2022), the self-shift sharpness of its patch mining.

    >>> frame = torch.tensor([[0.0, 0.1], [0.0, 0.1]]).expand(1, 3, 2, 2)  # vertical neighbors are equal: 100 dB
    >>> [round(score, 2) for score in self_shift_score(frame).tolist()]
    [160.0]
    """
    _checks.expect_floating("self_shift_score", x=x)
    _, channels, height, width = _checks.expect_shape("self_shift_score", "x", x, "(B, C, H, W)")
    if channels < 1 or height < 2 or width < 2:
        raise ValueError(
            f"self_shift_score: expected x of shape (B, C, H, W) with C >= 1, H >= 2 and W >= 2, got {tuple(x.shape)}"
        )
    errors = library.differentiate(_Errors, "self_shift_score", x)
    equal = errors == 0
    decibels = -10 * torch.log10(torch.where(equal, 1, errors))
    return torch.where(equal, 100, decibels).sum(1)


class _Errors(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _products(x, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Laplacian.apply(ctx.saved_tensors[0], 2 * grad)


class _Products(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return _products(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        need_a, need_b = ctx.needs_input_grad
        return _Laplacian.apply(b, grad) if need_a else None, _Laplacian.apply(a, grad) if need_b else None


class _Laplacian(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weights: Tensor) -> Tensor:
        return _laplacian(x, weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weights = ctx.saved_tensors
        need_x, need_weights = ctx.needs_input_grad
        return _Laplacian.apply(grad, weights) if need_x else None, _Products.apply(grad, x) if need_weights else None
