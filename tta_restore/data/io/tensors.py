"""Safetensors files that depend on nothing but their content."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from typing import Any

__all__ = ["add_metadata", "save_tensors"]


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors of torch or arrays of NumPy as safetensors; the same content gives the same bytes.

    The library writes metadata in an order that differs from process to process.
    """
    if any(hasattr(tensor, "untyped_storage") for tensor in tensors.values()):
        from safetensors.torch import save_file
    else:
        from safetensors.numpy import save_file
    save_file(dict(tensors), path, dict(metadata) if metadata else None)
    if not metadata:
        return
    with open(path, "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def add_metadata(path: str | os.PathLike[str], entries: Mapping[str, str]) -> None:
    """Add entries to the metadata of a safetensors file; its tensors stay the same."""
    from safetensors import safe_open
    from safetensors.torch import load

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    # From a copy in memory: tensors mapped from a file must not be written over it.
    with open(path, "rb") as file:
        content = file.read()
    save_tensors(path, load(content), metadata | dict(entries))
