"""Layers that call the ops."""

from tta_restore.nn.adaptive_conv import IterativeAdaptiveConv2d, IterativeFilterAdaptiveBlock
from tta_restore.nn.cross_frame import CrossFrameAttention, CrossFrameFusionBlock
from tta_restore.nn.reblur import (
    BlurMapEstimator,
    BlurMapFusion,
    ChannelGate,
    IsotropicKernelPredictor,
    IsotropicReblur,
    ResidualTrunk,
    seed_channels,
)
from tta_restore.nn.residual import DisparityEstimator, ResidualChain
from tta_restore.nn.semantic import OpenClipEncoder, SemanticCrossAttention, TimmEncoder

__all__ = [
    "BlurMapEstimator",
    "BlurMapFusion",
    "ChannelGate",
    "CrossFrameAttention",
    "CrossFrameFusionBlock",
    "DisparityEstimator",
    "IsotropicKernelPredictor",
    "IsotropicReblur",
    "IterativeAdaptiveConv2d",
    "IterativeFilterAdaptiveBlock",
    "OpenClipEncoder",
    "ResidualChain",
    "ResidualTrunk",
    "SemanticCrossAttention",
    "TimmEncoder",
    "seed_channels",
]
