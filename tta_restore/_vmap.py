"""How registered ops are vmapped: the new axis joins the batch axis and the op runs once, or it runs once per entry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _library


def fold_into_batch(op: Any, tensors: int, *, shared: bool = False) -> None:
    """Register the rule for an op whose first ``tensors`` arguments have a batch axis in front (or are None).

    Results that were not asked for, tensors of one axis, are passed on as they are. With ``shared``, tensors without a
    batch axis follow, such as weights; where those are vmapped too, the op runs once per entry.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        size = info.batch_size
        if shared and any(dim is not None for dim in in_dims[tensors:]):
            return _loop(op, size, in_dims, args)

        def folded(value: Tensor | None, dim: int | None) -> Tensor | None:
            if value is None:
                return None
            stacked = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
            return stacked.flatten(0, 1)

        batched = [folded(value, dim) for value, dim in zip(args[:tensors], in_dims[:tensors], strict=True)]
        # the batch may be empty, so that -1 would not do
        count = next(value.shape[0] for value in batched if value is not None) // size

        def unfolded(result: Tensor) -> tuple[Tensor, int | None]:
            return (result.unflatten(0, (size, count)), 0) if result.ndim > 1 else (result, None)

        results = op(*batched, *args[tensors:])
        if isinstance(results, Tensor):
            return unfolded(results)
        return tuple(zip(*map(unfolded, results), strict=True))

    torch.library.register_vmap(op, rule, lib=_library.LIBRARY)


def one_by_one(op: Any) -> None:
    """Register the rule for an op with a result that sums over the batch, which every entry needs for itself."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        return _loop(op, info.batch_size, in_dims, args)

    torch.library.register_vmap(op, rule, lib=_library.LIBRARY)


def _loop(op: Any, size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> tuple[Any, Any]:
    def at(value: Any, dim: int | None, i: int) -> Any:
        return value if dim is None else value.select(dim, i)

    rows = [op(*(at(value, dim, i) for value, dim in zip(args, in_dims, strict=True))) for i in range(size)]
    if isinstance(rows[0], Tensor):
        return torch.stack(rows), 0
    return tuple(map(torch.stack, zip(*rows, strict=True))), (0,) * len(rows[0])
