"""Differentiable functions on tensors, one folder per family."""

from .adaptive_conv import iac, iac_from_features, sac
from .adaptive_conv2d import adaptive_conv2d, adaptive_upsample
from .anisotropic import anisotropic_reblur
from .isotropic import isotropic_kernels, isotropic_reblur
from .product_conv import product_conv2d
from .sharpness import self_shift_score
from .warp import disparity_warp, flow_warp

__all__ = [
    "adaptive_conv2d",
    "adaptive_upsample",
    "anisotropic_reblur",
    "disparity_warp",
    "flow_warp",
    "iac",
    "iac_from_features",
    "isotropic_kernels",
    "isotropic_reblur",
    "product_conv2d",
    "sac",
    "self_shift_score",
]
