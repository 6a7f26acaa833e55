"""No-reference sharpness scores of images."""

from .functional import self_shift_score

__all__ = ["self_shift_score"]
