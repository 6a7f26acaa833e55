"""Losses: a function and a module of the same name each."""

from tta_restore.losses.charbonnier import Charbonnier, charbonnier
from tta_restore.losses.siamese_consistency import SiameseConsistency, siamese_consistency

__all__ = ["Charbonnier", "SiameseConsistency", "charbonnier", "siamese_consistency"]
