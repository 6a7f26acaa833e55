"""Adapters: restorers that change at test time, around models that never change."""

from tta_restore._core.processes import Processes
from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.baselines.cotta import CoTTA
from tta_restore.adapters.baselines.eata import EATA
from tta_restore.adapters.baselines.entropy import ROID, Tent
from tta_restore.adapters.baselines.rotta import RoTTA
from tta_restore.adapters.baselines.sar import SAR
from tta_restore.adapters.baselines.srtta import SRTTA
from tta_restore.adapters.calibration import CalibrationProgress, CalibrationReport, calibrate
from tta_restore.adapters.frame import FrameContext, StepReport
from tta_restore.adapters.injection import Semantic
from tta_restore.adapters.methods._muon import Muon
from tta_restore.adapters.methods.causiam import CauSiam
from tta_restore.adapters.methods.degradation_pairs import DegradationPairs
from tta_restore.adapters.methods.meta_transfer import MetaTransfer
from tta_restore.adapters.methods.reblur_consistency import ReblurConsistency
from tta_restore.adapters.methods.reblur_pairs import ReblurPairs
from tta_restore.adapters.methods.self_denoise import SelfDenoise
from tta_restore.adapters.methods.self_ensemble import SelfEnsemble
from tta_restore.adapters.methods.siam_ctta import SiamCTTA
from tta_restore.adapters.plan import Plan
from tta_restore.adapters.recommended import recommended
from tta_restore.adapters.registry import create_adapter, list_adapters
from tta_restore.adapters.select import select_parameters
from tta_restore.adapters.state import Guards
from tta_restore.adapters.views import CenterCrop, Windows, resolve_views
from tta_restore.models.restorer.tiles import Tiles

__all__ = [
    "EATA",
    "ROID",
    "SAR",
    "SRTTA",
    "Adapter",
    "CalibrationProgress",
    "CalibrationReport",
    "CauSiam",
    "CenterCrop",
    "CoTTA",
    "DegradationPairs",
    "FrameContext",
    "Guards",
    "MetaTransfer",
    "Muon",
    "Plan",
    "Processes",
    "ReblurConsistency",
    "ReblurPairs",
    "RoTTA",
    "SelfDenoise",
    "SelfEnsemble",
    "Semantic",
    "SiamCTTA",
    "StepReport",
    "Tent",
    "Tiles",
    "Windows",
    "calibrate",
    "create_adapter",
    "list_adapters",
    "recommended",
    "resolve_views",
    "select_parameters",
]
