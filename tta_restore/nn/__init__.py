"""Layers that call the ops."""

from tta_restore.nn.adaptive_conv import IterativeAdaptiveConv2d, IterativeFilterAdaptiveBlock
from tta_restore.nn.isotropic import (
    BlurMapEstimator,
    BlurMapFusion,
    ChannelGate,
    IsotropicKernelPredictor,
    IsotropicReblur,
    ResidualTrunk,
    seed_channels,
)

__all__ = [
    "BlurMapEstimator",
    "BlurMapFusion",
    "ChannelGate",
    "IsotropicKernelPredictor",
    "IsotropicReblur",
    "IterativeAdaptiveConv2d",
    "IterativeFilterAdaptiveBlock",
    "ResidualTrunk",
    "seed_channels",
]
