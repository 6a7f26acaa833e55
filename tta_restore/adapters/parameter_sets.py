"""Sets of tensors that stand in for a backbone's own: copy, average, restore, measure, pull back."""

from __future__ import annotations

import torch
from torch import Tensor

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
