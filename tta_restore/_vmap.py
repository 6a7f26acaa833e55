"""How registered ops are vmapped: the new axis joins the batch axis, and the op runs once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _library


def fold_into_batch(op: Any, tensors: int) -> None:
    """Register the rule for an op whose first ``tensors`` arguments have a batch axis in front (or are None).

    Results that were not asked for, tensors of one axis, are passed on as they are.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        size = info.batch_size

        def folded(value: Tensor | None, dim: int | None) -> Tensor | None:
            if value is None:
                return None
            stacked = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
            return stacked.flatten(0, 1)

        def unfolded(result: Tensor) -> tuple[Tensor, int | None]:
            return (result.unflatten(0, (size, -1)), 0) if result.ndim > 1 else (result, None)

        batched = [folded(value, dim) for value, dim in zip(args[:tensors], in_dims[:tensors], strict=True)]
        results = op(*batched, *args[tensors:])
        if isinstance(results, Tensor):
            return unfolded(results)
        return tuple(zip(*map(unfolded, results), strict=True))

    torch.library.register_vmap(op, rule, lib=_library.LIBRARY)
