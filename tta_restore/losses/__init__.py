"""Losses: a function and a module of the same name each."""

from tta_restore.losses.adversarial import Adversarial, Critic, Cycle, adversarial, critic, cycle
from tta_restore.losses.alignment import DeformedPair, calibration_mask, deformed_pair, flow_gray
from tta_restore.losses.consistency import SiameseConsistency, siamese_consistency
from tta_restore.losses.pixel import (
    Charbonnier,
    CharbonnierEdge,
    Edge,
    L1Fourier,
    charbonnier,
    charbonnier_edge,
    detail,
    edge,
    l1_fourier,
    over_outputs,
)
from tta_restore.losses.reblur import (
    BlurMap,
    Disparity,
    Reblur,
    ReblurConsistency,
    blur_map,
    disparity,
    reblur,
    reblur_consistency,
    weigh_seeds,
)

__all__ = [
    "Adversarial",
    "BlurMap",
    "Charbonnier",
    "CharbonnierEdge",
    "Critic",
    "Cycle",
    "DeformedPair",
    "Disparity",
    "Edge",
    "L1Fourier",
    "Reblur",
    "ReblurConsistency",
    "SiameseConsistency",
    "adversarial",
    "blur_map",
    "calibration_mask",
    "charbonnier",
    "charbonnier_edge",
    "critic",
    "cycle",
    "deformed_pair",
    "detail",
    "disparity",
    "edge",
    "flow_gray",
    "l1_fourier",
    "over_outputs",
    "reblur",
    "reblur_consistency",
    "siamese_consistency",
    "weigh_seeds",
]
