"""Layers that call the ops."""

from tta_restore.nn.adaptive_conv import IterativeAdaptiveConv2d, IterativeFilterAdaptiveBlock
from tta_restore.nn.encoders import OpenClipEncoder, TimmEncoder
from tta_restore.nn.semantic_attention import SemanticCrossAttention

__all__ = [
    "IterativeAdaptiveConv2d",
    "IterativeFilterAdaptiveBlock",
    "OpenClipEncoder",
    "SemanticCrossAttention",
    "TimmEncoder",
]
