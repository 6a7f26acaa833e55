"""Names of methods, models and data layouts, for help that must not wait for torch; a test keeps them complete."""

from __future__ import annotations

__all__ = ["CLIP_METHODS", "METHODS", "RESULTS_FILE", "SHIPPED_MODELS"]

#: Configuration of a run, written next to its results.
RESULTS_FILE = "tta-restore.yaml"

#: Methods for single frames.
METHODS = (
    "recommended",
    "degradation-pairs",
    "reblur-pairs",
    "reblur-consistency",
    "self-denoise",
    "siam-ctta",
    "causiam",
    "tent",
    "cotta",
    "sar",
    "eata",
    "roid",
    "rotta",
    "srtta",
    "self-ensemble",
    "source",
)

#: Methods that read a whole clip before they restore its first frame.
CLIP_METHODS = ("meta-transfer",)

#: Shipped weights -> the registered model that they belong to.
SHIPPED_MODELS = {
    "specialist": "lens_unet",
    "generalist": "lens_unet",
    "conditioned": "conditioned_lens_unet",
    "denoiser": "small_unet",
    "jpeg_cleaner": "small_unet",
    "upscaler": "residual_upscaler",
}
