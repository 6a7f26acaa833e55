"""Functions on tensors, one folder per family. A new family adds its import line and its names here."""

from .adaptive_conv import iac, iac_from_features, sac
from .isotropic import isotropic_kernels, isotropic_reblur
from .product_conv import product_conv2d
from .sharpness import self_shift_score
from .warp import disparity_warp, flow_warp

__all__ = [
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
