"""Losses: a function and a module of the same name each."""

from tta_restore.losses.adversarial import Adversarial, Critic, adversarial, critic
from tta_restore.losses.charbonnier import Charbonnier, charbonnier
from tta_restore.losses.cycle import Cycle, cycle
from tta_restore.losses.deformed_pair import DeformedPair, calibration_mask, deformed_pair, flow_grey
from tta_restore.losses.dual_pixel import Disparity, Reblur, disparity, reblur
from tta_restore.losses.edge import CharbonnierEdge, Edge, charbonnier_edge, detail, edge
from tta_restore.losses.fourier import L1Fourier, l1_fourier
from tta_restore.losses.outputs import over_outputs
from tta_restore.losses.reblur_consistency import BlurMap, ReblurConsistency, blur_map, reblur_consistency, weigh_seeds
from tta_restore.losses.siamese_consistency import SiameseConsistency, siamese_consistency

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
    "flow_grey",
    "l1_fourier",
    "over_outputs",
    "reblur",
    "reblur_consistency",
    "siamese_consistency",
    "weigh_seeds",
]
