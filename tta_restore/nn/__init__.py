"""Layers built on the ops."""

from tta_restore.nn.adaptive_conv import IterativeAdaptiveConv2d, IterativeFilterAdaptiveBlock
from tta_restore.nn.adaptive_conv2d import AdaptiveConv2d, KernelPredictor
from tta_restore.nn.cross_frame import CrossFrameAttention, CrossFrameFusionBlock
from tta_restore.nn.reblur import (
    BlurMapEstimator,
    BlurMapFusion,
    IsotropicKernelPredictor,
    IsotropicReblur,
)
from tta_restore.nn.residual import DisparityEstimator
from tta_restore.nn.semantic import OpenClipEncoder, SemanticCrossAttention, TimmEncoder

__all__ = [
    "AdaptiveConv2d",
    "BlurMapEstimator",
    "BlurMapFusion",
    "CrossFrameAttention",
    "CrossFrameFusionBlock",
    "DisparityEstimator",
    "IsotropicKernelPredictor",
    "IsotropicReblur",
    "IterativeAdaptiveConv2d",
    "IterativeFilterAdaptiveBlock",
    "KernelPredictor",
    "OpenClipEncoder",
    "SemanticCrossAttention",
    "TimmEncoder",
]
