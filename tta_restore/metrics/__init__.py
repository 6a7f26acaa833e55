"""Image quality measures: one value per image, and the protocol every reported number carries."""

from tta_restore.metrics.aligned import AlignedScores, aligned_scores
from tta_restore.metrics.image import psnr, ssim
from tta_restore.metrics.protocol import PUBLISHED, Protocol

__all__ = ["PUBLISHED", "AlignedScores", "Protocol", "aligned_scores", "psnr", "ssim"]
