"""Image and video files: reading, writing and finding them."""

from typing import Any

from tta_restore._core.lazy import submodule


def __getattr__(name: str) -> Any:
    """Import a module of this package when it is first named."""
    return submodule(__name__, name)
