"""Test-time adaptation, any restorer: components that keep working when the camera, lens or scene changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tta_restore._core.lazy import submodule

if TYPE_CHECKING:
    from tta_restore._core.dispatch import BackendUnavailable, backend, show_config

    from . import adapters, data, degradations, engine, losses, metrics, models, nn, ops

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "adapters",
    "backend",
    "data",
    "degradations",
    "engine",
    "losses",
    "metrics",
    "models",
    "nn",
    "ops",
    "show_config",
]


def __getattr__(name: str) -> Any:
    """Import a layer, or a function of the dispatcher, when it is first named: `--help` must not wait for torch."""
    if name in ("BackendUnavailable", "backend", "show_config"):
        return getattr(submodule(__name__, "_core.dispatch"), name)
    if name in __all__:
        return submodule(__name__, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
