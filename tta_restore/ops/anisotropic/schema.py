"""Registered ops of the anisotropic Gaussian blur: schemas, fake kernels and vmap rules."""

from __future__ import annotations

import torch
from torch import Tensor

from tta_restore._core import library

from . import reference

_WIDE = (torch.float32, torch.float64)  # the public function computes half types in float32


def _dense(like: Tensor, needed: bool = True) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format) if needed else like.new_empty(0)


anisotropic_reblur = library.define(
    "anisotropic_reblur(Tensor padded, Tensor precision, int kernel_size) -> Tensor",
    reference=reference.anisotropic_reblur,
    fake=lambda padded, precision, kernel_size: padded.new_empty(*padded.shape[:2], *precision.shape[2:]),
    cpu_dtypes=_WIDE,
    triton="tta_restore.ops.anisotropic.triton",
)
anisotropic_reblur_backward = library.define(
    "anisotropic_reblur_backward(Tensor grad, Tensor padded, Tensor precision, int kernel_size, bool need_image,"
    " bool need_precision) -> (Tensor, Tensor)",
    reference=reference.anisotropic_reblur_backward,
    fake=lambda grad, padded, precision, kernel_size, need_image, need_precision: (
        _dense(padded, need_image),
        _dense(precision, need_precision),
    ),
    cpu_dtypes=_WIDE,
    triton="tta_restore.ops.anisotropic.triton",
)
anisotropic_reblur_double_backward = library.define(
    "anisotropic_reblur_double_backward(Tensor? dimage, Tensor? dprecision, Tensor grad, Tensor padded,"
    " Tensor precision, int kernel_size) -> (Tensor, Tensor, Tensor)",
    reference=reference.anisotropic_reblur_double_backward,
    fake=lambda dimage, dprecision, grad, padded, precision, kernel_size: (
        _dense(grad),
        _dense(padded),
        _dense(precision),
    ),
    cpu=False,
)

for _op, _tensors in (
    (anisotropic_reblur, 2),
    (anisotropic_reblur_backward, 3),
    (anisotropic_reblur_double_backward, 5),
):
    library.fold_into_batch(_op, _tensors)
