"""Convolution and upsampling with a kernel of its own at every pixel."""

from .functional import Normalize, PaddingMode, adaptive_conv2d, adaptive_upsample

__all__ = ["Normalize", "PaddingMode", "adaptive_conv2d", "adaptive_upsample"]
