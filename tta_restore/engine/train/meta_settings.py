"""Settings of the outer loop of meta-learning.

Source: Meta Transferring for Deblurring (BMVC 2022), equation 7, and what is known of its release.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tta_restore._core import checks
from tta_restore.adapters.methods.inner_loop import InnerLoopSettings


@dataclass(frozen=True)
class MetaSettings:
    """The inner loop, which is what runs on a new clip, and the outer loop, which is run in training alone.

    Attributes:
        inner: the inner loop, as for :class:`tta_restore.adapters.MetaTransfer`.
        critic_lr: of the critic in the inner loop, by RMSprop.
        second_order: False takes the gradient at the adapted weights for that of the initial ones, as published; True
            follows it back through every inner step.
        reblur_lr: of the reblurrer in the outer loop, by Adam.
        lr: likewise, of the restorer.
        outer_steps: ``"clip"``: one step with the gradient of all frames, as in the paper; ``"frame"``: one for every
            frame, all gradients from the same adapted weights, as released.
        outer_start: ``"initial"``: outer steps go from the weights that adaptation started from; ``"adapted"``: from
            where it arrived, which is what the release does from its second clip on. That is no meta-learning any
            more, and is here to be compared with.
        reblur_weight: of the reblurrer's part in the outer loss; the restorer has the rest.
        query_batch: frames whose outer gradient is computed at once.
        start_weight: of the outer loss of the initial weights themselves, before they adapt; the adapted ones have the
            rest. 0 as published; a first-order gradient from behind many or large inner steps knows nothing of where
            they began, and alone lets the initial weights drift to where they restore nothing.
    """

    inner: InnerLoopSettings = field(default_factory=InnerLoopSettings)
    critic_lr: float = 1e-6
    second_order: bool = False
    reblur_lr: float = 2.5e-6
    lr: float = 2.5e-6
    outer_steps: Literal["clip", "frame"] = "clip"
    outer_start: Literal["initial", "adapted"] = "initial"
    reblur_weight: float = 0.5
    query_batch: int = 4
    start_weight: float = 0.0

    def __post_init__(self) -> None:
        checks.expect_choice("MetaSettings", "outer_steps", self.outer_steps, ("clip", "frame"))
        checks.expect_choice("MetaSettings", "outer_start", self.outer_start, ("initial", "adapted"))
        checks.expect_int("MetaSettings", "query_batch", self.query_batch, minimum=1)
        for name in ("critic_lr", "reblur_lr", "lr"):
            checks.expect_number("MetaSettings", name, getattr(self, name), minimum=0)
        for name in ("reblur_weight", "start_weight"):
            checks.expect_number("MetaSettings", name, getattr(self, name), minimum=0, maximum=1)
        if self.start_weight and self.as_released:
            raise ValueError("MetaSettings: start_weight is for outer_steps 'clip' and outer_start 'initial'")
        if self.second_order and self.outer_start == "adapted":
            raise ValueError("MetaSettings: outer steps from the adapted weights have no second order")

    @property
    def as_released(self) -> bool:
        """Whether the outer loop is that of the release, which knows one clip at a time."""
        return self.outer_steps == "frame" or self.outer_start == "adapted"
