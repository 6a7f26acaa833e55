"""The default method for a model, chosen by what the model removes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.methods.degradation_pairs import DegradationPairs
from tta_restore.adapters.methods.self_ensemble import SelfEnsemble
from tta_restore.models import Restorer, RestorerSpec, as_restorer
from tta_restore.models.restorer.inference import example_frame

__all__ = ["recommended"]


def recommended(model: Any, *, task: str | None = None, spec: RestorerSpec | None = None, **options: Any) -> Adapter:
    """Return the best adapter for ``model`` that needs nothing but the model.

    :class:`DegradationPairs` for restorers of single frames with 1 or 3 channels and weights to train;
    :class:`SelfEnsemble` for everything else, which a warning explains.

    Args:
        model: module, function, spandrel descriptor or :class:`tta_restore.models.Restorer`.
        task: what the model was trained to undo: "defocus", "motion", "denoise", "jpeg", "sr" or "any"; None to take
            the one in its spec, or to measure it.
        spec: how to run the model; inferred where neither given nor declared.
        options: options of the adapter.
    """
    restorer = as_restorer(model, spec)
    obstacle = _obstacle(restorer)
    if obstacle is None:
        return DegradationPairs(restorer, task=task, **options)
    warnings.warn(f"recommended: {obstacle}: SelfEnsemble restores without adapting", stacklevel=2)
    return SelfEnsemble(restorer, **options)


def _obstacle(restorer: Restorer) -> str | None:
    """Return why a restorer cannot be trained on pairs; None if it can."""
    module = restorer.module
    if not isinstance(module, nn.Module) or not any(p.is_floating_point() for p in module.parameters()):
        return "the model has no weights to adapt"
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript hides the weights of a model; pass the module that was scripted or traced"
    if restorer.spec is not None and restorer.spec.frames != 1:
        return "the model takes clips, to which MetaTransfer adapts"
    try:
        channels = example_frame("the model", restorer).shape[-3]
    except ValueError as error:
        return str(error).removeprefix("the model: ")
    if channels not in (1, 3):
        return f"the model takes frames of {channels} channels, and pairs have 1 or 3"
    if restorer.spec is not None and not restorer.spec.dense:
        return "the model returns no image"
    return None
