"""Plain values that the state of a training must agree with to be continued: its data, its networks, its settings."""

from __future__ import annotations

import dataclasses
import functools
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tta_restore.adapters.settings import encode

__all__ = ["differences", "plain"]

_LONG = 8  # entries of a list from which a checksum stands for them


def plain(value: Any) -> Any:
    """Return numbers, texts, lists and mappings that stand for a value, equal for equal values in another process.

    Files are known by their names, so that a moved folder is the same data set; tensors by shape and checksum; objects
    of this package by their attributes, functions and objects of others by their names.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Tensor):
        return encode(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries = [plain(entry) for entry in value]
        return entries if len(entries) < _LONG else {"count": len(entries), "checksum": _checksum(entries)}
    if isinstance(value, functools.partial):
        return {"function": plain(value.func), "arguments": plain([*value.args, value.keywords])}
    kind = type(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
    elif kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
        own = {name: entry for name, entry in vars(value).items() if not name.startswith("__")}
        if isinstance(value, nn.Module):  # its weights are in the state
            own = {n: e for n, e in own.items() if n[0] != "_" and isinstance(e, (bool, int, float, str, tuple))}
    else:
        return f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', kind.__qualname__)}"
    return {"class": kind.__qualname__} | {name: plain(entry) for name, entry in own.items()}


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Return a text for each entry, by its dotted name, that differs between two results of :func:`plain`."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        found: list[str] = []
        for key in dict.fromkeys([*here, *there]):
            found += differences(there.get(key), here.get(key), f"{name}.{key}" if name else str(key))
        return found
    if json.dumps(there) == json.dumps(here):  # a tuple is a list
        return []
    return [f"{name} {_short(there)} there, {_short(here)} here"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _checksum(entries: list[Any]) -> int:
    return zlib.crc32(json.dumps(entries).encode())
