"""Everything an adapter remembers between frames, as one object that copies, saves and restores as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

Tree = Any
"""Tensors, numbers, strings and None in dicts with string keys, lists and tuples."""

OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer | None]


@dataclass
class State:
    """What an adapter remembers.

    Attributes:
        seed: source of all its random numbers, together with ``frames``.
        sets: the adapted tensors, one set per role.
        optimizer: steps ``sets["student"]``; None for methods without one.
        frames: frames adapted on.
        updates: optimizer steps taken since the start or the last restart.
        losses: the latest losses, for the spike guard.
        diverged: frames in a row whose output strayed from the source's.
        still: optimizer steps in a row that changed nothing.
        context: what was last read in a frame, where it serves for several.
        extra: what a method remembers beyond that, a tree of tensors and plain values.
    """

    seed: int
    sets: dict[str, ParameterSet] = field(default_factory=dict)
    optimizer: torch.optim.Optimizer | None = None
    frames: int = 0
    updates: int = 0
    losses: list[float] = field(default_factory=list)
    diverged: int = 0
    still: int = 0
    context: Tensor | None = None
    extra: dict[str, Tree] = field(default_factory=dict)

    def generator(self) -> torch.Generator:
        """Random numbers of the next frame: they depend on the seed and on how many frames came before, only."""
        digest = hashlib.blake2b(f"{self.seed}/{self.frames}".encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big"))

    def tree(self) -> dict[str, Tree]:
        """The state as a tree that shares its tensors."""
        return {
            "seed": self.seed,
            "sets": {role: dict(tensors) for role, tensors in self.sets.items()},
            "optimizer": None if self.optimizer is None else _optimizer_tree(self.optimizer),
            "frames": self.frames,
            "updates": self.updates,
            "losses": list(self.losses),
            "diverged": self.diverged,
            "still": self.still,
            "context": self.context,
            "extra": map_tensors(self.extra, lambda tensor: tensor),
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Tree], make_optimizer: OptimizerFactory) -> State:
        """State that owns the tensors of ``tree``; KeyError where part of it is missing."""
        values = {entry.name: tree[entry.name] for entry in fields(cls)}
        values["sets"] = {
            role: {name: tensor.detach().requires_grad_(role == "student") for name, tensor in tensors.items()}
            for role, tensors in values["sets"].items()
        }
        saved = values["optimizer"]
        if saved is not None:
            optimizer = make_optimizer(list(values["sets"]["student"].values()))
            values["optimizer"] = None if optimizer is None else _optimizer_from(saved, optimizer)
        return cls(**values)

    def view(self) -> State:
        """The same tensors in a state that may be thrown away: what a prediction works on."""
        tree = self.tree()
        return replace(self, sets=tree["sets"], optimizer=None, losses=tree["losses"], extra=tree["extra"])

    def copy(self, make_optimizer: OptimizerFactory, devices: Mapping[str, torch.device] | None = None) -> State:
        """A state of its own: sets and optimizer are new tensors; those in ``extra`` are values, and shared.

        ``devices`` says where the tensors of each name are to live.
        """
        places = list(devices.values()) if devices else []

        def owned(tensor: Tensor, device: torch.device | None) -> Tensor:
            return tensor.detach().to(device=device, copy=True)

        tree = self.tree()
        tree["sets"] = {
            role: {name: owned(tensor, devices[name] if devices else None) for name, tensor in tensors.items()}
            for role, tensors in self.sets.items()
        }
        if tree["optimizer"] is not None:
            moments = tree["optimizer"]["moments"]
            tree["optimizer"]["moments"] = [
                # A step counter stays where torch put it; moments live with their tensor.
                map_tensors(entry, lambda t, place=place: owned(t, place if t.ndim else None))
                for entry, place in zip(moments, places or [None] * len(moments), strict=True)
            ]
        return State.from_tree(tree, make_optimizer)


def map_tensors(tree: Tree, change: Callable[[Tensor], Tensor]) -> Tree:
    """The same tree in new containers, with ``change(tensor)`` for each tensor.

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


ParameterSet = dict[str, Tensor]


def copied(tensors: ParameterSet, *, trained: bool = False) -> ParameterSet:
    """New tensors with the same values, at least float32; leaves that require grad where they are to be trained."""
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
def average(target: ParameterSet, newest: ParameterSet, keep: float) -> None:
    """Exponential moving average in place, ``target = target + (1 - keep) * (newest - target)``.

    In this form, and in float32, tensors that are equal stay equal to the last bit, and small changes are not lost.
    """
    torch._foreach_lerp_(list(target.values()), [newest[name] for name in target], 1 - keep)


@torch.no_grad()
def between(source: ParameterSet, target: ParameterSet, share: float) -> ParameterSet:
    """New tensors ``share`` of the way from ``source`` to ``target``."""
    tensors = list(target.values())
    mixed = torch._foreach_lerp([source[name].to(target[name]) for name in target], tensors, share)
    return dict(zip(target, mixed, strict=True))


@torch.no_grad()
def restore(target: ParameterSet, source: ParameterSet, probability: float, generator: torch.Generator) -> None:
    """Put the source's value back into each scalar of ``target`` with the given probability, independently.

    Source: continual test-time adaptation (Wang et al., CVPR 2022), stochastic restore.
    """
    if probability <= 0:
        return
    for name, tensor in target.items():
        mask = torch.rand(tensor.shape, generator=_on(tensor.device, generator), device=tensor.device) < probability
        tensor.copy_(torch.where(mask, source[name].to(tensor), tensor))


def overall_norm(values: list[Tensor] | tuple[Tensor, ...]) -> float:
    """Norm of all tensors taken as one vector; not finite where one of them is not."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for norm in torch._foreach_norm(values):
        by_device.setdefault(norm.device, []).append(norm)
    return torch.cat([torch.stack(norms).double().cpu() for norms in by_device.values()]).norm().item()


@torch.no_grad()
def drift(tensors: ParameterSet, source: ParameterSet) -> float:
    """Distance from the source relative to the source's own norm, all tensors taken as one vector."""
    if not tensors:
        return 0.0
    origin = [source[name].to(tensor) for name, tensor in tensors.items()]
    distance, norm = (overall_norm(values) for values in (torch._foreach_sub(list(tensors.values()), origin), origin))
    return distance / norm if norm > 0 else float(distance > 0) * float("inf")


@torch.no_grad()
def pull_back(tensors: ParameterSet, source: ParameterSet, radius: float) -> bool:
    """Project onto the ball of relative ``radius`` around the source; whether that moved anything."""
    distance = drift(tensors, source)
    if not radius < distance < float("inf"):
        return False
    for name, tensor in tensors.items():
        tensor.copy_(source[name].to(tensor).lerp(tensor, radius / distance))
    return True


def _on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """The generator itself on its own device, elsewhere one seeded from it."""
    if generator.device == device:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)
