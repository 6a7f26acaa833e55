"""State files: tensors in safetensors, everything else as JSON in its metadata; no pickle, no half-written file."""

from __future__ import annotations

import copy
import hashlib
import json
import zlib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tta_restore.adapters.frame import Plan
from tta_restore.adapters.injection import WithInjection, is_injected
from tta_restore.adapters.state import State, Tree
from tta_restore.data.io.atomic import atomic_file
from tta_restore.models.restorer.preserve import preserve_state

if TYPE_CHECKING:
    from tta_restore.adapters.adapter import Adapter

FORMAT_VERSION = 2
_KEY = "tta_restore.adapter"
_SAMPLES = 512


def pack(tree: Tree) -> tuple[Any, dict[str, Tensor]]:
    """JSON-able structure and the tensors it refers to by key."""
    tensors: dict[str, Tensor] = {}

    def visit(value: Tree, key: str) -> Any:
        if isinstance(value, Tensor):
            tensors[key] = value.detach().cpu().contiguous().clone()
            return {"tensor": key}
        if isinstance(value, dict):
            return {"dict": {name: visit(child, f"{key}/{name}" if key else name) for name, child in value.items()}}
        if isinstance(value, (list, tuple)):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [visit(child, f"{key}/{i}") for i, child in enumerate(value)]}
        return value

    return visit(tree, ""), tensors


def unpack(structure: Any, tensors: dict[str, Tensor]) -> Tree:
    """The tree that :func:`pack` took apart, with tensors of its own."""
    if not isinstance(structure, dict):
        return structure
    ((kind, value),) = structure.items()
    if kind == "tensor":
        return tensors[value].clone()
    if kind == "dict":
        return {name: unpack(child, tensors) for name, child in value.items()}
    items = [unpack(child, tensors) for child in value]
    return tuple(items) if kind == "tuple" else items


def write(path: str | Path, content: dict[str, Any]) -> None:
    """Write the content of a ``state_dict`` so that the file is at all times the old one or the new one, whole."""
    tensors = content["tensors"]
    header = {key: value for key, value in content.items() if key != "tensors"} | {"checksum": _checksum(tensors)}
    with atomic_file(path) as partial:
        save_file(tensors, partial, metadata={_KEY: json.dumps(header)})


def read(path: str | Path) -> dict[str, Any]:
    """Read what :func:`write` wrote.

    Raises:
        ValueError: the file is missing, damaged, or no adapter state.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"load: there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except KeyError:
        raise ValueError(f"load: {path} is a safetensors file, but holds no adapter state") from None
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise ValueError(f"load: {path} is damaged or no adapter state: {error}") from error
    if header.pop("checksum", None) != _checksum(tensors):
        raise ValueError(f"load: {path} is damaged: its checksum does not match")
    return header | {"tensors": tensors}


def fingerprint(modules: list[nn.Module]) -> str:
    """Short text that tells whether frozen weights are the ones a state was made with.

    It covers the name, shape, dtype and up to 512 evenly spaced values of every weight and saved buffer, so it costs
    next to nothing; a change of single other values goes unseen.
    """
    digest = hashlib.blake2b(digest_size=16)
    for module in modules:
        samples = []
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
            if tensor.numel():
                flat = tensor.detach().reshape(-1)
                samples.append(flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].double())
        by_device: dict[torch.device, list[Tensor]] = {}
        for sample in samples:
            by_device.setdefault(sample.device, []).append(sample)
        for values in by_device.values():
            digest.update(torch.cat(values).cpu().numpy().tobytes())
    return digest.hexdigest()


def _checksum(tensors: dict[str, Tensor]) -> int:
    value = 0
    for key in sorted(tensors):
        value = zlib.crc32(tensors[key].contiguous().view(-1).view(torch.uint8).numpy().data, value)
    return value


def state_dict(adapter: Adapter) -> dict[str, Any]:
    """State of an adapter with all that tells where it belongs."""
    structure, tensors = pack(adapter.state.tree())
    return {
        "format_version": FORMAT_VERSION,
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
        tree = unpack(saved["structure"], dict(saved["tensors"]))
        state = State.from_tree(tree, adapter.make_optimizer)
        _check_values(adapter, state)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"load: the state is damaged: {type(error).__name__} {error}") from error
    return state


def _check_belongs(adapter: Adapter, saved: Mapping[str, Any], strict: bool) -> None:
    if saved["format_version"] != FORMAT_VERSION:
        raise ValueError(f"load: the state has format {saved['format_version']}, this version reads {FORMAT_VERSION}")
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
    return fingerprint([*([root] if isinstance(root, nn.Module) else []), *companions])


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
    with preserve_state(root):
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
    # beside a vector and beside a matrix, which some optimizers keep less for
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
    """How many tensors of its size the optimizer keeps for a tensor, found on a small one."""
    trial = torch.zeros(shape, requires_grad=True)
    trial.grad = torch.ones(shape)
    optimizer = adapter.make_optimizer([trial])
    if optimizer is None:
        return 0
    optimizer.step()
    return sum(isinstance(value, Tensor) and value.shape == trial.shape for value in optimizer.state[trial].values())
