"""Image quality measures: one value per image, and the protocol every reported number carries."""

from tta_restore.metrics.image import PUBLISHED, Measures, Protocol, mae, psnr, ssim
from tta_restore.metrics.lpips import Lpips, LpipsUnavailable
from tta_restore.metrics.realblur import AlignedScores, aligned_scores

__all__ = [
    "PUBLISHED",
    "AlignedScores",
    "Lpips",
    "LpipsUnavailable",
    "Measures",
    "Protocol",
    "aligned_scores",
    "mae",
    "psnr",
    "ssim",
]
