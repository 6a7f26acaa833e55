"""The error of a command that cannot be carried out as it was given."""

from __future__ import annotations

__all__ = ["UsageError"]


class UsageError(ValueError):
    """Invalid request; the message names the remedy, and nothing has been changed."""
