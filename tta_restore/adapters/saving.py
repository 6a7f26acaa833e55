"""Take an adapter's state out, judge one before it goes in, and give the adapted model away."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tta_restore.adapters import storage
from tta_restore.adapters.injection import WithInjection, is_injected
from tta_restore.adapters.report import Plan
from tta_restore.adapters.state import State
from tta_restore.models.unchanged import left_unchanged

if TYPE_CHECKING:
    from tta_restore.adapters.base import Adapter


def state_dict(adapter: Adapter) -> dict[str, Any]:
    """State of an adapter with all that tells where it belongs."""
    structure, tensors = storage.pack(adapter.state.tree())
    return {
        "format_version": storage.FORMAT_VERSION,
        "method": type(adapter).__name__,
        "adapted": {name: list(tensor.shape) for name, tensor in adapter.source.items()},
        "fingerprint": _fingerprint(adapter),
        "config": adapter.config(),
        "structure": structure,
        "tensors": tensors,
    }


def state_from(adapter: Adapter, saved: Mapping[str, Any], *, strict: bool) -> State:
    """The state in a :func:`state_dict`, after everything about it was found to fit the adapter.

    Raises:
        ValueError: it does not.
    """
    try:
        _check_belongs(adapter, saved, strict)
        tree = storage.unpack(saved["structure"], dict(saved["tensors"]))
        state = State.from_tree(tree, adapter.make_optimiser)
        _check_values(adapter, state)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"load: the state is damaged: {type(error).__name__} {error}") from error
    return state


def _check_belongs(adapter: Adapter, saved: Mapping[str, Any], strict: bool) -> None:
    if saved["format_version"] != storage.FORMAT_VERSION:
        raise ValueError(
            f"load: the state has format {saved['format_version']}, this version reads {storage.FORMAT_VERSION}"
        )
    own = type(adapter).__name__
    if saved["method"] != own:
        raise ValueError(f"load: the state was made by {saved['method']}, this is {own}")
    wanted = {name: list(tensor.shape) for name, tensor in adapter.source.items()}
    if saved["adapted"] != wanted:
        differing = sorted(name for name in wanted | saved["adapted"] if wanted.get(name) != saved["adapted"].get(name))
        near = get_close_matches(differing[0], list(saved["adapted"]), n=1) if differing else []
        raise ValueError(
            f"load: the state adapts other tensors than this {own}: {len(differing)} differ, such as "
            f"{', '.join(differing[:3])}" + (f" (the state has {near[0]})" if near else "")
        )
    if not strict:
        return
    if saved["fingerprint"] != _fingerprint(adapter):
        raise ValueError(
            f"load: the state was made on other frozen weights than this {own}'s model has; "
            "load those first, or pass strict=False to use it all the same"
        )
    config = adapter.config()
    differing = [
        f"{key} {saved['config'].get(key)!r} against {config.get(key)!r}"
        for key in config | saved["config"]
        if _as_saved(config.get(key)) != _as_saved(saved["config"].get(key))
    ]
    if differing:
        raise ValueError(f"load: the state was made with other settings: {', '.join(differing)}; or pass strict=False")


def _check_values(adapter: Adapter, state: State) -> None:
    source = adapter.source
    roles = adapter.state.sets.keys()
    if state.sets.keys() != roles or any(tensors.keys() != source.keys() for tensors in state.sets.values()):
        raise ValueError(f"load: the state is damaged: expected the roles {', '.join(roles)} with every adapted tensor")
    for role, tensors in state.sets.items():
        for name, tensor in tensors.items():
            if tensor.shape != source[name].shape or tensor.dtype != source[name].dtype:
                raise ValueError(f"load: the state is damaged: {role} {name} is {tuple(tensor.shape)} {tensor.dtype}")
            if not tensor.isfinite().all():
                raise ValueError(f"load: the state is damaged: {role} {name} holds NaN or infinity")


def _fingerprint(adapter: Adapter) -> str:
    companions = [module for name, module in adapter.named_children() if name != "restorer"]
    root = adapter._backbone.root
    return storage.fingerprint([*([root] if isinstance(root, nn.Module) else []), *companions])


def _as_saved(value: Any) -> Any:
    return [_as_saved(item) for item in value] if isinstance(value, (list, tuple)) else value


def export(adapter: Adapter, role: str | None) -> nn.Module:
    """A copy of the adapter's model with the weights of a role; with what was injected, where anything was.

    Raises:
        TypeError: the model is a function.
        ValueError: there is no such role.
    """
    root = adapter._backbone.root
    if not isinstance(root, nn.Module):
        raise TypeError("export: expected a module around a function's weights, and a function has none")
    sets = adapter.state.sets
    role = role or next(reversed(sets), "source")
    if role != "source" and role not in sets:
        raise ValueError(f"export: expected one of the roles {', '.join(['source', *sets])}, got {role!r}")
    with left_unchanged(root):
        for part in root.modules():  # deepcopy refuses what a forward computed, such as an old weight_norm's weight
            for name, value in part.__dict__.items():
                if isinstance(value, Tensor) and not value.is_leaf:
                    part.__dict__[name] = value.detach()
        exported = copy.deepcopy(root)
    injection = None if role == "source" else copy.deepcopy(adapter.injection)
    injected = {} if injection is None else injection.weights()
    with torch.no_grad():
        for name, tensor in sets.get(role, {}).items():
            (injected[name] if is_injected(name) else exported.get_parameter(name)).copy_(tensor)
    return exported if injection is None else WithInjection(exported, injection)


def plan(adapter: Adapter) -> Plan:
    """What an adapter adapts, where, and at which cost."""
    own = adapter._backbone.parameters()
    roles = adapter.roles if adapter.adapted else ()
    # beside a vector and beside a matrix, which some optimisers keep less for
    moments = [_moments(adapter, shape) if "student" in roles else 0 for shape in ((2,), (2, 2))]

    def size(tensor: Tensor) -> int:
        return tensor.numel() * max(4, tensor.element_size()) * (len(roles) + moments[tensor.ndim > 1])

    return Plan(
        method=type(adapter).__name__,
        tensors={name: tuple(own[name].shape) for name in adapter.adapted},
        total=sum(parameter.numel() for parameter in own.values()),
        roles=roles,
        bytes=sum(size(own[name]) for name in adapter.adapted),
        sites=() if adapter.injection is None else tuple(site.path for site in adapter.injection.sites),
        cost=adapter.cost(),
    )


def _moments(adapter: Adapter, shape: tuple[int, ...]) -> int:
    """How many tensors of its size the optimiser keeps for a tensor, found on a small one."""
    trial = torch.zeros(shape, requires_grad=True)
    trial.grad = torch.ones(shape)
    optimiser = adapter.make_optimiser([trial])
    if optimiser is None:
        return 0
    optimiser.step()
    return sum(isinstance(value, Tensor) and value.shape == trial.shape for value in optimiser.state[trial].values())
