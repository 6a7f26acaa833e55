"""Estimation of the defocus point spread function, and small deblurring networks."""

from tta_restore.models.defocus.estimator import DefocusEstimate, DefocusEstimator, WindowEstimate
from tta_restore.models.defocus.pupil import align_pupils, polar_samples, rasterize_pupil, rotate_pupil
from tta_restore.models.defocus.spectra import WindowSpectra, at_unit_radius
from tta_restore.models.defocus.unet import ConditionedDefocusUNet, DefocusUNet

__all__ = [
    "ConditionedDefocusUNet",
    "DefocusEstimate",
    "DefocusEstimator",
    "DefocusUNet",
    "WindowEstimate",
    "WindowSpectra",
    "align_pupils",
    "at_unit_radius",
    "polar_samples",
    "rasterize_pupil",
    "rotate_pupil",
]
