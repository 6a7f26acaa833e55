"""Registered ops of the adaptive convolutions: schemas, shapes of results, and what they do under vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import _library
from . import reference

_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
_TRITON = "tta_restore.ops.adaptive_conv.triton"
_OPTIONS = "int num_steps, int kernel_size, float negative_slope, bool activate_last, bool own"


def _dense(like: Tensor, needed: bool = True) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format) if needed else like.new_empty(0)


def _iac_fake(x: Tensor, filters: Tensor, num_steps: int, *options: Any) -> tuple[Tensor, Tensor]:
    steps = num_steps - 1 if options[-1] else 0
    states = x.new_empty(x.shape[0], steps, *x.shape[1:], dtype=_WIDE.get(x.dtype, x.dtype))
    return _dense(x), states


sac = _library.define(
    "sac(Tensor x, Tensor vertical, Tensor horizontal) -> Tensor",
    reference=reference.sac,
    triton=_TRITON,
    fake=lambda x, vertical, horizontal: _dense(x),
)
sac_backward = _library.define(
    "sac_backward(Tensor grad, Tensor x, Tensor vertical, Tensor horizontal, bool need_taps)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference.sac_backward,
    triton=_TRITON,
    fake=lambda grad, x, vertical, horizontal, need: (_dense(x), _dense(vertical, need), _dense(horizontal, need)),
)
iac = _library.define(
    f"iac(Tensor x, Tensor filters, {_OPTIONS}, bool save_states) -> (Tensor, Tensor)",
    reference=reference.iac,
    triton=_TRITON,
    fake=_iac_fake,
)
iac_backward = _library.define(
    f"iac_backward(Tensor grad, Tensor x, Tensor filters, Tensor states, {_OPTIONS}, bool need_filters)"
    " -> (Tensor, Tensor)",
    reference=reference.iac_backward,
    triton=_TRITON,
    fake=lambda grad, x, filters, states, *options: (_dense(x), _dense(filters, options[-1])),
)
iac_double_backward = _library.define(
    f"iac_double_backward(Tensor? dx, Tensor? dfilters, Tensor grad, Tensor x, Tensor filters, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference.iac_double_backward,
    fake=lambda dx, dfilters, grad, x, filters, *options: (_dense(grad), _dense(x), _dense(filters)),
)
iac_from_features = _library.define(
    f"iac_from_features(Tensor x, Tensor features, Tensor weight, Tensor bias, {_OPTIONS}) -> Tensor",
    reference=reference.iac_from_features,
    triton=_TRITON,
    fake=lambda x, *rest: _dense(x),
)
iac_from_features_backward = _library.define(
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


def _at(value: Any, dim: int | None, i: int) -> Any:
    return value if dim is None else value.select(dim, i)


def _loop(op: Callable[..., Any], size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> tuple[Any, Any]:
    rows = [op(*(_at(value, dim, i) for value, dim in zip(args, in_dims, strict=True))) for i in range(size)]
    if isinstance(rows[0], Tensor):
        return torch.stack(rows), 0
    return tuple(map(torch.stack, zip(*rows, strict=True))), (0,) * len(rows[0])


def _fold(
    op: Callable[..., Any], size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...], tensors: int
) -> Any:
    """Call the op once, with the vmapped axis and the batch axis of its first arguments as one batch axis."""

    def folded(value: Tensor | None, dim: int | None) -> Tensor | None:
        if value is None:
            return None
        stacked = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
        return stacked.flatten(0, 1)

    batched = [folded(value, dim) for value, dim in zip(args[:tensors], in_dims, strict=False)]
    results = op(*batched, *args[tensors:])
    count = next(value.shape[0] for value in batched if value is not None) // size

    def unfolded(result: Tensor) -> tuple[Tensor, int | None]:
        return (result.unflatten(0, (size, count)), 0) if result.ndim > 1 else (result, None)  # not asked for: empty

    if isinstance(results, Tensor):
        return unfolded(results)
    return tuple(zip(*map(unfolded, results), strict=True))


def _batches(op: Any, tensors: int, *, shared: bool = False) -> None:
    """Register how ``op`` is vmapped. Its first ``tensors`` arguments have a batch axis; ``shared`` ones follow."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        if shared and any(dim is not None for dim in in_dims[tensors:]):
            return _loop(op, info.batch_size, in_dims, args)
        return _fold(op, info.batch_size, in_dims, args, tensors)

    torch.library.register_vmap(op, rule, lib=_library.LIBRARY)


for _op, _tensors in ((sac, 3), (sac_backward, 4), (iac, 2), (iac_backward, 4), (iac_double_backward, 5)):
    _batches(_op, _tensors)
_batches(iac_from_features, 2, shared=True)


def _each_has_its_own_weight_gradient(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _loop(iac_from_features_backward, info.batch_size, in_dims, args)


torch.library.register_vmap(iac_from_features_backward, _each_has_its_own_weight_gradient, lib=_library.LIBRARY)
