"""How sharp a frame is, measured on the frame alone."""

from .functional import self_shift_score

__all__ = ["self_shift_score"]
