"""Layouts of published data sets, aligned and misaligned pairs, clips, augmentation and patch mining."""

from typing import Any

from tta_restore._core.lazy import submodule


def __getattr__(name: str) -> Any:
    """Import a module of this package when it is first named."""
    return submodule(__name__, name)
