"""Registry of methods, in which a class appears by being defined with a name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from tta_restore._core import checks

if TYPE_CHECKING:
    from tta_restore.adapters.adapter import Adapter

_methods: dict[str, type[Adapter]] = {}


def add(name: str, method: type[Adapter]) -> None:
    """Register a class under a name.

    Raises:
        ValueError: another class holds the name.
    """
    held = _methods.get(name)
    if held is not None and _origin(held) != _origin(method):
        raise ValueError(f"Adapter: method {name!r} is defined twice, by {_origin(held)} and by {_origin(method)}")
    _methods[name] = method


def expect_options(method: type, keywords: Iterable[str]) -> None:
    """Raise TypeError for a keyword that none of the constructors takes through which a method's options go."""
    known: dict[str, None] = {}
    for base in method.__mro__:
        constructor = vars(base).get("__init__")
        if constructor is None:
            continue
        if not base.__module__.startswith("tta_restore."):
            return  # somebody else's, who may do with keywords what they like
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        known |= {parameter.name: None for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    checks.expect_known(method.__name__, keywords, list(known))


def list_adapters() -> list[str]:
    """Return the names that :func:`create_adapter` accepts, sorted."""
    package = importlib.import_module("tta_restore.adapters")
    for module in pkgutil.walk_packages(package.__path__, "tta_restore.adapters."):
        importlib.import_module(module.name)
    return sorted(_methods)


def create_adapter(name: str, model: Any, *arguments: Any, **options: Any) -> Adapter:
    """Return an adapter of the method called ``name`` around ``model``; the rest goes to the method's class.

    Raises:
        ValueError: there is no such method.
    """
    known = list_adapters()
    if name not in known:
        near = get_close_matches(name, known, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
        raise ValueError(f"create_adapter: no method is called {name!r}; {hint}")
    return _methods[name](model, *arguments, **options)


def _origin(method: type[Adapter]) -> str:
    return f"{method.__module__}.{method.__qualname__}"
