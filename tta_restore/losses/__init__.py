"""Losses: a function and a module of the same name each."""

from tta_restore.losses.charbonnier import Charbonnier, charbonnier
from tta_restore.losses.deformed_pair import DeformedPair, calibration_mask, deformed_pair, flow_grey
from tta_restore.losses.dual_pixel import Disparity, Reblur, disparity, reblur
from tta_restore.losses.edge import Edge, detail, edge
from tta_restore.losses.reblur_consistency import BlurMap, ReblurConsistency, blur_map, reblur_consistency, weigh_seeds
from tta_restore.losses.siamese_consistency import SiameseConsistency, siamese_consistency

__all__ = [
    "BlurMap",
    "Charbonnier",
    "DeformedPair",
    "Disparity",
    "Edge",
    "Reblur",
    "ReblurConsistency",
    "SiameseConsistency",
    "blur_map",
    "calibration_mask",
    "charbonnier",
    "deformed_pair",
    "detail",
    "disparity",
    "edge",
    "flow_grey",
    "reblur",
    "reblur_consistency",
    "siamese_consistency",
    "weigh_seeds",
]
