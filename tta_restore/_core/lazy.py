"""Lazy import of submodules, which keeps the import of a package fast."""

from __future__ import annotations

import importlib
from types import ModuleType


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
