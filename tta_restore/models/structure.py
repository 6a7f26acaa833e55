"""Walk and rebuild what models return: tensors in lists, tuples, mappings and dataclasses, nested as they like."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Path = tuple[int | str, ...]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Paths and tensors in ``value``, in its own order."""
    if isinstance(value, Tensor):
        yield path, value
    for key, child in _children(value):
        yield from leaves(child, (*path, key))


def at(value: Any, path: Path) -> Any:
    """What ``value`` holds at ``path``; LookupError where there is nothing."""
    for key in path:
        value = dict(_children(value))[_normal(value, key)]
    return value


def transform(value: Any, change: Callable[[Path, Tensor], Tensor], path: Path = ()) -> Any:
    """Copy of ``value`` with ``change(path, tensor)`` in place of each tensor; everything else passes through."""
    if isinstance(value, Tensor):
        return change(path, value)
    changed = {key: transform(child, change, (*path, key)) for key, child in _children(value)}
    return _rebuild(value, changed) if changed else value


def concatenate(values: Sequence[Any]) -> Any:
    """One structure from those of single images: tensors with a batch axis of one are joined, the rest is the first."""
    if len(values) == 1:
        return values[0]

    def join(path: Path, first: Tensor) -> Tensor:
        if first.ndim == 0 or first.shape[0] != 1:
            return first
        return torch.cat([at(value, path) for value in values])

    return transform(values[0], join)


def _children(value: Any) -> list[tuple[int | str, Any]]:
    if isinstance(value, Mapping):  # before dataclasses: a transformers ModelOutput is both
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(entry.name, getattr(value, entry.name)) for entry in dataclasses.fields(value)]
    return []


def _normal(value: Any, key: int | str) -> int | str:
    return key + len(value) if isinstance(value, (list, tuple)) and isinstance(key, int) and key < 0 else key


def _rebuild(value: Any, changed: dict[int | str, Any]) -> Any:
    if isinstance(value, tuple):
        items = list(changed.values())
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    rebuilt = copy.copy(value)
    for key, child in changed.items():
        if isinstance(value, (list, Mapping)):
            rebuilt[key] = child
        else:
            object.__setattr__(rebuilt, str(key), child)  # frozen dataclasses too
    return rebuilt
