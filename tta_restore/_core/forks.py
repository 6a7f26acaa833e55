"""Forks of the process while other threads are in the middle of something."""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager

__all__ = ["delay_forks"]

_lock = threading.RLock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def delay_forks() -> AbstractContextManager[bool]:
    """Return a context within which other threads wait to fork; a child would find a half imported module locked."""
    return _lock
