"""The frame an adapter works on, and the report on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["FrameContext", "StepReport"]


@dataclass
class FrameContext:
    """A frame and its intermediate results on the way through an adapter.

    Attributes:
        image: the whole frame, (B, C, H, W) or (B, T, C, H, W), RGB in [0, 1]; a clip (T, C, H, W) for methods of
            clips.
        region: the part that adaptation uses; the frame itself where that is all of it.
        steps: optimizer steps to take on it; a method may change it in ``begin_frame``.
        arguments: keywords that go to every call of the model on this frame.
        skip: why nothing can be learned from the frame, set by a method in ``begin_frame``.
        trained: roles that the coming optimizer step changes.
        scratch: values that a method keeps until the frame is done.
        metrics: numbers for the :class:`StepReport`.
        messages: sentences for the :class:`StepReport`.
        grad_norm: norm of the latest gradient.
        learning_rate: learning rate of the latest step.
        cropped: whether adaptation uses a part of the frame only.
    """

    image: Tensor
    region: Tensor
    steps: int
    arguments: dict[str, Any] = field(default_factory=dict)
    skip: str | None = None
    trained: tuple[str, ...] = ("student",)
    scratch: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    grad_norm: float | None = None
    learning_rate: float | None = None
    cropped: bool = False


@dataclass(frozen=True)
class StepReport:
    """Report of the adaptation on one frame.

    Attributes:
        frame: number of frames adapted on before this one.
        updated: whether any optimizer step was taken; see ``skipped_because`` if not.
        loss: mean over the steps taken or rejected; None if no loss was computed.
        steps: optimizer steps taken.
        skipped_because: why the last skipped step was skipped; None if none was.
        drift: distance of the adapted tensors from the source, relative to the source's norm.
        grad_norm: Euclidean norm of the last gradient.
        learning_rate: learning rate of the last step.
        seconds: wall time of the call, the restoration included.
        metrics: numbers that the method adds.
        messages: sentences on the frame, such as values outside [0, 1].
    """

    frame: int
    updated: bool = False
    loss: float | None = None
    steps: int = 0
    skipped_because: str | None = None
    drift: float = 0.0
    grad_norm: float | None = None
    learning_rate: float | None = None
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    messages: tuple[str, ...] = ()

    @property
    def trust(self) -> float | None:
        """Weight of the adapted model in the output, 0 to 1; None for methods that do not measure it."""
        return self.metrics.get("trust")
