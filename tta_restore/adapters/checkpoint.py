"""State files of adapters: tensors in safetensors, everything else as JSON in its metadata, without pickle."""

from __future__ import annotations

import copy
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from safetensors.torch import save_file
from torch import Tensor, nn

from tta_restore.adapters.injection import WithInjection, is_injected
from tta_restore.adapters.replica import copy_module
from tta_restore.adapters.state import State, Tree
from tta_restore.data.io.atomic import atomic_file

if TYPE_CHECKING:
    from tta_restore.adapters.adapter import Adapter

__all__ = ["export", "read", "state_dict", "state_from", "write"]

_FORMAT_VERSION = 3
_KEY = "tta_restore.adapter"
_SAMPLES = 512


def pack(tree: Tree) -> tuple[Any, dict[str, Tensor]]:
    """JSON-able structure and the tensors it refers to by key."""
    tensors: dict[str, Tensor] = {}

    def visit(value: Tree, key: str) -> Any:
        if isinstance(value, Tensor):
            plain = value.detach().cpu()
            tensors[key] = (torch.view_as_real(plain) if plain.is_complex() else plain).contiguous().clone()
            return {"complex" if plain.is_complex() else "tensor": key}
        if isinstance(value, dict):
            return {"dict": {name: visit(child, f"{key}/{name}" if key else name) for name, child in value.items()}}
        if isinstance(value, (list, tuple)):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [visit(child, f"{key}/{i}") for i, child in enumerate(value)]}
        return value

    return visit(tree, ""), tensors


def unpack(structure: Any, tensors: dict[str, Tensor]) -> Tree:
    """Return the tree that :func:`pack` took apart, with tensors of its own."""
    if not isinstance(structure, dict):
        return structure
    ((kind, value),) = structure.items()
    if kind == "tensor":
        return tensors[value].clone()
    if kind == "complex":
        return torch.view_as_complex(tensors[value].clone())
    if kind == "dict":
        return {name: unpack(child, tensors) for name, child in value.items()}
    items = [unpack(child, tensors) for child in value]
    return tuple(items) if kind == "tuple" else items


def write(path: str | Path, content: dict[str, Any]) -> None:
    """Write the content of a ``state_dict`` so that the file is at all times the old one or the new one, whole."""
    with atomic_file(path) as partial:
        save_file(content["tensors"], partial, metadata=_metadata(content))


def to_bytes(content: dict[str, Any]) -> Tensor:
    """Return what :func:`write` writes as uint8 numbers, for the state dict of a module around an adapter."""
    return torch.frombuffer(bytearray(save_bytes(content["tensors"], metadata=_metadata(content))), dtype=torch.uint8)


def from_bytes(numbers: Tensor) -> dict[str, Any]:
    """Read what :func:`to_bytes` returned.

    Raises:
        ValueError: it is damaged or something else.
    """
    try:
        data = numbers.detach().cpu().numpy().tobytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][_KEY]
        return _checked(json.loads(header), load_bytes(data), "the state dict")
    except (SafetensorError, LookupError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError("load: what the state dict holds of an adapter is damaged or no adapter state") from None


def _metadata(content: dict[str, Any]) -> dict[str, str]:
    header = {key: value for key, value in content.items() if key != "tensors"}
    return {_KEY: json.dumps(header | {"checksum": _checksum(content["tensors"])})}


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
    except (SafetensorError, json.JSONDecodeError, RecursionError, OSError) as error:
        raise ValueError(f"load: {path} is damaged or no adapter state: {error}") from error
    return _checked(header, tensors, path)


def _checked(header: Any, tensors: dict[str, Tensor], source: object) -> dict[str, Any]:
    if not isinstance(header, dict):
        raise ValueError(f"load: {source} is damaged: its header is no table")
    if header.pop("checksum", None) != _checksum(tensors):
        raise ValueError(f"load: {source} is damaged: its checksum does not match")
    return header | {"tensors": tensors}


def _checksum_of(modules: list[nn.Module]) -> str:
    """Return a checksum by which a state recognizes the frozen weights that it was made with.

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
                flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
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
    """Return the state of an adapter, with the settings and the model that it belongs to."""
    structure, tensors = pack(adapter.state.tree())
    return {
        "format_version": _FORMAT_VERSION,
        "method": type(adapter).__name__,
        "adapted": {name: list(tensor.shape) for name, tensor in adapter.source.items()},
        "weights": _frozen_checksum(adapter),
        "settings": adapter.settings,
        "structure": structure,
        "tensors": tensors,
    }


def state_from(adapter: Adapter, saved: Mapping[str, Any], *, strict: bool, weights: bool = True) -> State:
    """Return the state in a :func:`state_dict`, after everything about it was found to fit the adapter.

    Raises:
        ValueError: it does not.
    """
    try:
        _check_belongs(adapter, saved, strict, weights)
        tree = unpack(saved["structure"], dict(saved["tensors"]))
        state = State.from_tree(tree, adapter._optimizer_of)
        _check_values(adapter, state)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"load: the state is damaged: {type(error).__name__} {error}") from error
    return state


def _check_belongs(adapter: Adapter, saved: Mapping[str, Any], strict: bool, weights: bool) -> None:
    if saved["format_version"] != _FORMAT_VERSION:
        raise ValueError(f"load: the state has format {saved['format_version']}, this version reads {_FORMAT_VERSION}")
    kind = type(adapter).__name__
    if saved["method"] != kind:
        raise ValueError(f"load: the state was made by {saved['method']}, this is {kind}")
    wanted = {name: list(tensor.shape) for name, tensor in adapter.source.items()}
    if saved["adapted"] != wanted:
        differing = sorted(name for name in wanted | saved["adapted"] if wanted.get(name) != saved["adapted"].get(name))
        near = get_close_matches(differing[0], list(saved["adapted"]), n=1) if differing else []
        raise ValueError(
            f"load: the state adapts other tensors than this {kind}: {len(differing)} differ, such as "
            f"{', '.join(differing[:3])}" + (f" (the state has {near[0]})" if near else "")
        )
    if not strict:
        return
    if weights and saved["weights"] != _frozen_checksum(adapter):
        raise ValueError(
            f"load: the state was made on other frozen weights than this {kind}'s model has; "
            "load those first, or pass strict=False in Python to use it all the same"
        )
    own, other = adapter.settings, saved["settings"]
    differing = list(_differences("", _as_saved(other), _as_saved(own)))
    if differing:
        raise ValueError(
            f"load: the state was made with other settings: {', '.join(differing)}; repeat them (--method.KEY on the "
            "command line), or pass strict=False in Python"
        )


def _check_values(adapter: Adapter, state: State) -> None:
    own = adapter.state.sets
    if state.sets.keys() != own.keys() or any(
        own[role].keys() != tensors.keys() for role, tensors in state.sets.items()
    ):
        raise ValueError(f"load: the state is damaged: expected the roles {', '.join(own)} with every adapted tensor")
    for role, tensors in state.sets.items():
        for name, tensor in tensors.items():
            if tensor.shape != own[role][name].shape or tensor.dtype != own[role][name].dtype:
                raise ValueError(f"load: the state is damaged: {role} {name} is {tuple(tensor.shape)} {tensor.dtype}")
            if not tensor.isfinite().all():
                raise ValueError(f"load: the state is damaged: {role} {name} holds NaN or infinity")


def _frozen_checksum(adapter: Adapter) -> str:
    companions = [module for name, module in adapter.named_children() if name != "restorer"]
    root = adapter._backbone.root
    return _checksum_of([*([root] if isinstance(root, nn.Module) else []), *companions])


def _as_saved(value: Any) -> Any:
    """Return a value as it comes back from JSON."""
    if isinstance(value, Mapping):
        return {str(key): _as_saved(entry) for key, entry in value.items()}
    return [_as_saved(item) for item in value] if isinstance(value, (list, tuple)) else value


def _differences(name: str, saved: Any, own: Any) -> Iterator[str]:
    """Settings that differ, by their dotted names."""
    if isinstance(saved, dict) and isinstance(own, dict):
        for key in saved | own:
            yield from _differences(f"{name}.{key}" if name else key, saved.get(key), own.get(key))
    elif saved != own:
        yield f"{name} {saved!r} against {own!r}"


def export(adapter: Adapter, role: str | None) -> nn.Module:
    """Return a copy of the adapter's model with the weights of a role; with what was injected, where anything was.

    Raises:
        TypeError: the model is a function.
        ValueError: there is no such role.
    """
    root = adapter._backbone.root
    if not isinstance(root, nn.Module):
        raise TypeError("export: expected a module around a function's weights, and a function has none")
    sets = {role: adapter.state.sets[role] for role in adapter._kept_roles()}
    role = role or next(reversed(sets), "source")
    if role != "source" and role not in sets:
        raise ValueError(f"export: expected one of the roles {', '.join(['source', *sets])}, got {role!r}")
    exported = copy_module(root)
    injection = None if role == "source" else copy.deepcopy(adapter.injection)
    injected = {} if injection is None else injection.weights()
    with torch.no_grad():
        for name, tensor in sets.get(role, {}).items():
            (injected[name] if is_injected(name) else exported.get_parameter(name)).copy_(tensor)
    return exported if injection is None else WithInjection(exported, injection)
