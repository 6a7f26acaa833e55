"""Functions on tensors, one folder per family. A new family adds its import line and its names here."""

from .sharpness import self_shift_score

__all__ = ["self_shift_score"]
