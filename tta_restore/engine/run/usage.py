"""The error of a command that cannot be carried out as it was given."""

from __future__ import annotations

__all__ = ["UsageError"]


class UsageError(ValueError):
    """What was asked for cannot be done; the message is for the one who asked, and nothing has been changed."""
