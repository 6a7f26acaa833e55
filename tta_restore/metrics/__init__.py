"""Image quality measures: one value per image, and the protocol every reported number carries."""

from tta_restore.metrics.image import psnr, ssim
from tta_restore.metrics.protocol import PUBLISHED, Protocol

__all__ = ["PUBLISHED", "Protocol", "psnr", "ssim"]
