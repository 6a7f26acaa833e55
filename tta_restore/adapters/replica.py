"""A private copy of a module's structure, on the module's own weights, in which weights can be exchanged."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore.models.restorer import outputs
from tta_restore.models.restorer.preserve import preserve_state, put_back

__all__ = ["InPlace", "Replica", "behaves_alike"]

_PLAIN = (bool, int, float, str, bytes, type(None))


class InPlace:
    """The module itself, whose weights are exchanged for the time of one pass and put back after it.

    For modules that cannot be copied: compiled ones, and those whose hooks refer to the module from outside. While a
    pass runs, other threads that call the module would get the exchanged weights.
    """

    private = False

    def __init__(self, module: Any, root: Any) -> None:
        self.module, self.root = module, root
        self.places = _places(root, {}) if isinstance(root, nn.Module) else {}

    @contextlib.contextmanager
    def holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Put ``tensors`` in place of the weights of the same names for the time of the block."""
        held = [(part, leaf, part._parameters[leaf]) for name in tensors for part, leaf in self.places.get(name, ())]
        try:
            _put(self.places, tensors)
            yield
        finally:
            for part, leaf, parameter in held:
                part._parameters[leaf] = parameter
            _refresh({part for part, _, _ in held})


class Replica:
    """A copy of a module's objects that shares the memory of its weights.

    The copied parameters require no gradient, its buffers are copies of those of the module at the start of a session,
    and what a forward pass sets or writes stays in the replica. The module itself is never run or changed.

    Raises:
        Exception: whatever copying the module raises.
    """

    private = True

    def __init__(self, root: nn.Module) -> None:
        self.original = root
        memo: dict[int, Any] = {}
        for part in root.modules():
            for parameter in part._parameters.values():
                if parameter is not None and id(parameter) not in memo:
                    data = parameter.clone() if parameter.is_inference() else parameter.detach()
                    memo[id(parameter)] = nn.Parameter(data, requires_grad=False)
            for table in (part._buffers, part.__dict__):
                for value in table.values():
                    if isinstance(value, Tensor) and id(value) not in memo:
                        memo[id(value)] = value.clone() if value.is_inference() else value.detach()
        self.module: nn.Module = copy.deepcopy(root, memo)
        self.root = self.module
        self.parts = list(zip(root.modules(), self.module.modules(), strict=True))
        self.places = _places(root, {id(part): twin for part, twin in self.parts})
        self.signature = signature(root)
        self._own = [(twin, dict(twin.__dict__), dict(twin._parameters)) for _, twin in self.parts]
        self._parameters = {name: _at(self.places[name][0]) for name in self.places}

    @contextlib.contextmanager
    def holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Put ``tensors`` in place of the weights of the same names for the time of the block."""
        try:
            _put(self.places, tensors)
            yield
        finally:
            _put(self.places, {name: self._parameters[name] for name in tensors if name in self._parameters})

    def start(self, buffers: dict[int, Tensor], *, training: bool) -> None:
        """Begin a session; ``buffers`` holds copies of the original's by their id, for all replicas of a session."""
        if any(twin.training != training for _, twin in self.parts):
            self.module.train(training)
        for part, twin in self.parts:
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    if id(buffer) not in buffers:
                        buffers[id(buffer)] = buffer.clone()
                    twin._buffers[name] = buffers[id(buffer)]

    def end(self) -> None:
        """Undo whatever the passes of a session left in the replica's objects."""
        for twin, attributes, parameters in self._own:
            mode = twin.training
            put_back(twin.__dict__, attributes)
            put_back(twin._parameters, parameters)
            twin.training = mode
            for name, buffer in twin._buffers.items():
                if buffer is not None:
                    twin._buffers[name] = buffer.detach()[:0] if buffer.ndim else buffer


def signature(root: nn.Module) -> list[Any]:
    """Return what tells whether a module has been changed since: its parts, weights, hooks and attributes."""
    found: list[Any] = []
    for part in root.modules():
        found.append(id(part))
        for key, value in part.__dict__.items():
            if key == "training":
                continue
            if key == "_parameters":
                found += [(k, None if p is None else (id(p), p.data_ptr(), p.dtype)) for k, p in value.items()]
            elif key == "_buffers":
                found += list(value)
            elif isinstance(value, dict):
                found.append((key, [(k, _mark(v)) for k, v in value.items()]))
            elif isinstance(value, (list, tuple, set)):
                found.append((key, [_mark(v) for v in value]))
            else:
                found.append((key, _mark(value)))
    return found


def behaves_alike(
    module: nn.Module, replica: Replica, frames: list[Tensor], run: Any, *, training: bool
) -> bool | None:
    """Return whether a replica gives what the module gives, with nothing left of either in the other.

    None if the module itself raises on these frames.

    ``run(call, frame)`` is a pass. Two different frames are tried in turn: a hook that refers to the module from
    outside its objects would hand the replica what it saw in the module. A module that differs from itself says
    nothing.
    """
    devices = sorted({p.device.index or 0 for p in module.parameters() if p.device.type == "cuda"})

    def seeded(call: Any, frame: Tensor) -> Any:
        torch.manual_seed(0)
        return run(call, frame)

    with torch.random.fork_rng(devices):
        with preserve_state(module, training=training), torch.no_grad():
            try:
                expected = [seeded(module, frame) for frame in frames]
                again = seeded(module, frames[0])
            except Exception:  # whatever a third-party module raises for a size it cannot take
                return None
        with torch.no_grad():
            try:
                replica.start({}, training=training)
                found = [seeded(replica.module, frame) for frame in reversed(frames)][::-1]
            except Exception:  # whatever a third-party module raises when something is missing in it
                return False
            finally:
                replica.end()
    if not _near(expected[0], again):
        return True
    return all(_near(a, b) for a, b in zip(expected, found, strict=True))


def _near(a: Any, b: Any) -> bool:
    first, second = dict(outputs.leaves(a)), dict(outputs.leaves(b))
    return first.keys() == second.keys() and all(
        first[key].shape == second[key].shape
        and torch.allclose(first[key], second[key], rtol=1e-4, atol=1e-5, equal_nan=True)
        for key in first
    )


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
            part._parameters[leaf] = tensor
            if isinstance(part, nn.RNNBase):
                recurrent.add(part)
    _refresh(recurrent)


def _refresh(parts: set[nn.Module]) -> None:
    for part in parts:
        if isinstance(part, nn.RNNBase):  # keeps a second list of its weights
            part._flat_weights = [getattr(part, name, None) for name in part._flat_weights_names]
