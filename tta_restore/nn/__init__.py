"""Layers that call the ops."""

from tta_restore.nn.adaptive_conv import IterativeAdaptiveConv2d, IterativeFilterAdaptiveBlock

__all__ = ["IterativeAdaptiveConv2d", "IterativeFilterAdaptiveBlock"]
