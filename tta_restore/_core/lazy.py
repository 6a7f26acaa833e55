"""Lazy import of submodules and their names, which keeps the import of a package fast."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any


def submodule(package: str, name: str) -> ModuleType:
    """Import and return a submodule of a package, for the package's ``__getattr__``.

    Raises:
        AttributeError: the package has no such module.
    """
    full = f"{package}.{name}"
    try:
        return importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name != full:
            raise  # the module exists, and a dependency of it is missing
        raise AttributeError(f"module {package!r} has no attribute {name!r}") from None


def member(package: str, names: Mapping[str, str], name: str) -> Any:
    """Return a member of a package from the module that ``names`` maps it to, else the submodule of that name.

    Raises:
        AttributeError: the package has no such name and no such module.
    """
    if name in names:
        return getattr(submodule(package, names[name]), name)
    return submodule(package, name)
