"""Separable adaptive convolution (SAC) and its iteration (IAC): every pixel and channel with its own filters."""

from tta_restore.ops.adaptive_conv import flops as flops

from .functional import Horizontal, iac, iac_from_features, sac

__all__ = ["Horizontal", "iac", "iac_from_features", "sac"]
