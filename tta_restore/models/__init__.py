"""Restorers and their companions: registry, checkpoints, and the one contract that any restorer is run by."""

from tta_restore.models.checkpoint import load_checkpoint
from tta_restore.models.registry import create_model, list_models, register_model

__all__ = ["create_model", "list_models", "load_checkpoint", "register_model"]
