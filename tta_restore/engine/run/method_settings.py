"""Settings of methods: their types, functions and degradations by name, and names that a method does not take."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

from torch import nn

from tta_restore.degradations import Degradation
from tta_restore.engine.run.extensions import parse_degradation
from tta_restore.engine.run.settings import readable_hints, typed_value
from tta_restore.engine.run.user_code import import_named, is_named

__all__ = ["named_function", "not_taken", "typed_settings"]

#: Types that the default of a keyword without an annotation stands for.
_OF_DEFAULTS: dict[type, Any] = {bool: bool | None, int: int | float | None, float: float | None}


def not_taken(error: Exception, kind: type | None, given: Collection[str]) -> str | None:
    """Return what to do where user code does not take a keyword, None for any other error.

    Args:
        error: its cause is what the user code raised.
        kind: class of the method.
        given: names of the settings that the user gave.
    """
    found = re.search(r"got an unexpected keyword argument '(\w+)'$", str(error.__cause__))
    if found is None or not isinstance(error.__cause__, TypeError):
        return None
    keyword = found[1]
    if keyword in given:
        known = [name for name in _keywords(kind) if name not in ("self", "model")]
        near = get_close_matches(keyword, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
        return f"there is no setting {keyword!r}" + (f"; {hint}" if known else "")
    return f"it takes no {keyword!r}, as every method does: end its arguments with **options and pass them to Adapter"


def _keywords(kind: type | None) -> dict[str, Any]:
    """Return the default of every keyword of a class's constructors, those of its bases included."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__ if kind is not None else ()):
        constructor = vars(base).get("__init__")
        if constructor is not None and base not in (object, nn.Module):
            parameters = inspect.signature(constructor).parameters.values()
            found |= {p.name: p.default for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    return found


def typed_settings(kind: type | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as the annotations of a class's constructors have them; names are left to the class to check.

    A keyword without an annotation takes the type of its default, where that is a number or a flag. Texts stand for
    functions (``module.path:function``) and degradations (see
    :func:`tta_restore.engine.run.extensions.parse_degradation`) where the annotation is one.

    Raises:
        ValueError: a value is of another type.
    """
    hints: dict[str, Any] = {}
    for base in reversed(kind.__mro__ if kind is not None else ()):
        constructor = vars(base).get("__init__")
        if constructor is not None:
            hints |= readable_hints(constructor)
    defaults = _keywords(kind)
    hints = {name: _OF_DEFAULTS[type(value)] for name, value in defaults.items() if type(value) in _OF_DEFAULTS} | hints
    found: dict[str, Any] = {}
    for name, value in settings.items():
        hint = hints.get(name, Any)
        named = _named_callable(name, hint, value) or _named_degradation(name, hint, value)
        found[name] = named if named is not None else typed_value(name, hint, value) if name in hints else value
    return found


def _named_callable(name: str, hint: Any, value: Any) -> Any:
    """Return the function for ``module:name``, or for a mapping with that ``name`` and keywords; None otherwise."""
    members = typing.get_args(hint) or (hint,) if typing.get_origin(hint) is not Callable else (hint,)
    if not any(typing.get_origin(member) is Callable for member in members) or not isinstance(value, (str, Mapping)):
        return None
    return named_function(name, value)


def _named_degradation(name: str, hint: Any, value: Any) -> Any:
    """Return the degradation that a text names where an annotation asks for one; None otherwise."""
    members = typing.get_args(hint) or (hint,)
    literals = [word for member in members for word in typing.get_args(member)]
    if Degradation not in members or not isinstance(value, str) or value in literals:
        return None
    return parse_degradation(value, name)


def named_function(name: str, value: str | Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function for ``module.path:function``, or for a mapping with that ``name`` and keywords.

    Raises:
        ValueError: it cannot be imported, or is no function; the message starts with ``name``.
    """
    source, keywords = (value, {}) if isinstance(value, str) else (value.get("name", ""), dict(value))
    if not is_named(str(source)):
        raise ValueError(f"{name}: expected module.path:function, got {value!r}")
    found = import_named(str(source))
    if not callable(found):
        raise ValueError(f"{name}: {source} is no function")
    keywords.pop("name", None)
    return partial(found, **keywords) if keywords else found
