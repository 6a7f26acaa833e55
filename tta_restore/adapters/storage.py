"""State files: tensors in safetensors, everything else as JSON in its metadata; no pickle, no half-written file."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tta_restore.adapters.state import Tree
from tta_restore.data.atomic_file import atomic_file

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
