"""Image quality measures: one value per image, and the protocol every reported number carries."""

from tta_restore.metrics.aligned import AlignedScores, aligned_scores
from tta_restore.metrics.image import mae, psnr, ssim
from tta_restore.metrics.lpips import Lpips, LpipsUnavailable
from tta_restore.metrics.measures import Measures
from tta_restore.metrics.protocol import PUBLISHED, Protocol

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
