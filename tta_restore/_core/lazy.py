"""Modules of a package that are imported when they are first named, so that importing the package stays quick."""

from __future__ import annotations

import importlib
from types import ModuleType


def submodule(package: str, name: str) -> ModuleType:
    """The module ``name`` of a package, for its ``__getattr__``.

    Raises:
        AttributeError: there is none.
    """
    full = f"{package}.{name}"
    try:
        return importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name != full:
            raise  # it is there, and what it needs is not
        raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
