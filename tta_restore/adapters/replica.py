"""A private copy of a module's structure, on the module's own weights, in which weights can be exchanged."""

from __future__ import annotations

import contextlib
import copy
import functools
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tta_restore.models.restorer import outputs
from tta_restore.models.restorer.preserve import Contents, fingerprint, held, put_back, set_mode

__all__ = ["Outside", "Replica", "Watch", "copy_module", "memory_of", "outputs_agree", "outside_functions"]

_PLAIN = (bool, int, float, str, bytes, type(None))
_TRIALS = 4  # passes after which the values of buffers are compared, and not only their versions
_Cached = type(functools.lru_cache(int))


class Outside:
    """The module itself, for passes that exchange no weights: functions, TorchScript, modules that cannot be copied."""

    def __init__(self, module: Any, root: Any) -> None:
        self.module, self.root = module, root

    @contextlib.contextmanager
    def holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Run the block; there are no tensors to exchange."""
        yield

    def reset(self) -> None:
        """Leave the module as it is."""


class Replica:
    """A copy of a module's objects that shares the memory of its weights.

    The copied parameters require no gradient, its buffers are copies of those of the module at the start of a session,
    and what a forward pass sets or writes stays in the replica, until the next pass starts from the same state again.
    The module itself is never run or changed. Around a module that was compiled, the copy is compiled in the same way.

    Raises:
        Exception: whatever copying the module raises.
    """

    def __init__(self, root: nn.Module, compiled: Any = None) -> None:
        self.original = root
        memo: dict[int, Any] = {}
        parts = list(root.modules())
        weights = {id(p): p for part in parts for p in part._parameters.values() if p is not None}
        for number, parameter in weights.items():
            data = parameter.clone() if parameter.is_inference() else parameter.detach()
            memo[number] = nn.Parameter(data, requires_grad=False)
        memory = {memory_of(parameter) for parameter in weights.values()} - {None}
        self._aliases: list[Tensor] = []
        for value, first in held(parts):
            if first and isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                memo[id(value)] = value.clone() if value.is_inference() else value.detach().clone()
                if memory_of(value) in memory:
                    self._aliases.append(memo[id(value)])
        for value in _tensors([part._buffers for part in parts]):
            if id(value) not in memo:
                memo[id(value)] = value.clone() if value.is_inference() else value.detach()
        self.root: nn.Module = copy_module(root, memo)
        self.module: Any = self.root if compiled is None else type(compiled)(self.root, compiled.dynamo_ctx)
        self.parts = list(zip(parts, self.root.modules(), strict=True))
        self.places = _places(root, {id(part): twin for part, twin in self.parts})
        self.fingerprint = fingerprint(root)
        self._own = [
            (twin, dict(twin.__dict__), (dict(twin._parameters), dict(twin._modules))) for _, twin in self.parts
        ]
        self.weights = {name: _at(self.places[name][0]) for name in self.places}
        self._shared_buffers = [
            (twin._buffers, name)
            for part, twin in self.parts
            for name, buffer in part._buffers.items()
            if buffer is not None and memory_of(buffer) in memory
        ]
        self._buffers: list[tuple[dict[str, Tensor | None], dict[str, Tensor | None]]] = []
        self._used: dict[int, tuple[Tensor, int]] = {}
        self._trials = _TRIALS
        self._writes_unseen = False  # batch_norm and fused observers do not raise a buffer's version
        shared = {id(value) for value, _ in held(parts)}  # what could not be copied is the module's own
        self._contents = Contents(self.root.modules(), exact=False, foreign=shared)
        self._caches = [*_leaves([vars(twin) for _, twin in self.parts], _Cached), *_class_caches(self.root)]

    @property
    def aliases(self) -> list[Tensor]:
        """Buffers and tensors in attributes that share the memory of a weight, which an exchange does not reach."""
        buffers = (table.get(name) for table, name in self._shared_buffers)
        return [*self._aliases, *(buffer for buffer in buffers if buffer is not None)]

    @contextlib.contextmanager
    def holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Put ``tensors`` in place of the weights of the same names for the time of the block."""
        try:
            _put(self.places, tensors)
            yield
        finally:
            _put(self.places, {name: self.weights[name] for name in tensors if name in self.weights})

    def start(self, *, training: bool) -> None:
        """Begin a session, with copies of the module's buffers."""
        if any(twin.training != training for _, twin in self.parts):
            set_mode(self.root, training)
        copies: dict[int, Tensor] = {}
        self._buffers = [
            (twin._buffers, {
                name: None if buffer is None else copies.setdefault(id(buffer), buffer.clone())
                for name, buffer in part._buffers.items()
            })
            for part, twin in self.parts
            if part._buffers or twin._buffers
        ]  # fmt: skip
        self._used = {}
        self._reset_buffers()

    def reset(self) -> None:
        """Undo what a pass left behind: what it computed from some weights must not serve a pass with others."""
        tables: list[tuple[dict, dict]] = []
        for twin, attributes, own in self._own:
            kept = {key: twin.__dict__[key] for key in ("training", "forward") if key in twin.__dict__}
            tables += [(twin.__dict__, attributes | kept), *zip((twin._parameters, twin._modules), own, strict=True)]
        put_back(tables)
        self._contents.restore()
        self._reset_buffers()
        for cache in self._caches:
            cache.cache_clear()

    def _reset_buffers(self) -> None:
        """Give the next pass buffers of the values at the start, new ones where a pass wrote into them."""
        used: dict[int, tuple[Tensor, int]] = {}
        for table, start in self._buffers:
            for number, values in ((id(values), values) for values in start.values() if values is not None):
                if number not in used:
                    buffer, version = self._used.get(number, (values, -1))
                    if buffer._version == version and self._trials and buffer.layout == torch.strided:
                        self._writes_unseen |= not torch.equal(buffer, values)
                    if buffer._version != version or self._writes_unseen or self.root.training:
                        buffer = values.clone()
                    used[number] = buffer, buffer._version
            fresh = {name: None if values is None else used[id(values)][0] for name, values in start.items()}
            put_back([(table, fresh)])
        self._trials -= bool(self._used) and self._trials > 0
        self._used = used

    def end(self) -> None:
        """Undo whatever the passes of a session left in the replica's objects."""
        self.reset()
        self._buffers, self._used = [], {}
        for twin, attributes, _ in self._own:
            if "forward" not in attributes:
                twin.__dict__.pop("forward", None)
            for name, buffer in twin._buffers.items():
                if buffer is not None and buffer.ndim and buffer.layout == torch.strided:
                    twin._buffers[name] = buffer.detach()[:0]


def copy_module(root: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of a module in which functions refer to the copy.

    ``copy.deepcopy`` takes functions as they are: a hook, or a ``forward`` set from outside, that holds the module in
    its closure or its defaults would run or change the original. Objects that cannot be copied, such as locks, are
    shared.

    Args:
        root: module.
        memo: what to put in place of objects, by their id.

    Raises:
        Exception: whatever copying a module raises.
    """
    memo = {} if memo is None else memo
    for value in _tensors([part.__dict__ for part in root.modules()]):
        if not value.is_leaf:  # what a forward pass computed, such as the weight of an old weight_norm
            memo.setdefault(id(value), value.detach().clone())
    parts = {id(part) for part in root.modules()}
    functions: dict[int, tuple[Any, Any]] = {}
    for part in root.modules():
        for function in _functions(part.__dict__):
            _rebind(function, parts, functions, memo)
        for cached in _leaves(part.__dict__, _Cached):
            if id(cached.__wrapped__) in functions:
                twin = functions[id(cached.__wrapped__)][1]
                memo[id(cached)] = functools.lru_cache(**cached.cache_parameters())(twin)
    given = dict(memo)
    try:
        copied = copy.deepcopy(root, memo)
    except Exception:  # part of it cannot be copied
        memo.clear()
        memo.update(given)
        for part in root.modules():
            for value in _leaves(part.__dict__):
                _share_if_fixed(value, memo)
        copied = copy.deepcopy(root, memo)
    for function, twin in functions.values():
        for cell, mine in zip(function.__closure__ or (), twin.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # a cell that nothing was put into
                mine.cell_contents = _with_twins(cell.cell_contents, parts, functions, memo)
        twin.__defaults__ = _with_twins(function.__defaults__, parts, functions, memo)
        twin.__kwdefaults__ = _with_twins(function.__kwdefaults__, parts, functions, memo)
    for part in copied.modules():
        for name, value in part.__dict__.items():
            if isinstance(value, weakref.ref) and id(value()) in parts:
                part.__dict__[name] = weakref.ref(memo[id(value())])
    return copied


class Watch(TorchFunctionMode):
    """Records whether any operation of a block takes one of the given tensors itself."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.watched = {id(tensor) for tensor in tensors}
        self.touched = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.touched |= any(id(value) in self.watched for value in _tensors((args, kwargs or {})))
        return function(*args, **(kwargs or {}))


def outside_functions(root: nn.Module) -> bool:
    """Return whether a module calls functions of its user: hooks, attributes, or its own way of being copied."""
    copying = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
    for part in root.modules():
        if next(_functions(part.__dict__), None) is not None:
            return True
        kind = type(part)
        if kind.__module__.startswith("torch.nn."):
            continue
        if any(getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in copying):
            return True
    return False


def outputs_agree(a: Any, b: Any) -> bool:
    """Return whether two outputs of a module have equal leaves, but for rounding."""
    first, second = ({key: _comparable(leaf) for key, leaf in outputs.leaves(value)} for value in (a, b))
    return first.keys() == second.keys() and all(
        (first[key].shape, first[key].dtype) == (second[key].shape, second[key].dtype)
        and torch.allclose(first[key], second[key], rtol=1e-4, atol=1e-5, equal_nan=True)
        for key in first
    )


def _comparable(leaf: Tensor) -> Tensor:
    return leaf.float() if leaf.dtype == torch.bool else leaf  # masks cannot be subtracted


def _children(value: Any) -> Iterable[Any]:
    """Return what a plain container holds, and what a partial or a bound method calls."""
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return value
    if isinstance(value, functools.partial):
        return (value.func, *value.args, *value.keywords.values())
    return ()


def _leaves(value: Any, kind: type = object, depth: int = 6) -> Iterator[Any]:
    """Yield what containers hold in the end, of one kind."""
    children = _children(value)
    if not children:
        if isinstance(value, kind):
            yield value
    elif depth:
        for child in list(children):
            yield from _leaves(child, kind, depth - 1)


def _tensors(value: Any) -> Iterator[Tensor]:
    return _leaves(value, Tensor)


def memory_of(tensor: Tensor) -> int | None:
    """Return where the values of a tensor are; None without any."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):  # a sparse tensor, or one that holds others
        return None


def _functions(value: Any) -> Iterator[FunctionType]:
    """Yield the functions within a value, those of caches included."""
    yield from _leaves(value, FunctionType)
    for cached in _leaves(value, _Cached):
        if isinstance(cached.__wrapped__, FunctionType):
            yield cached.__wrapped__


def _class_caches(root: nn.Module) -> list[Any]:
    """Return the caches that the classes of a module hold for all their instances, by ``functools.lru_cache``."""
    kinds = {kind for part in root.modules() for kind in type(part).__mro__ if not kind.__module__.startswith("torch.")}
    return [value for kind in kinds for value in vars(kind).values() if isinstance(value, _Cached)]


def _inside(function: FunctionType) -> list[Any]:
    """Return what a function refers to: its closure and its defaults."""
    found: list[Any] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):
            found.append(cell.cell_contents)
    return found


def _rebind(
    function: FunctionType, parts: set[int], functions: dict[int, tuple[Any, Any]], memo: dict[int, Any]
) -> bool:
    """Prepare a twin of a function that refers to a module of the tree; return whether it does."""
    if id(function) in functions:
        return True
    seen: set[int] = set()

    def reaches(value: Any) -> bool:
        if id(value) in parts:
            return True
        if id(value) in seen:
            return False
        seen.add(id(value))
        if isinstance(value, MethodType):
            return reaches(value.__self__)
        if isinstance(value, FunctionType):
            return any(map(reaches, _inside(value)))
        if isinstance(value, _Cached):
            return reaches(value.__wrapped__)
        return any(map(reaches, _children(value)))

    if not reaches(function):
        return False
    cells = tuple(CellType() for _ in function.__closure__ or ())
    twin = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
    functools.update_wrapper(twin, function, updated=("__dict__",))
    vars(twin).pop("__wrapped__", None)
    vars(twin).update(vars(function))
    functions[id(function)] = (function, twin)
    memo[id(function)] = twin
    for value in _inside(function):
        for inner in _functions(value):
            _rebind(inner, parts, functions, memo)
    return True


def _with_twins(value: Any, parts: set[int], functions: dict[int, tuple[Any, Any]], memo: dict[int, Any]) -> Any:
    """Return what a twin of a function refers to: copies of what leads to the module, all else as it is."""
    reached = [leaf.__self__ if isinstance(leaf, MethodType) else leaf for leaf in _leaves(value)]
    if any(id(leaf) in parts or id(leaf) in functions for leaf in reached):
        return copy.deepcopy(value, memo)
    return value


def _share_if_fixed(value: Any, memo: dict[int, Any]) -> None:
    """Enter an object that cannot be copied as its own copy."""
    if id(value) in memo or isinstance(value, (nn.Module, *_PLAIN)):
        return
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:  # whatever copying a third-party object raises
        memo[id(value)] = value


def _mark(value: Any) -> Any:
    return value if isinstance(value, _PLAIN) else id(value)


def _places(root: nn.Module, twins: Mapping[int, nn.Module]) -> dict[str, list[tuple[nn.Module, str]]]:
    """Return the places of each weight by its first name: shared weights have several places."""
    names: dict[int, str] = {}
    places: dict[str, list[tuple[nn.Module, str]]] = {}
    for path, part in root.named_modules():
        for leaf, parameter in part._parameters.items():
            if parameter is not None:
                name = names.setdefault(id(parameter), f"{path}.{leaf}" if path else leaf)
                places.setdefault(name, []).append((twins.get(id(part), part), leaf))
    return places


def _at(place: tuple[nn.Module, str]) -> Any:
    return place[0]._parameters[place[1]]


def _put(places: Mapping[str, list[tuple[nn.Module, str]]], tensors: Mapping[str, Any]) -> None:
    recurrent: set[nn.Module] = set()
    for name, tensor in tensors.items():
        for part, leaf in places.get(name, ()):
            tensor._is_param = True  # isinstance(weight, nn.Parameter) holds, as in the module
            part._parameters[leaf] = tensor
            if isinstance(part, nn.RNNBase):
                recurrent.add(part)
    _refresh(recurrent)


def _refresh(parts: set[nn.Module]) -> None:
    for part in parts:
        if isinstance(part, nn.RNNBase):  # keeps a second list of its weights
            part._flat_weights = [getattr(part, name, None) for name in part._flat_weights_names]
