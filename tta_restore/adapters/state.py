"""The state of an adapter between frames, limits on how far it moves, and operations on its sets of tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tta_restore._core import checks

Tree = Any
"""Tensors, numbers, strings and None in dicts with string keys, lists and tuples."""

__all__ = ["Guards", "ParameterSet", "State", "Tree", "map_tensors"]

ParameterSet = dict[str, Tensor]
"""Adapted tensors by their name in the model."""

OptimizerFactory = Callable[[str, list[Tensor]], torch.optim.Optimizer | None]
"""Optimizer of the tensors of a role."""

_HISTORY = 32  # losses whose median is the usual one
_MIN_HISTORY = 8  # losses before a ratio to their median means anything


@dataclass
class State:
    """State of an adapter between frames.

    Attributes:
        seed: source of all its random numbers, together with ``frames``.
        sets: the adapted tensors, one set per role.
        optimizers: optimizer of each role that is trained.
        frames: frames adapted on.
        updates: optimizer steps taken since the start or the last restart.
        losses: the latest losses, for :class:`Guards`.
        diverged: consecutive frames whose output diverged from the source's.
        still: consecutive optimizer steps that changed nothing.
        frozen: no frame is adapted on, see :meth:`Adapter.freeze`.
        context: the latest semantic context, where it serves several frames.
        memory: what a method keeps beyond that, a tree of tensors and plain values.
    """

    seed: int
    sets: dict[str, ParameterSet] = field(default_factory=dict)
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    frames: int = 0
    updates: int = 0
    losses: list[float] = field(default_factory=list)
    diverged: int = 0
    still: int = 0
    frozen: bool = False
    context: Tensor | None = None
    memory: dict[str, Tree] = field(default_factory=dict)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """Optimizer of the student."""
        return self.optimizers.get("student")

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer | None) -> None:
        self.optimizers.pop("student", None)
        if optimizer is not None:
            self.optimizers["student"] = optimizer

    def generator(self) -> torch.Generator:
        """Return the random numbers of the next frame, which depend on the seed and the number of frames only."""
        digest = hashlib.blake2b(f"{self.seed}/{self.frames}".encode(), digest_size=7).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big"))

    def tree(self) -> dict[str, Tree]:
        """Return the state as a tree that shares its tensors."""
        return {
            "seed": self.seed,
            "sets": {role: dict(tensors) for role, tensors in self.sets.items()},
            "optimizers": {role: _optimizer_tree(optimizer) for role, optimizer in self.optimizers.items()},
            "frames": self.frames,
            "updates": self.updates,
            "losses": list(self.losses),
            "diverged": self.diverged,
            "still": self.still,
            "frozen": self.frozen,
            "context": self.context,
            "memory": map_tensors(self.memory, lambda tensor: tensor),
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Tree], make_optimizer: OptimizerFactory) -> State:
        """Return a state that owns the tensors of ``tree``; KeyError where part of it is missing."""
        values = {entry.name: tree[entry.name] for entry in fields(cls)}
        values["sets"] = {
            role: {name: tensor.detach().requires_grad_(role != "teacher") for name, tensor in tensors.items()}
            for role, tensors in values["sets"].items()
        }
        optimizers = {}
        for role, saved in values["optimizers"].items():
            optimizer = make_optimizer(role, list(values["sets"][role].values()))
            if optimizer is not None:
                optimizers[role] = _optimizer_from(saved, optimizer)
        values["optimizers"] = optimizers
        return cls(**values)

    def view(self) -> State:
        """Return the same tensors in a disposable state, for predictions."""
        tree = self.tree()
        return replace(self, sets=tree["sets"], optimizers={}, losses=tree["losses"], memory=tree["memory"])

    def copy(self, make_optimizer: OptimizerFactory, devices: Mapping[str, torch.device] | None = None) -> State:
        """Return an independent state: sets and optimizers are new tensors; those in ``memory`` are values, and shared.

        ``devices`` names where the tensors of each name have to live.
        """
        devices = devices or {}
        tree = self.tree()
        tree["sets"] = {
            role: {name: _owned(tensor, devices.get(name)) for name, tensor in tensors.items()}
            for role, tensors in self.sets.items()
        }
        for role, saved in tree["optimizers"].items():
            # A step counter stays where torch put it; moments live with their tensor.
            saved["moments"] = [
                map_tensors(entry, lambda t, name=name: _owned(t, devices.get(name) if t.ndim else None))
                for name, entry in zip(self.sets[role], saved["moments"], strict=True)
            ]
        return State.from_tree(tree, make_optimizer)


def _owned(tensor: Tensor, device: torch.device | None) -> Tensor:
    return tensor.detach().to(device=device, copy=True)


def map_tensors(tree: Tree, change: Callable[[Tensor], Tensor]) -> Tree:
    """Return the same tree in new containers, with ``change(tensor)`` for each tensor.

    Raises:
        TypeError: the tree holds something that a state file could not.
    """
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        if not all(isinstance(key, str) for key in tree):
            raise TypeError(f"adapter state: expected dicts with string keys, got keys {list(tree)[:5]}")
        return {key: map_tensors(value, change) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tensors(value, change) for value in tree)
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"adapter state: expected tensors, numbers, strings, None, lists or dicts, got {type(tree)}")


def _optimizer_tree(optimizer: torch.optim.Optimizer) -> dict[str, Tree]:
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {"moments": [dict(optimizer.state.get(parameter, {})) for parameter in parameters], "groups": groups}


def _optimizer_from(saved: Mapping[str, Tree], optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update(values)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter, moments in zip(parameters, saved["moments"], strict=True):
        if moments:
            optimizer.state[parameter] = dict(moments)
    return optimizer


@dataclass(frozen=True)
class Guards:
    """Limits, each None to switch it off. A loss or gradient that is not finite is never followed, whatever is set.

    Attributes:
        max_loss_ratio: a step is skipped when its loss exceeds this many times the median of the latest 32.
        max_drift: radius of the trust region: the adapted tensors are projected onto it when, as one vector, their
            distance from the source exceeds this fraction of the source's norm.
        min_source_psnr: PSNR in dB between the output and the source's. Below it the frame's adaptation is undone and
            the source's output returned; after two such frames in a row the adapter resets. Costs one forward pass per
            frame.
    """

    max_loss_ratio: float | None = 10.0
    max_drift: float | None = 0.5
    min_source_psnr: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_loss_ratio", "max_drift", "min_source_psnr"):
            checks.expect_number("Guards", name, getattr(self, name), above=0, optional=True)

    def check_loss(self, loss: float, history: Sequence[float]) -> str | None:
        """Return why a step with this loss has to be skipped, or None."""
        if not math.isfinite(loss):
            return f"loss is {loss}"
        if self.max_loss_ratio is not None and len(history) >= _MIN_HISTORY:
            usual = median(history)
            if loss > self.max_loss_ratio * usual:
                return f"loss {loss:.3g} is more than {self.max_loss_ratio:g} times the usual {usual:.3g}"
        return None

    def record_loss(self, loss: float, history: list[float]) -> None:
        """Append a loss to the history, skipped ones included: a level that lasts becomes the usual one."""
        if math.isfinite(loss):
            history.append(loss)
            del history[:-_HISTORY]

    def check_output(self, image: Tensor, source: Tensor) -> str | None:
        """Return why an output must not be returned, or None."""
        if self.min_source_psnr is None:
            return None
        error = (image.float() - source.float()).square().mean().item()
        decibels = -10 * math.log10(max(error, 1e-20)) if math.isfinite(error) else -math.inf
        if decibels >= self.min_source_psnr:
            return None
        return f"output is {decibels:.1f} dB from the source's, the limit is {self.min_source_psnr:g} dB"


def copy(tensors: ParameterSet, *, trained: bool = False) -> ParameterSet:
    """Return new tensors with the same values, at least float32; leaves that require grad if ``trained``."""
    return {
        name: tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True).requires_grad_(trained)
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def assign(target: ParameterSet, source: ParameterSet) -> None:
    """Write the values of ``source`` into the tensors of ``target``."""
    for name, tensor in target.items():
        tensor.copy_(source[name])


@torch.no_grad()
def ema_update(target: ParameterSet, newest: ParameterSet, momentum: float) -> None:
    """Exponential moving average in place, ``target = target + (1 - momentum) * (newest - target)``.

    In this form, and in float32, tensors that are equal stay equal to the last bit, and small changes are not lost.
    """
    torch._foreach_lerp_(list(target.values()), [newest[name] for name in target], 1 - momentum)


@torch.no_grad()
def interpolate(source: ParameterSet, target: ParameterSet, factor: float) -> ParameterSet:
    """Return new tensors ``source + factor * (target - source)``."""
    tensors = list(target.values())
    mixed = torch._foreach_lerp([source[name].to(target[name]) for name in target], tensors, factor)
    return dict(zip(target, mixed, strict=True))


@torch.no_grad()
def stochastic_restore(target: ParameterSet, source: ParameterSet, prob: float, generator: torch.Generator) -> None:
    """Set each scalar of ``target`` to the source's value with probability ``prob``, independently.

    Source: continual test-time adaptation (Wang et al., CVPR 2022), stochastic restore.
    """
    if prob <= 0:
        return
    for name, tensor in target.items():
        mask = (
            torch.rand(tensor.shape, generator=_on(tensor.device, generator), device=tensor.device, dtype=torch.float32)
            < prob
        )
        tensor.copy_(torch.where(mask, source[name].to(tensor), tensor))


def overall_norm(values: list[Tensor] | tuple[Tensor, ...]) -> float:
    """Return the norm of all tensors taken as one vector; not finite where one of them is not."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for norm in torch._foreach_norm(values):
        by_device.setdefault(norm.device, []).append(norm)
    return torch.cat([torch.stack(norms).double().cpu() for norms in by_device.values()]).norm().item()


@torch.no_grad()
def drift(tensors: ParameterSet, source: ParameterSet) -> float:
    """Return the distance from the source relative to the source's norm, all tensors taken as one vector."""
    if not tensors:
        return 0.0
    origin = [source[name].to(tensor) for name, tensor in tensors.items()]
    distance, norm = (overall_norm(values) for values in (torch._foreach_sub(list(tensors.values()), origin), origin))
    return distance / norm if norm > 0 else float(distance > 0) * float("inf")


@torch.no_grad()
def project(tensors: ParameterSet, source: ParameterSet, radius: float) -> bool:
    """Project onto the trust region of relative ``radius`` around the source; return whether that moved anything."""
    distance = drift(tensors, source)
    if not radius < distance < float("inf"):
        return False
    for name, tensor in tensors.items():
        tensor.copy_(source[name].to(tensor).lerp(tensor, radius / distance))
    return True


@torch.no_grad()
def project_changes(
    tensors: ParameterSet, source: ParameterSet, projections: Mapping[str, Callable[[Tensor, Tensor], Tensor]]
) -> None:
    """Replace the change of each named tensor from the source by its projection, a function of change and source."""
    for name, projection in projections.items():
        origin = source[name].to(tensors[name])
        tensors[name].copy_(origin + projection(tensors[name] - origin, origin))


def _on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """Return the generator itself on its own device, elsewhere one seeded from it."""
    if generator.device == device:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return torch.Generator(device).manual_seed(seed)
