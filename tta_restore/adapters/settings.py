"""Record the settings of an adapter from the signatures of its constructors, as JSON values."""

from __future__ import annotations

import dataclasses
import inspect
import zlib
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from tta_restore.adapters import registry

__all__ = ["RecordedModule", "encode", "recorded"]

_NO_SETTINGS = ("self", "model", "seed", "spec", "bad_frames", "out_of_range", "share_prefix", "memory_format")


class RecordedModule(nn.Module):
    """Module that refuses unknown keywords with near names, and records the arguments of its constructor.

    Attributes:
        settings: the arguments of the constructor that its results depend on, as JSON values.
    """

    settings: dict[str, Any]

    def __new__(cls, *arguments: Any, **keywords: Any) -> Self:
        """Record the arguments."""
        registry.expect_options(cls, keywords)
        module = super().__new__(cls)
        module.__dict__["settings"] = recorded(cls, arguments, keywords)
        return module


def recorded(kind: type, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``kind(*arguments, **keywords)`` is configured with: given values, and defaults of the others.

    Defaults are those of the first class in the method resolution order that has the argument; classes are followed as
    long as they pass ``**options`` on. The model, the seed and what cannot change a result are left out.
    """
    values: dict[str, Any] = {}
    given = dict(keywords)
    for position, base in enumerate(_constructors(kind)):
        signature = inspect.signature(vars(base)["__init__"])
        names = [p for p in list(signature.parameters.values())[1:] if p.kind is not p.VAR_KEYWORD]
        if position == 0:
            given |= dict(zip((p.name for p in names if p.kind is not p.KEYWORD_ONLY), arguments, strict=False))
        for parameter in names:
            if parameter.name not in values and parameter.kind is not parameter.VAR_POSITIONAL:
                default = None if parameter.default is parameter.empty else parameter.default
                values[parameter.name] = given.get(parameter.name, default)
    values |= given
    return {name: encode(value) for name, value in values.items() if name not in _NO_SETTINGS}


def _constructors(kind: type) -> list[type]:
    """Classes whose constructors a call reaches, the outermost first."""
    found = []
    for base in kind.__mro__:
        if base is nn.Module or "__init__" not in vars(base):
            continue
        found.append(base)
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def encode(value: Any) -> Any:
    """Return ``value`` as JSON: dataclasses by field, tensors by shape and checksum, modules by class and settings."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().view(-1).view(torch.uint8) if value.numel() else torch.empty(0)
        return {"tensor": list(value.shape), "checksum": zlib.crc32(data.numpy().tobytes())}
    if isinstance(value, Mapping):
        return {str(key): encode(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [encode(entry) for entry in value]
    if isinstance(value, type):
        return value.__qualname__
    name = {"class": type(value).__qualname__}
    if dataclasses.is_dataclass(value):
        return name | {entry.name: encode(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(settings := getattr(value, "settings", None), dict):
        return name | settings
    if isinstance(value, nn.Module):
        return name  # weights are covered by the checksum of frozen weights
    if callable(value):
        return getattr(value, "__qualname__", name["class"])
    return str(value)
