"""Registered ops of the adaptive convolutions: schemas, fake kernels and vmap rules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tta_restore._core import library

from . import reference

_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
_TRITON = "tta_restore.ops.adaptive_conv.triton"
_OPTIONS = "int num_steps, int kernel_size, float negative_slope, bool activate_last, bool own"


def _dense(like: Tensor, needed: bool = True) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format) if needed else like.new_empty(0)


def _gradient(filters: Tensor, needed: bool) -> Tensor:
    if not needed or not reference.is_channels_last(filters):
        return _dense(filters, needed)
    b, c, h, w = filters.shape
    return filters.new_empty(b, h, w, c).permute(0, 3, 1, 2)


def _iac_fake(x: Tensor, filters: Tensor, num_steps: int, *options: Any) -> tuple[Tensor, Tensor]:
    steps = num_steps - 1 if options[-1] else 0
    states = x.new_empty(x.shape[0], steps, *x.shape[1:], dtype=_WIDE.get(x.dtype, x.dtype))
    return _dense(x), reference.states_in_format_of(filters, states)


sac = library.define(
    "sac(Tensor x, Tensor vertical, Tensor horizontal) -> Tensor",
    reference=reference.sac,
    triton=_TRITON,
    fake=lambda x, vertical, horizontal: _dense(x),
)
sac_backward = library.define(
    "sac_backward(Tensor grad, Tensor x, Tensor vertical, Tensor horizontal, bool need_taps)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference.sac_backward,
    triton=_TRITON,
    fake=lambda grad, x, vertical, horizontal, need: (
        _dense(x),
        _gradient(vertical, need),
        _gradient(horizontal, need),
    ),
)
iac = library.define(
    f"iac(Tensor x, Tensor filters, {_OPTIONS}, bool save_states) -> (Tensor, Tensor)",
    reference=reference.iac,
    triton=_TRITON,
    fake=_iac_fake,
)
iac_backward = library.define(
    f"iac_backward(Tensor grad, Tensor x, Tensor filters, Tensor states, {_OPTIONS}, bool need_filters)"
    " -> (Tensor, Tensor)",
    reference=reference.iac_backward,
    triton=_TRITON,
    fake=lambda grad, x, filters, states, *options: (_dense(x), _gradient(filters, options[-1])),
)
iac_double_backward = library.define(
    f"iac_double_backward(Tensor? dx, Tensor? dfilters, Tensor grad, Tensor x, Tensor filters, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference.iac_double_backward,
    fake=lambda dx, dfilters, grad, x, filters, *options: (_dense(grad), _dense(x), _dense(filters)),
)
iac_from_features = library.define(
    f"iac_from_features(Tensor x, Tensor features, Tensor weight, Tensor bias, {_OPTIONS}) -> Tensor",
    reference=reference.iac_from_features,
    triton=_TRITON,
    fake=lambda x, *rest: _dense(x),
)
iac_from_features_backward = library.define(
    f"iac_from_features_backward(Tensor grad, Tensor x, Tensor features, Tensor weight, Tensor bias, {_OPTIONS},"
    " bool need_features, bool need_weight) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.iac_from_features_backward,
    triton=_TRITON,
    fake=lambda grad, x, features, weight, bias, *options: (
        _dense(x),
        _dense(features, options[-2]),
        _dense(weight, options[-1]),
        _dense(bias, options[-1]),
    ),
)

for _op, _tensors in ((sac, 3), (sac_backward, 4), (iac, 2), (iac_backward, 4), (iac_double_backward, 5)):
    library.fold_into_batch(_op, _tensors)
library.fold_into_batch(iac_from_features, 2, shared=True)
library.one_by_one(iac_from_features_backward)  # each entry has its own gradient of the weights
