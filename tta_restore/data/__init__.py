"""Photographs in and out, simulated lenses, and the streams made of them."""

from typing import Any

from tta_restore._core.lazy import submodule


def __getattr__(name: str) -> Any:
    """Import a module of this floor when it is first named."""
    return submodule(__name__, name)
