"""Spatially varying blur as a sum of a few convolutions, each with its own weight map."""

from .functional import product_conv2d

__all__ = ["product_conv2d"]
