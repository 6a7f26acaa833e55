"""Run a third-party module and leave it exactly as it was: attributes, containers, tensors, buffers, modes."""

from __future__ import annotations

import copy
import functools
import logging
import weakref
import zlib
from collections import deque
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ["Contents", "Values", "fingerprint", "held", "preserve_state", "put_back", "set_mode"]

_TABLES = frozenset(vars(nn.Module())) | {"forward"}  # weights, buffers, parts, hooks and modes
_PLAIN = frozenset([bool, int, float, complex, str, bytes, type(None)])
_CLOSED = (
    type, ModuleType, FunctionType, BuiltinFunctionType, Tensor, np.ndarray, torch.Generator, Enum, logging.Logger,
    logging.Handler,
)  # fmt: skip
_PROXIES = frozenset(weakref.ProxyTypes)
_CONTAINERS = (list, dict, set, deque)
_LARGE = 10_000  # entries from which on a container is taken for data


@contextmanager
def preserve_state(module: nn.Module, *, training: bool | None = None) -> Iterator[None]:
    """Run a block with ``module`` in eval (or train) mode, and undo whatever the block does to it.

    Undone are: the mode of every submodule, attributes that a forward sets (caches, the weight of an old-style
    weight_norm), what it puts into containers, objects and tensors there (:class:`Contents`), parts that it adds or
    replaces, buffers and parameters it replaces or writes into, gradients, parameters it points elsewhere through
    ``.data``. Tensors that an earlier ``inference_mode`` call left behind are replaced by plain ones for the block,
    because autograd refuses them.
    """
    parts = list(module.modules())
    # TorchScript has no attributes to change from Python: its mode and its buffers are all there is
    modules = [m for m in parts if not isinstance(m, torch.jit.ScriptModule)]
    modes = [(m, m.training) for m in parts]
    attributes = [dict(m.__dict__) for m in modules]
    tables = [(dict(m._parameters), dict(m._buffers), dict(m._modules)) for m in modules]
    weights = [parameter for m in modules for parameter in m.parameters(recurse=False)]
    data = [(parameter, parameter.detach()) for parameter in weights if parameter.layout == torch.strided]
    gradients = [(parameter, parameter.grad) for parameter, _ in data if parameter.is_leaf]
    contents = Contents(modules, exact=True)
    values = Values((*module.parameters(), *module.buffers()))
    sharded: list[Any] = [m for m in modules if any(hasattr(p, "full_tensor") for p in _gathered_by(m))]
    mode = module.training
    try:
        for parameter, gradient in gradients:
            if gradient is not None:
                parameter.grad = None  # a pass may add to it
        if training is not None and any(m.training != training for m in parts):
            set_mode(module, training)
        for m in modules:
            _replace_inference_tensors(m)
        yield
    finally:
        for m in sharded:
            m.reshard()  # FSDP2 keeps the whole weights of a root after a pass, and would count on them
        if module.training != mode:
            set_mode(module, mode)  # a module may do more than set flags here; the flags themselves follow below
        for m, old, own in zip(modules, attributes, tables, strict=True):
            put_back([(m.__dict__, old), *zip((m._parameters, m._buffers, m._modules), own, strict=True)])
        contents.restore()
        for m, old_mode in modes:
            if m.training != old_mode:
                m.training = old_mode
        for parameter, old in data:
            if parameter.data_ptr() != old.data_ptr():
                parameter.data = old
        for parameter, gradient in gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient
        values.restore()


def _gathered_by(module: nn.Module) -> Iterator[Tensor | None]:
    """Yield the weights that FSDP2 gathers as one, when it was applied to this module."""
    if _is_fsdp(module):
        waiting = [module]
        while waiting:
            part = waiting.pop()
            yield from part._parameters.values()
            waiting += [child for child in part.children() if not _is_fsdp(child)]


def _is_fsdp(module: nn.Module) -> bool:
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)


class Values:
    """Copies of tensors; :meth:`restore` puts them back where they were written into.

    Tensors without values, sparse ones and those that hold others are left out.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._kept = [(tensor, tensor.detach().clone()) for tensor in tensors if _has_values(tensor)]

    def restore(self) -> bool:
        """Write the old values into tensors that have others now; return whether there was one."""
        changed = False
        for tensor, old in self._kept:
            # batch_norm writes without raising the version counter
            if _has_values(tensor) and not _same_values(tensor, old):
                changed = True
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    tensor.copy_(old)
        return changed


def set_mode(module: nn.Module, training: bool) -> None:
    """Switch a module to train or eval mode; an exported program keeps the mode that it was exported in."""
    try:
        module.train(training)
    except NotImplementedError:
        if not isinstance(module, GraphModule):
            raise


def put_back(tables: Iterable[tuple[dict, dict]]) -> None:
    """Give each table the entries of its old copy, in place."""
    for table, old in tables:
        for key in [key for key in table if key not in old]:
            del table[key]
        for key, value in old.items():
            if key not in table or table[key] is not value:
                table[key] = value


def _replace_inference_tensors(module: nn.Module) -> None:
    for table in (module.__dict__, module._buffers):
        for name, value in table.items():
            if isinstance(value, Tensor) and value.is_inference():
                with torch.inference_mode(False):
                    table[name] = value.clone()


def _has_values(tensor: Tensor) -> bool:
    if tensor.is_meta or nn.parameter.is_lazy(tensor) or is_traceable_wrapper_subclass(tensor):
        return False
    if tensor.layout != torch.strided:
        return False
    return not tensor.numel() or tensor.untyped_storage().size() > 0  # FSDP2 lets go of the memory of whole weights


def _same_values(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal, NaN with NaN."""
    if torch.equal(a, b) or not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    a, b = (x if x.is_complex() else x.double() for x in (a, b))
    return torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)


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
    """Return a fingerprint that changes with the module: its parts, weights, hooks and contents."""
    parts = list(root.modules())
    found: list[Any] = []
    for part in parts:
        found.append(id(part))
        for name, table in list(part.__dict__.items()):  # another thread may call the module meanwhile
            if name == "_parameters":
                found += [(k, None if p is None else (id(p), _place(p), p.dtype)) for k, p in table.items()]
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


def _place(tensor: Tensor) -> int | None:
    return tensor.data_ptr() if tensor.layout == torch.strided else None


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
