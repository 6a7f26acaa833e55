"""The default that our own measurements speak for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.methods.reblur_pairs import ReblurPairs
from tta_restore.adapters.methods.self_ensemble import SelfEnsemble
from tta_restore.models import Restorer, as_restorer


def recommended(model: Any, **options: Any) -> Adapter:
    """The best adapter for ``model`` that needs nothing but the model; ``options`` go to it.

    :class:`ReblurPairs` for restorers of single frames at scale 1 that have weights to train, the only method measured
    here with a gain that self-ensemble does not have (README, "Measured"); :class:`SelfEnsemble` for everything else.
    The scale of a model that does not declare one is measured on a small frame.
    """
    restorer = as_restorer(model)
    return (ReblurPairs if _learns_from_pairs(restorer) else SelfEnsemble)(restorer, **options)


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
        spec = restorer.known_spec(torch.rand(1, channels, 64, 64, generator=torch.Generator()).to(weight))
    except (TypeError, ValueError, RuntimeError):
        return False  # it takes something else than pictures; the first real frame will say what is wrong with it
    return spec.scale == 1 and spec.in_channels in (1, 3, None)
