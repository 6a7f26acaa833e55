"""Adapters: restorers that change at test time, around models that never change."""

from tta_restore.adapters.base import Adapter
from tta_restore.adapters.causiam import CauSiam
from tta_restore.adapters.cotta import CoTTA
from tta_restore.adapters.eata import EATA
from tta_restore.adapters.frame import Frame
from tta_restore.adapters.guards import Guards
from tta_restore.adapters.meta_transfer import MetaTransfer
from tta_restore.adapters.muon import Muon
from tta_restore.adapters.reblur_consistency import ReblurConsistency
from tta_restore.adapters.reblur_pairs import ReblurPairs
from tta_restore.adapters.recommended import recommended
from tta_restore.adapters.region import CentreCrop
from tta_restore.adapters.registry import create_adapter, list_adapters
from tta_restore.adapters.report import Plan, StepReport
from tta_restore.adapters.roid import ROID
from tta_restore.adapters.sar import SAR
from tta_restore.adapters.selection import select_parameters
from tta_restore.adapters.self_ensemble import SelfEnsemble
from tta_restore.adapters.semantic import Semantic
from tta_restore.adapters.siam_ctta import SiamCTTA
from tta_restore.adapters.srtta import SRTTA
from tta_restore.adapters.tent import Tent
from tta_restore.adapters.tiles import Tiles
from tta_restore.adapters.views import resolve_views

__all__ = [
    "EATA",
    "ROID",
    "SAR",
    "SRTTA",
    "Adapter",
    "CauSiam",
    "CentreCrop",
    "CoTTA",
    "Frame",
    "Guards",
    "MetaTransfer",
    "Muon",
    "Plan",
    "ReblurConsistency",
    "ReblurPairs",
    "SelfEnsemble",
    "Semantic",
    "SiamCTTA",
    "StepReport",
    "Tent",
    "Tiles",
    "create_adapter",
    "list_adapters",
    "recommended",
    "resolve_views",
    "select_parameters",
]
