"""Image quality metrics: one value per image, and the protocol that belongs to every reported number."""

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
