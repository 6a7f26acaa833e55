"""Blur with an oriented Gaussian of its own at every pixel."""

from .functional import anisotropic_reblur

__all__ = ["anisotropic_reblur"]
