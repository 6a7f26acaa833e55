"""The page in the browser: restore dropped photos, compare with and without adaptation, download the results."""

from typing import Any

from tta_restore._core.lazy import submodule


def __getattr__(name: str) -> Any:
    """Import a module of this package when it is first named."""
    return submodule(__name__, name)
