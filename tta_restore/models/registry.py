"""The model registry: a builder function appears in it by being defined."""

import importlib
import importlib.metadata
import pkgutil
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from tta_restore._core import checks
from tta_restore.models import checkpoint as checkpoints

KINDS = ("restorer", "reblurrer", "discriminator", "estimator")
ENTRY_POINT_GROUP = "tta_restore.restorers"

Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class _Entry:
    builder: Builder
    kind: str

    @property
    def origin(self) -> str:
        return f"{self.builder.__module__}.{self.builder.__qualname__}"


_entries: dict[str, _Entry] = {}
_plugins: dict[str, str] = {}  # name -> why it cannot be used; empty where it can
_lock = threading.RLock()
_discovered = False


def register_model(name: str, *, kind: str = "restorer") -> Callable[[Builder], Builder]:
    """Put the decorated builder function (or module class) into the registry as ``name``.

    Raises:
        ValueError: if ``kind`` is unknown, or another builder holds the name already; both origins are named.
    """
    if kind not in KINDS:
        raise ValueError(f"register_model: kind of {name!r} must be one of {', '.join(KINDS)}, got {kind!r}")

    def add(builder: Builder) -> Builder:
        entry = _Entry(builder, kind)
        with _lock:
            held = _entries.get(name)
            # The same definition may come again (importlib.reload, __main__); another one may not.
            if held is not None and held.origin != entry.origin:
                raise ValueError(f"register_model: {name!r} is defined twice, by {held.origin} and by {entry.origin}")
            _entries[name] = entry
        return builder

    return add


def list_models(kind: str | None = None) -> list[str]:
    """Return the names that ``create_model`` accepts, sorted, all of them or those of one kind.

    Raises:
        ValueError: if ``kind`` is unknown.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"list_models: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    _discover()
    return sorted(name for name, entry in _entries.items() if kind is None or entry.kind == kind)


def create_model(name: str, *, checkpoint: str | Path | None = None, **config: Any) -> nn.Module:
    """Build the model registered as ``name``, with the weights of ``checkpoint`` if one is given.

    ``checkpoint`` is a path, or a bare word that names a file shipped in ``tta_restore/models/weights``. A safetensors
    file whose metadata carries ``config`` (JSON) provides the defaults of ``config``; one whose metadata carries
    ``model`` must have been written for this model. Without such metadata a builder with a method
    ``config_of_state_dict(state_dict) -> config`` reads the defaults off the weights.

    Raises:
        ValueError: if no such model or checkpoint exists, or the checkpoint belongs to another model.
        TypeError: if the model does not take one of the keywords in ``config``.
    """
    _discover()
    if name not in _entries:
        if name in _plugins:
            raise ValueError(f"create_model: {_plugins[name]}")
        near = get_close_matches(name, _entries, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(sorted(_entries))}"
        raise ValueError(f"create_model: no model is called {name!r}; {hint}")
    if checkpoint is None:
        return _build(name, config)
    path = checkpoints.resolve(checkpoint)
    metadata = checkpoints.read_metadata(path)
    if metadata.get("model", name) != name:
        raise ValueError(f"create_model: {path} holds weights of {metadata['model']!r}, not of {name!r}")
    builder, content = _entries[name].builder, checkpoints.read(path)
    known = metadata["config"] if "config" in metadata else checkpoints.infer_config(builder, content, str(path))
    return checkpoints.load(_build(name, known | config), content, str(path))


def is_plugin(name: str) -> bool:
    """Return whether an installed package announces a restorer of that name, and no built-in one has it."""
    _discover()
    return name in _plugins


def _build(name: str, config: dict[str, Any]) -> nn.Module:
    builder = _entries[name].builder
    checks.expect_keywords(f"create_model: {name!r}", builder, config)
    return builder(**config)


def _discover() -> None:
    """Import every public module of this package, and third-party packages that announce themselves, once."""
    global _discovered
    with _lock:
        if _discovered:
            return
        package = importlib.import_module("tta_restore.models")
        for module in pkgutil.walk_packages(package.__path__, "tta_restore.models."):
            if not module.name.rpartition(".")[2].startswith("_"):
                importlib.import_module(module.name)
        _plugins.clear()
        built_in = {name for name, entry in _entries.items() if entry.origin.startswith("tta_restore.")}
        for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
            what = f"plugin {point.name!r} ({point.value})"
            if point.name in built_in or (checkpoints.WEIGHTS / f"{point.name}.safetensors").is_file():
                warnings.warn(f"list_models: {what} has the name of a built-in model, which is used", stacklevel=3)
                continue
            _plugins[point.name] = ""
            try:
                loaded = point.load()
                if not callable(loaded):
                    raise TypeError(f"expected a function or class, got {type(loaded).__name__}")
                register_model(point.name)(loaded)
            except (Exception, SystemExit) as error:  # one broken plugin must not take the shipped models away
                _plugins[point.name] = f"{what} failed: {error}"
                warnings.warn(f"list_models: {_plugins[point.name]}", stacklevel=3)
        _discovered = True
