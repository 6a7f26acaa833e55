"""Spatially varying blur with isotropic kernels, mixed per pixel from several sizes."""

from .functional import isotropic_kernels, isotropic_reblur

__all__ = ["isotropic_kernels", "isotropic_reblur"]
