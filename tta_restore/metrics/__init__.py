"""Image quality measures: one value per image, and the protocol every reported number carries."""

from tta_restore.metrics.image import ImageMetrics, Protocol, mae, protocols, psnr, ssim
from tta_restore.metrics.lpips import Lpips
from tta_restore.metrics.realblur import AlignedScores, aligned_scores

__all__ = [
    "AlignedScores",
    "ImageMetrics",
    "Lpips",
    "Protocol",
    "aligned_scores",
    "mae",
    "protocols",
    "psnr",
    "ssim",
]
