"""Loops: streams, evaluation, reports, the demo, restoring files, and training."""

from typing import Any

from tta_restore._core.lazy import submodule


def __getattr__(name: str) -> Any:
    """Import a module of this floor, or one of its functions with a module of another name, when it is first named."""
    if name in ("StreamResult", "evaluate_stream"):
        return getattr(submodule(__name__, "evaluate.stream"), name)
    return submodule(__name__, name)
