"""Registered ops of the product convolution: schemas, shapes of results, and what they do under vmap."""

from __future__ import annotations

from torch import Tensor

from tta_restore._core import library

from . import reference

_TRITON = "tta_restore.ops.product_conv.triton"


def _frame(like: Tensor, weights: Tensor, margin: int) -> Tensor:
    h, w = weights.shape[2:]
    return like.new_empty(*like.shape[:2], h + margin, w + margin)


product_conv2d = library.define(
    "product_conv2d(Tensor x, Tensor kernels, Tensor weights) -> Tensor",
    reference=reference.product_conv2d,
    fake=lambda x, kernels, weights: _frame(x, weights, 0),
    cpu=False,
    triton=_TRITON,
)
product_conv2d_adjoint = library.define(
    "product_conv2d_adjoint(Tensor g, Tensor kernels, Tensor weights) -> Tensor",
    reference=reference.product_conv2d_adjoint,
    fake=lambda g, kernels, weights: _frame(g, weights, kernels.shape[-1] - 1),
    cpu=False,
    triton=_TRITON,
)
product_conv2d_grad_kernels = library.define(
    "product_conv2d_grad_kernels(Tensor g, Tensor x, Tensor weights) -> Tensor",
    reference=reference.product_conv2d_grad_kernels,
    fake=lambda g, x, weights: g.new_empty(
        g.shape[0], weights.shape[1], g.shape[1], *[x.shape[-1] - g.shape[-1] + 1] * 2
    ),
    cpu=False,
    triton=_TRITON,
)
product_conv2d_grad_weights = library.define(
    "product_conv2d_grad_weights(Tensor g, Tensor x, Tensor kernels) -> Tensor",
    reference=reference.product_conv2d_grad_weights,
    fake=lambda g, x, kernels: g.new_empty(g.shape[0], kernels.shape[1], *g.shape[2:]),
    cpu=False,
    triton=_TRITON,
)

for _op in (product_conv2d, product_conv2d_adjoint, product_conv2d_grad_kernels, product_conv2d_grad_weights):
    library.fold_into_batch(_op, 3)
