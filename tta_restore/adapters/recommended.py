"""The default method for a model, chosen by what the model removes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.methods.degradation_pairs import DegradationPairs
from tta_restore.adapters.methods.self_ensemble import SelfEnsemble
from tta_restore.models import Restorer, as_restorer

__all__ = ["recommended"]


def recommended(model: Any, *, task: str | None = None, **options: Any) -> Adapter:
    """Return the best adapter for ``model`` that needs nothing but the model.

    :class:`DegradationPairs` for restorers of single frames with 1 or 3 channels and weights to train;
    :class:`SelfEnsemble` for everything else.

    Args:
        model: module, function, spandrel descriptor or :class:`tta_restore.models.Restorer`.
        task: what the model was trained to undo: "defocus", "motion", "denoise", "jpeg", "sr" or "any"; None to take
            the one in its spec, or to measure it.
        options: options of the adapter.
    """
    restorer = as_restorer(model)
    if _learns_from_pairs(restorer):
        return DegradationPairs(restorer, task=task, **options)
    return SelfEnsemble(restorer, **options)


def _learns_from_pairs(restorer: Restorer) -> bool:
    module = restorer.module
    weight = (
        next((p for p in module.parameters() if p.is_floating_point()), None) if isinstance(module, nn.Module) else None
    )
    if weight is None or (restorer.spec is not None and restorer.spec.frames != 1):
        return False
    channels = 3 if restorer.spec is None else restorer.spec.in_channels or 3
    if channels not in (1, 3):
        return False
    try:
        spec = restorer.known_spec(
            torch.rand(1, channels, 64, 64, generator=torch.Generator(), device="cpu").to(weight)
        )
    except (TypeError, ValueError, RuntimeError):
        return False  # it takes something else than images; the first real frame will say what is wrong with it
    return spec.dense and spec.frames == 1 and spec.in_channels in (1, 3, None)
