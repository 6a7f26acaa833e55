"""Metrics and data set layouts by name: registered, from entry points of plug-ins, or ``module:name``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tta_restore.data.datasets.clip_folders import CLIP_LAYOUTS
from tta_restore.data.datasets.layouts import LAYOUTS, register_layout
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.run.user_code import guarded, import_named, is_named, plugins

__all__ = ["find_metrics", "use_layout"]

Metric = Callable[[Tensor, Tensor], Tensor]


def find_metrics(names: Sequence[str] | None) -> dict[str, Metric]:
    """Return further metrics by name: functions of a restored and a sharp image, (1, 3, H, W) in [0, 1], to a value.

    Args:
        names: entry points of the group ``tta_restore.metrics``, or ``module.path:function``; a class without
            arguments is made once.

    Raises:
        UsageError: there is no such metric, or it cannot be called.
    """
    found: dict[str, Metric] = {}
    own = plugins("tta_restore.metrics")
    for name in names or ():
        try:
            if is_named(name):
                metric = import_named(name)
            elif name in own:
                metric = own[name]()
            else:
                there = ", ".join(own) or "no plug-in"
                raise UsageError(f"--metrics: no metric {name!r}; there are: {there}, and your own by module.path:name")
            if isinstance(metric, type):
                with guarded(name):
                    metric = metric()
        except ValueError as error:
            raise error if isinstance(error, UsageError) else UsageError(f"--metrics: {error}") from error
        if not callable(metric):
            raise UsageError(f"--metrics: {name} is no function")
        found[name] = partial(_measured, name, metric)
    return found


def _measured(name: str, metric: Metric, restored: Tensor, sharp: Tensor) -> Tensor:
    """Return the value of user code as a tensor of one element."""
    with torch.no_grad(), guarded(name):
        value = torch.as_tensor(metric(restored, sharp)).float()
    if value.numel() != 1:
        raise ValueError(f"{name}: expected one value for an image, got {tuple(value.shape)}")
    return value.reshape(())


def use_layout(name: Any) -> Any:
    """Register the layout that ``module:name`` or an entry point of ``tta_restore.layouts`` names; return the name.

    What is named is a function of a root folder and a split that returns pairs of paths, or clips, or a mapping with
    the arguments of :func:`tta_restore.data.datasets.layouts.register_layout`. Any other name is returned as it is.

    Raises:
        ValueError: it cannot be imported, or is neither.
    """
    if not isinstance(name, str) or name in LAYOUTS or name in CLIP_LAYOUTS:
        return name
    own = plugins("tta_restore.layouts")
    if is_named(name):
        found = import_named(name)
    elif name in own:
        found = own[name]()
    else:
        return name
    if isinstance(found, Mapping):
        with guarded(name):
            register_layout(name, **found)
    elif callable(found):
        register_layout(name, pairs=found, clips=found)
    else:
        raise ValueError(f"{name}: expected a function of root and split, or a mapping, got {type(found).__name__}")
    return name
