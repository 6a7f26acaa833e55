"""A frame on its way through an adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Frame:
    """One frame on its way through an adapter.

    Attributes:
        image: the whole frame, (B, C, H, W) or (B, T, C, H, W), RGB in [0, 1].
        region: the part that adaptation looks at; the frame itself where that is all of it.
        steps: optimiser steps to take on it; a method may change it in ``begin_frame``.
        skip: why there is nothing to learn from it, where a method finds that in ``begin_frame``.
        remarks: for the :class:`StepReport`, in words.
        notes: what a method keeps until the frame is done.
        extra: numbers for the :class:`StepReport`.
        grad_norm: norm of the latest gradient.
        learning_rate: of the latest step.
    """

    image: Tensor
    region: Tensor
    steps: int
    skip: str | None = None
    remarks: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)
    grad_norm: float | None = None
    learning_rate: float | None = None

    @property
    def cropped(self) -> bool:
        """Whether adaptation looks at a part only."""
        return self.region is not self.image
