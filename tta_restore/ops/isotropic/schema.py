"""Registered ops of the isotropic blur: schemas, fake kernels and vmap rules."""

from __future__ import annotations

import torch
from torch import Tensor

from tta_restore._core import library

from . import reference


def _dense(like: Tensor, needed: bool = True) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format) if needed else like.new_empty(0)


isotropic_reblur = library.define(
    "isotropic_reblur(Tensor image, Tensor seeds, Tensor weights, int[] kernel_sizes) -> Tensor",
    reference=reference.isotropic_reblur,
    triton="tta_restore.ops.isotropic.triton",
    fake=lambda image, seeds, weights, kernel_sizes: _dense(image),
)
isotropic_reblur_backward = library.define(
    "isotropic_reblur_backward(Tensor grad, Tensor image, Tensor seeds, Tensor weights, int[] kernel_sizes,"
    " bool need_image, bool need_kernels) -> (Tensor, Tensor, Tensor)",
    reference=reference.isotropic_reblur_backward,
    triton="tta_restore.ops.isotropic.triton",
    fake=lambda grad, image, seeds, weights, kernel_sizes, need_image, need_kernels: (
        _dense(image, need_image),
        _dense(seeds, need_kernels),
        _dense(weights, need_kernels),
    ),
)
# Rare enough to stay in plain torch, which holds a plane per class of offsets and color.
isotropic_reblur_double_backward = library.define(
    "isotropic_reblur_double_backward(Tensor? dimage, Tensor? dseeds, Tensor? dweights, Tensor grad, Tensor image,"
    " Tensor seeds, Tensor weights, int[] kernel_sizes) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.isotropic_reblur_double_backward,
    fake=lambda dimage, dseeds, dweights, grad, image, seeds, weights, kernel_sizes: (
        _dense(grad),
        _dense(image),
        _dense(seeds),
        _dense(weights),
    ),
    cpu=False,
)

for _op, _tensors in ((isotropic_reblur, 3), (isotropic_reblur_backward, 4), (isotropic_reblur_double_backward, 7)):
    library.fold_into_batch(_op, _tensors)
