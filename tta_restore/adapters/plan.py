"""The plan of an adapter: what it adapts, where, and what a frame costs in memory and time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tta_restore.adapters.replica import memory_of

if TYPE_CHECKING:
    from tta_restore.adapters.adapter import Adapter

__all__ = ["Plan", "plan"]

_LINES = 12  # modules that print shows


@dataclass(frozen=True)
class Plan:
    """Adapted tensors of an adapter and their cost; ``print`` it.

    Attributes:
        method: name of the adapter's class.
        tensors: name and shape of each adapted tensor.
        total: scalars in all the model's weights.
        roles: sets of adapted tensors that exist besides the source.
        bytes: memory of those sets and of the optimizers' moments.
        sites: where modules are injected.
        cost: passes through the model for each frame, in words.
        activations: bytes that the graph of one step keeps for its backward pass; None unless measured on a frame.
        seconds: expected wall time per frame; None unless measured.
    """

    method: str
    tensors: dict[str, tuple[int, ...]]
    total: int
    roles: tuple[str, ...]
    bytes: int
    sites: tuple[str, ...]
    cost: str
    activations: int | None = None
    seconds: float | None = None

    @property
    def adapted(self) -> int:
        """Scalars that are adapted."""
        return sum(prod(shape) for shape in self.tensors.values())

    def by_module(self, most: int = _LINES) -> dict[str, tuple[int, int]]:
        """Return the number of tensors and of scalars by module, in at most ``most`` groups of common prefixes."""
        depth = max((name.count(".") for name in self.tensors), default=0)
        groups: dict[str, tuple[int, int]] = {}
        while True:
            groups = {}
            for name, shape in self.tensors.items():
                module = ".".join(name.split(".")[:-1][:depth]) or "(root)"
                tensors, scalars = groups.get(module, (0, 0))
                groups[module] = tensors + 1, scalars + prod(shape)
            if len(groups) <= most or depth <= 1:
                return groups
            depth -= 1

    def __str__(self) -> str:
        groups = self.by_module()
        shown = dict(list(groups.items())[:_LINES])
        rows = [(name, f"{scalars}", f"{tensors} tensors") for name, (tensors, scalars) in shown.items()]
        if len(groups) > len(shown):
            rows.append((f"... {len(groups) - len(shown)} more", "", ""))
        part = f"{100 * self.adapted / self.total:.1f} % of {self.total} weights" if self.total else "no weights"
        rows.append(("adapted", f"{self.adapted}", part))
        rows.append(("memory", _megabytes(self.bytes), ", ".join(self.roles) or "no copies"))
        if self.activations is not None:
            rows.append(("activations", _megabytes(self.activations), "kept for the backward pass of a step"))
        if self.seconds is not None:
            rows.append(("time", f"{self.seconds:.3g} s", "per frame of the size tried"))
        rows.append(("injected at", f"{len(self.sites)}", ", ".join(self.sites) or "nowhere"))
        width = max(len(name) for name, _, _ in rows)
        lines = [f"{name:<{width}}  {value:>12}  {note}".rstrip() for name, value, note in rows]
        return "\n".join([*lines, f"{self.method}: {self.cost}"])


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def plan(adapter: Adapter, x: Tensor | None, arguments: dict[str, Any]) -> Plan:
    """Return the plan of an adapter; with a frame, activations and seconds are measured on it."""
    own = adapter._backbone.parameters()
    roles = adapter.roles if adapter.adapted else ()
    # for a vector and for a matrix, of which some optimizers keep less
    moments = [_moments(adapter, shape) if "student" in roles else 0 for shape in ((2,), (2, 2))]

    def size(tensor: Tensor) -> int:
        return tensor.numel() * max(4, tensor.element_size()) * (len(roles) + moments[tensor.ndim > 1])

    activations, seconds = (None, None) if x is None else _measured(adapter, x, arguments)
    return Plan(
        method=type(adapter).__name__,
        tensors={name: tuple(own[name].shape) for name in adapter.adapted},
        total=sum(parameter.numel() for parameter in own.values()),
        roles=roles,
        bytes=sum(size(own[name]) for name in adapter.adapted),
        sites=() if adapter.injection is None else tuple(site.path for site in adapter.injection.sites),
        cost=adapter.cost(),
        activations=activations,
        seconds=seconds,
    )


def _measured(adapter: Adapter, x: Tensor, arguments: dict[str, Any]) -> tuple[int, float]:
    """Bytes kept by the graph of a step, and seconds of a frame: from frames of one and of two steps on a fork.

    The first frame also pays for what is found out once, so that it is not timed.
    """
    steps = adapter.steps
    times, kept = [], 0
    trial = adapter.fork()
    trial.steps = min(steps, 1)
    kept = _bytes_for_backward(trial, x, arguments)
    counts = sorted({min(steps, 1), min(steps, 2)})
    for count in counts:
        trial.steps = count
        start = time.perf_counter()
        trial._respond(x, (), arguments)
        times.append((0 if trial.report is None else trial.report.steps, time.perf_counter() - start))
    (first, seconds), (last, longer) = times[0], times[-1]
    a_step = max(longer - seconds, 0.0) / max(last - first, 1)
    planned = steps * max(first // max(counts[0], 1), 1)
    return kept, seconds + a_step * max(planned - first, 0)


def _bytes_for_backward(adapter: Adapter, x: Tensor, arguments: dict[str, Any]) -> int:
    seen: dict[int | None, int] = {}
    frozen = {memory_of(p) for p in adapter._backbone.parameters().values()} | {None}

    def keep(tensor: Tensor) -> Tensor:
        place = memory_of(tensor)
        if place not in frozen:
            seen[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapter._respond(x, (), arguments)
    return sum(seen.values())


def _moments(adapter: Adapter, shape: tuple[int, ...]) -> int:
    """Return how many tensors of its size the optimizer keeps for a tensor, found on a small one."""
    trial = torch.zeros(shape, requires_grad=True, dtype=torch.float32, device="cpu")
    trial.grad = torch.ones(shape, dtype=torch.float32, device="cpu")
    optimizer = adapter.make_optimizer([trial])
    if optimizer is None:
        return 0
    optimizer.step()
    return sum(isinstance(value, Tensor) and value.shape == trial.shape for value in optimizer.state[trial].values())
