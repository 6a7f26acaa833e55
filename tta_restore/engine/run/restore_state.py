"""State of an adapter between runs of a restoration: which inputs it has seen, and its weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tta_restore.data.io.atomic import atomic_file, exclusive_lock
from tta_restore.data.io.files import real_path
from tta_restore.data.io.tensors import add_metadata
from tta_restore.engine.run.usage import UsageError

__all__ = ["RestoreState", "StateError", "open_state"]


_KEY = "restored_inputs"


@contextmanager
def open_state(path: str | Path | None, method: Any) -> Iterator[RestoreState | None]:
    """Open the state of a run, which no other run uses meanwhile; None without a path.

    Raises:
        UsageError: another run is using it, or it belongs to other settings.
    """
    if path is None:
        yield None
        return
    try:
        keeper = RestoreState(Path(path), method)
        with exclusive_lock(path):
            keeper.load()
            yield keeper
    except BlockingIOError:
        raise UsageError(f"--state {path}: another run is using it") from None
    except StateError as error:
        raise UsageError(f"--state {path}: {error}") from error


class StateError(ValueError):
    """A state file cannot be used."""


class RestoreState:
    """Loads and saves an adapter together with the list of inputs it has seen.

    Both are in one safetensors file, written in one step. Were they two files, a process that dies in between would
    leave an adapter that has learned from an image which the list does not name, and learn from it twice.

    Raises:
        StateError: the method cannot save itself.
    """

    def __init__(self, path: Path, method: Any) -> None:
        if not (callable(getattr(method, "save", None)) and callable(getattr(method, "load", None))):
            raise StateError("a state was asked for, but this method keeps none")
        self.path = path
        self.method = method
        self._seen: dict[str, None] = {}

    def load(self) -> None:
        """Take adapter and list from the file, when it exists.

        Raises:
            StateError: the file is damaged, or belongs to another method or model.
        """
        if not self.path.exists():
            return
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise StateError(f"not a readable state file ({error})") from error
        try:
            self.method.load(self.path)
            seen = json.loads(metadata.get(_KEY, "[]"))
            self._seen = dict.fromkeys(str(name) for name in seen)
        except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
            raise StateError(str(error)) from error

    def save(self, source: Path) -> None:
        """Add an input to the list and write adapter and list."""
        self._seen[_name(source)] = None
        with atomic_file(self.path) as partial:
            self.method.save(partial)
            add_metadata(partial, {_KEY: json.dumps(list(self._seen))})

    def has_seen(self, source: Path) -> bool:
        """Return whether the adapter has learned from an input."""
        return _name(source) in self._seen


def _name(source: Path) -> str:
    return str(real_path(source))
