"""Simulation of how a camera degrades a frame, and estimation from frames."""

from tta_restore.degradations.blur import Blur, BlurParameters
from tta_restore.degradations.compose import Compose, ComposeParameters
from tta_restore.degradations.degradation import Degradation, Parameters
from tta_restore.degradations.estimator import Estimator
from tta_restore.degradations.jpeg import Jpeg, JpegParameters, file_tables, quality_tables, tables_quality
from tta_restore.degradations.motion import MotionBlur, MotionParameters
from tta_restore.degradations.noise import Noise, NoiseParameters
from tta_restore.degradations.quantize import Clip, ClipParameters, Quantize, QuantizeParameters
from tta_restore.degradations.reading import Reading
from tta_restore.degradations.registry import create_degradation, list_degradations, register_degradation
from tta_restore.degradations.resize import Resize, ResizeParameters

__all__ = [
    "Blur",
    "BlurParameters",
    "Clip",
    "ClipParameters",
    "Compose",
    "ComposeParameters",
    "Degradation",
    "Estimator",
    "Jpeg",
    "JpegParameters",
    "MotionBlur",
    "MotionParameters",
    "Noise",
    "NoiseParameters",
    "Parameters",
    "Quantize",
    "QuantizeParameters",
    "Reading",
    "Resize",
    "ResizeParameters",
    "create_degradation",
    "file_tables",
    "list_degradations",
    "quality_tables",
    "register_degradation",
    "tables_quality",
]
