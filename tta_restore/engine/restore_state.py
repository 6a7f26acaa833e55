"""The state of a restoration run in one file: the adapter, and which inputs it has learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file

from tta_restore.data.atomic_file import atomic_file

_KEY = "restored_inputs"


class RestoreState:
    """Loads and saves an adapter together with the list of inputs it has seen.

    Both are in one safetensors file, written in one step. Were they two files, a process that dies in between would
    leave an adapter that has learned from an image which the list does not name, and learn from it twice.

    Raises:
        ValueError: the method cannot save itself.
    """

    def __init__(self, path: Path, method: Any) -> None:
        if not (callable(getattr(method, "save", None)) and callable(getattr(method, "load", None))):
            raise ValueError("a state was asked for, but this method keeps none")
        self.path = path
        self.method = method
        self._seen: dict[str, None] = {}

    def load(self) -> None:
        """Take adapter and list from the file, when it exists.

        Raises:
            ValueError: the file is damaged, or belongs to another method or model.
        """
        if not self.path.exists():
            return
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"not a readable state file ({error})") from error
        self.method.load(self.path)
        self._seen = dict.fromkeys(json.loads(metadata.get(_KEY, "[]")))

    def save(self, source: Path) -> None:
        """Note that an input has been learned from, and write adapter and list."""
        self._seen[_name(source)] = None
        with atomic_file(self.path) as partial:
            self.method.save(partial)
            with safe_open(partial, framework="pt") as file:
                metadata = file.metadata() or {}
            # From a copy in memory: tensors mapped from a file must not be written over it.
            save_file(load(partial.read_bytes()), partial, metadata | {_KEY: json.dumps(list(self._seen))})

    def has_seen(self, source: Path) -> bool:
        """Whether the adapter has learned from an input."""
        return _name(source) in self._seen


def _name(source: Path) -> str:
    return str(source.resolve())
