"""Record and restore the attributes of modules: containers, objects, tensors and arrays besides the weights."""

from __future__ import annotations

import copy
import functools
import logging
import weakref
import zlib
from collections import deque
from collections.abc import Container, Iterable, Iterator
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Contents", "fingerprint", "held"]

_TABLES = frozenset(vars(nn.Module())) | {"forward"}  # weights, buffers, parts, hooks and modes
_PLAIN = frozenset([bool, int, float, complex, str, bytes, type(None)])
_CLOSED = (
    type, ModuleType, FunctionType, BuiltinFunctionType, Tensor, np.ndarray, torch.Generator, Enum, logging.Logger,
    logging.Handler,
)  # fmt: skip
_PROXIES = frozenset(weakref.ProxyTypes)
_CONTAINERS = (list, dict, set, deque)
_LARGE = 10_000  # entries from which on a container is taken for data


class Contents:
    """The contents of modules as they are now; :meth:`restore` puts all of it back.

    That is entries of containers, attributes of objects, values of tensors and arrays, states of random generators, in
    attributes at any depth. Functions and what they refer to, objects that cannot be copied, and parameters are left
    alone.

    Args:
        modules: all modules of a tree; their own tables of attributes are not part of it.
        exact: compare the values of tensors, which also finds what was written without raising a version.
        foreign: ids of what belongs to others, and is left alone.
    """

    def __init__(self, modules: Iterable[nn.Module], *, exact: bool, foreign: Container[int] = ()) -> None:
        parts = list(modules)
        self._exact = exact
        self._containers: list[tuple[Any, Any]] = []
        self._slots = [(part, _slots(part)) for part in parts if _slot_names(type(part))]
        self._tensors: list[tuple[Tensor, int, Tensor]] = []
        self._arrays: list[tuple[np.ndarray, np.ndarray]] = []
        self._generators: list[tuple[torch.Generator, Tensor]] = []
        for value, first in held(parts):
            if not first or type(value) in _PLAIN or id(value) in foreign:
                continue
            if isinstance(value, Tensor):
                if not isinstance(value, nn.Parameter) and not value.is_inference() and not value.requires_grad:
                    self._tensors.append((value, value._version, value.clone()))
            elif isinstance(value, np.ndarray):
                self._arrays.append((value, value.copy()))
            elif isinstance(value, torch.Generator):
                self._generators.append((value, value.get_state()))
            elif isinstance(value, _CONTAINERS):
                self._containers.append((value, copy.copy(value)))
            elif _is_open(value):
                if isinstance(getattr(value, "__dict__", None), dict):
                    self._containers.append((value.__dict__, dict(value.__dict__)))
                self._slots.append((value, _slots(value)))

    def restore(self) -> None:
        """Put everything back that has changed since."""
        for container, content in self._containers:
            if not _same_entries(container, content):
                _refill(container, content)
        for owner, values in self._slots:
            for name, value in values.items():
                if getattr(owner, name, _missing) is value:
                    continue
                if value is _missing:
                    object.__delattr__(owner, name)
                else:
                    object.__setattr__(owner, name, value)
        for tensor, version, values in self._tensors:
            if tensor._version != version or (self._exact and not torch.equal(tensor, values)):
                with torch.no_grad():
                    tensor.copy_(values)
        for array, values in self._arrays:
            if not np.array_equal(array, values):
                array[...] = values
        for generator, state in self._generators:
            generator.set_state(state)


def held(modules: Iterable[nn.Module]) -> Iterator[tuple[Any, bool]]:
    """Yield all that modules hold in attributes, at any depth, and whether it is met for the first time.

    The modules themselves, their tables and functions are not entered.
    """
    parts = list(modules)
    seen = {id(part) for part in parts}
    for part in parts:
        own = [value for name, value in list(part.__dict__.items()) if name not in _TABLES]
        waiting = [*reversed(own), *_slots(part).values()]
        while waiting:
            value = waiting.pop()
            if type(value) in _PLAIN:
                yield value, True
                continue
            first = id(value) not in seen
            yield value, first
            if first:
                seen.add(id(value))
                waiting.extend(reversed(_children(value)))


def fingerprint(root: nn.Module) -> list[Any]:
    """Return what tells whether a module has been changed since: its parts, weights, hooks and contents."""
    parts = list(root.modules())
    found: list[Any] = []
    for part in parts:
        found.append(id(part))
        for name, table in list(part.__dict__.items()):  # another thread may call the module meanwhile
            if name == "_parameters":
                found += [(k, None if p is None else (id(p), p.data_ptr(), p.dtype)) for k, p in table.items()]
            elif name == "_buffers":
                found += list(table)
            elif name not in _TABLES:
                found.append(name)
            elif isinstance(table, dict):
                found.append((name, [(key, id(value)) for key, value in list(table.items())]))
            elif name == "forward":
                found.append(id(table))
    found += [_mark(value) for value, _ in held(parts)]
    return found


_missing = object()


def _mark(value: Any) -> Any:
    if type(value) in _PLAIN:
        return value if value == value else "not a number"
    if isinstance(value, Tensor):
        return id(value), None if value.is_inference() else value._version
    if isinstance(value, np.ndarray):
        return id(value), zlib.crc32(value.tobytes())
    if isinstance(value, torch.Generator):
        return id(value)
    return id(value), len(value) if isinstance(value, _CONTAINERS) else 0


def _children(value: Any) -> list[Any]:
    """Return what a container, an object, a partial or a bound method holds."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()] if len(value) < _LARGE else []
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return list(value) if len(value) < _LARGE else []
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__self__]
    if not _is_open(value):
        return []
    attributes = getattr(value, "__dict__", None)
    named = [*attributes.keys(), *attributes.values()] if isinstance(attributes, dict) else []
    return [*named, *(entry for entry in _slots(value).values() if entry is not _missing)]


def _is_open(value: Any, depth: int = 3) -> bool:
    """Return whether a value is an object whose attributes are data, not a live resource such as a pool of threads."""
    if type(value) in _PROXIES or isinstance(value, _CLOSED):
        return False
    attributes = getattr(value, "__dict__", None)
    if not isinstance(attributes, dict):
        return bool(_slot_names(type(value)))
    return all(_is_copyable(entry, depth) for entry in list(attributes.values()))


def _is_copyable(value: Any, depth: int) -> bool:
    if type(value) in _PLAIN or type(value) in _PROXIES or isinstance(value, (*_CLOSED, *_CONTAINERS, nn.Module)):
        return True
    if hasattr(value, "__dict__"):
        return depth == 0 or _is_open(value, depth - 1)
    try:
        copy.copy(value)
    except Exception:  # whatever a lock, a file or a generator raises
        return False
    return True


@functools.cache
def _slot_names(kind: type) -> tuple[str, ...]:
    """Return the slots of Python classes; those of nn.Module and of builtin types are none."""
    names: list[str] = []
    for base in kind.__mro__:
        if base.__module__ == "builtins":
            continue
        own = vars(base).get("__slots__", ())
        names += [own] if isinstance(own, str) else list(own)
    return tuple(name for name in names if not name.startswith("__"))


def _slots(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name, _missing) for name in _slot_names(type(value))}


def _refill(container: Any, content: Any) -> None:
    """Give a container its entries back; dicts and lists are never empty in between, as other threads may read them."""
    if isinstance(container, list):
        container[:] = content
        return
    if isinstance(container, dict):
        for key in [key for key in container if key not in content]:
            del container[key]
        container.update(content)
        if list(container) == list(content):
            return
    container.clear()
    container.extend(content) if isinstance(container, deque) else container.update(content)


def _same_entries(container: Any, content: Any) -> bool:
    if len(container) != len(content):
        return False
    if isinstance(container, dict):
        return all(a is b for a, b in zip(container, content, strict=True)) and all(
            a is b for a, b in zip(container.values(), content.values(), strict=True)
        )
    if isinstance(container, set):
        return container == content
    return all(a is b for a, b in zip(container, content, strict=True))
