"""The registry of degradations: shipped ones, entry points, ``module:Class``."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, TypeVar

from tta_restore._core import checks
from tta_restore.degradations.degradation import Degradation, settings_from_json

__all__ = ["create_degradation", "list_degradations", "register_degradation"]

ENTRY_POINT_GROUP = "tta_restore.degradations"

_Class = TypeVar("_Class", bound=type[Degradation])
_entries: dict[str, type[Degradation]] = {}
_broken: dict[str, str] = {}  # name of a plug-in -> why it cannot be used
_discovered = False


def register_degradation(name: str) -> Callable[[_Class], _Class]:
    """Register the decorated class under a name, which becomes its ``kind``.

    Packages announce their own in the entry point group ``tta_restore.degradations``.

    Raises:
        TypeError: the class is no :class:`Degradation`.
        ValueError: another class holds the name.
    """

    def add(cls: _Class) -> _Class:
        if not (isinstance(cls, type) and issubclass(cls, Degradation)):
            raise TypeError(f"register_degradation: expected {name!r} to be a subclass of Degradation, got {cls!r}")
        held = _entries.get(name)
        if held is not None and _origin(held) != _origin(cls):
            raise ValueError(
                f"register_degradation: {name!r} is defined twice, by {_origin(held)} and by {_origin(cls)}"
            )
        cls.kind = name
        _entries[name] = cls
        return cls

    return add


def list_degradations() -> list[str]:
    """Return the registered names, sorted."""
    _discover()
    return sorted(_entries)


def create_degradation(kind: str | dict[str, Any], /, **settings: Any) -> Degradation:
    """Build a degradation by name, from ``module:Class``, or from the dictionary or JSON text of ``to_dict``.

    Raises:
        ValueError: there is no such degradation, or a setting is out of range.
        TypeError: it has no such setting.
    """
    if isinstance(kind, str) and kind.lstrip().startswith("{"):
        kind = json.loads(kind)
    if isinstance(kind, dict):
        content = {name: settings_from_json(value) for name, value in kind.items() if name != "kind"}
        return create_degradation(kind["kind"], **(content | settings))
    cls = _find(kind)
    checks.expect_keywords(f"create_degradation: {kind!r}", cls, settings)
    return cls(**settings)


def _find(name: str) -> type[Degradation]:
    _discover()
    if name in _entries:
        return _entries[name]
    module, colon, attribute = name.partition(":")
    if colon:
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"create_degradation: cannot import {name!r}: {error}") from error
        if not (isinstance(found, type) and issubclass(found, Degradation)):
            raise ValueError(f"create_degradation: expected {name!r} to be a subclass of Degradation, got {found!r}")
        if "kind" not in vars(found):
            found.kind = name
        return found
    if name in _broken:
        raise ValueError(f"create_degradation: {_broken[name]}")
    near = get_close_matches(name, _entries, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(sorted(_entries))}"
    raise ValueError(f"create_degradation: no degradation is called {name!r}; {hint}")


def _discover() -> None:
    global _discovered
    if _discovered:
        return
    _discovered = True
    importlib.import_module("tta_restore.degradations")
    built_in = {name for name, cls in _entries.items() if _origin(cls).startswith("tta_restore.")}
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        what = f"plugin {point.name!r} ({point.value})"
        if point.name in built_in:
            warnings.warn(f"list_degradations: {what} has the name of a built-in one, which is used", stacklevel=3)
            continue
        try:
            register_degradation(point.name)(point.load())
        except (Exception, SystemExit) as error:  # one broken plugin must not take the shipped degradations away
            _broken[point.name] = f"{what} failed: {error}"
            warnings.warn(f"list_degradations: {_broken[point.name]}", stacklevel=3)


def _origin(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
