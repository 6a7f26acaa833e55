"""Separable adaptive convolution (SAC) and iterative adaptive convolution (IAC), with filters per pixel and channel."""

from tta_restore.ops.adaptive_conv import flops as flops

from .functional import Horizontal, iac, iac_from_features, sac

__all__ = ["Horizontal", "iac", "iac_from_features", "sac"]
