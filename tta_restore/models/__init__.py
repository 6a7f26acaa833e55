"""Restorers and related networks: registry, checkpoints, and the contract by which any restorer is run."""

from typing import Any

from tta_restore._core.lazy import submodule
from tta_restore.models.checkpoint import load_checkpoint
from tta_restore.models.competence import Competence, competence
from tta_restore.models.complexity import Macs, count_macs
from tta_restore.models.registry import create_model, list_models, register_model
from tta_restore.models.restorer.probing import ProbeReport, probe
from tta_restore.models.restorer.restorer import Restoration, Restorer, as_restorer
from tta_restore.models.restorer.spec import RestorerSpec, SizeRequirements

__all__ = [
    "Competence",
    "Macs",
    "ProbeReport",
    "Restoration",
    "Restorer",
    "RestorerSpec",
    "SizeRequirements",
    "as_restorer",
    "competence",
    "count_macs",
    "create_model",
    "list_models",
    "load_checkpoint",
    "probe",
    "register_model",
]


def __getattr__(name: str) -> Any:
    """Import a module of this package when it is first named."""
    return submodule(__name__, name)
