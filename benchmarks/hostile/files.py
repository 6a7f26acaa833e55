"""Write an input, and mark those that are whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Made", "put"]


@dataclass(frozen=True)
class Made:
    """An input; `is_whole` where it is unusual and undamaged, and has to be restored or accepted."""

    path: Path
    is_whole: bool = False


def put(path: Path, content: bytes, *, is_whole: bool = False) -> Made:
    """Write a file."""
    path.write_bytes(content)
    return Made(path, is_whole)
