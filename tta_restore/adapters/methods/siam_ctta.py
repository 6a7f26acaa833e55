"""SiamCTTA: a student that follows the average of its teacher's views."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from tta_restore._core import checks
from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.frame import FrameContext
from tta_restore.adapters.select import Select
from tta_restore.adapters.views import OFFICIAL_REGION, CenterCrop, Views
from tta_restore.losses import siamese_consistency_loss
from tta_restore.models import Restoration


class SiamCTTA(Adapter, method="siam_ctta"):
    """Continual adapter with an EMA teacher, trained by consistency.

    Each step computes the teacher's average over views, the L1 distance of the student from it, an Adam step with a
    decaying rate, the EMA update of the teacher, and the stochastic restoration of the student. Returns the teacher's
    view-averaged output computed before the update. If adaptation used a crop, the full frame is restored again after
    the update. With the published decay of 0.95 per update the weights stop changing after about a hundred frames.

    Args:
        model: see :class:`Adapter`, as for ``options``.
        select: which weights to adapt, by default all.
        lr: learning rate of the first update.
        lr_decay: factor of the learning rate from update to update.
        lr_floor: fraction of ``lr`` below which the learning rate never falls.
        betas: coefficients of Adam's running averages.
        ema: EMA momentum of the teacher, ``teacher = ema * teacher + (1 - ema) * student``.
        restore: probability of stochastic restoration: each scalar of the student is set to the source's value with it
            after an update.
        views: test-time augmentations, see :func:`resolve_views`.
        steps: updates per frame.
        region: part of large frames that adaptation uses; None for the official rule, "full" for all of it.
        emit: role whose restoration is returned.
        seed: source of the restoration masks.

    Source: Causal Siamese networks for continual test-time adaptation of defocus deblurring (arXiv 2501.09052); the
    released code where it differs. Deviations: eval mode, crops never leave the frame, masks for adapted tensors only.
    """

    def __init__(
        self,
        model: Any,
        *,
        select: Select = "all",
        lr: float = 1e-4,
        lr_decay: float = 0.95,
        lr_floor: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        ema: float = 0.9,
        restore: float = 0.01,
        views: Views = "rot4",
        steps: int = 1,
        region: CenterCrop | Literal["full"] | None = None,
        emit: Literal["teacher_mean", "teacher", "student", "source"] = "teacher_mean",
        seed: int = 0,
        **options: Any,
    ) -> None:
        method = type(self).__name__
        checks.expect_number(method, "lr", lr, minimum=0)
        for name, value in (("lr_decay", lr_decay), ("lr_floor", lr_floor), ("ema", ema), ("restore", restore)):
            checks.expect_number(method, name, value, minimum=0, maximum=1)
        checks.expect_choice(method, "emit", emit, ("teacher_mean", "teacher", "student", "source"))
        seen = OFFICIAL_REGION if region is None else None if region == "full" else region
        super().__init__(model, select=select, views=views, steps=steps, region=seen, seed=seed, **options)
        self.lr, self.lr_decay, self.lr_floor, self.betas = lr, lr_decay, lr_floor, tuple(betas)
        self.ema, self.restore_prob, self.emitted = ema, restore, emit

    def learning_rate(self, update: int) -> float:
        """Return a rate that decays with every update, down to its floor."""
        return self.lr * max(self.lr_decay**update, self.lr_floor)

    def objective(self, frame: FrameContext) -> Tensor:
        """Return the L1 distance between the student and the teacher's average."""
        target = frame.scratch["target"] = self.ensemble("teacher", frame.region)
        return siamese_consistency_loss(self.run("student", frame.region).image, target.image)

    def after_step(self, frame: FrameContext) -> None:
        """Update the teacher, then restore scalars of the student."""
        self.update_teacher(self.ema)
        self.stochastic_restore(self.restore_prob)

    def emit(self, frame: FrameContext) -> Restoration:
        """Return the target of the last step where it covers the frame, else restore all of it."""
        if self.emitted == "source":
            return self.run("source", frame.image)
        if self.emitted != "teacher_mean":
            return self.run(self.emitted, frame.image)
        if "target" in frame.scratch and not frame.cropped:
            return frame.scratch["target"]
        return self.ensemble("teacher", frame.image)

    def cost(self) -> str:
        """Return the passes through the model for each frame, in words."""
        views, source = len(self.views), " + 1 (source, for the context)" if self.semantic is not None else ""
        large = f"; {views} more at full size for large frames" if self.region is not None else ""
        return f"per frame {self.steps} x ({views} forward + 1 forward and backward){source}{large}"
