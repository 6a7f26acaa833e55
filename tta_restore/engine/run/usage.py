"""The error of a command that cannot be carried out as it was given."""

from __future__ import annotations

__all__ = ["UsageError", "one_line"]


class UsageError(ValueError):
    """Invalid request; the message names the remedy, and nothing has been changed."""


def one_line(error: Exception) -> str:
    """Return the message of an error as one line, after its type where the message is not a sentence of its own."""
    text = " ".join(str(error).split())
    if text and isinstance(error, (ValueError, TypeError, ImportError, RuntimeError, OSError)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
