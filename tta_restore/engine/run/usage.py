"""Texts of commands: the error of one that cannot be carried out as it was given, and durations."""

from __future__ import annotations

__all__ = ["UsageError", "duration", "one_line"]


class UsageError(ValueError):
    """Invalid request; the message names the remedy, and nothing has been changed."""


def one_line(error: Exception) -> str:
    """Return the message of an error as one line, after its type where the message is not a sentence of its own."""
    text = " ".join(str(error).split())
    if text and isinstance(error, (ValueError, TypeError, ImportError, RuntimeError, OSError)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it, such as "12 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
