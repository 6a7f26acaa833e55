"""SiamCTTA: a student that follows the mean of its teacher's views, as published and released."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.frame import Frame
from tta_restore.adapters.select import Select
from tta_restore.adapters.tiling import RELEASED_REGION, CenterCrop
from tta_restore.adapters.views import Views
from tta_restore.losses import siamese_consistency_loss
from tta_restore.models import Restoration


class SiamCTTA(Adapter, method="siam_ctta"):
    """Continual adaptation by consistency: L1 between the student and the mean of the teacher's views, then averaging.

    Per step, in this order: teacher views, student, Adam with a decaying rate, teacher average, stochastic restore of
    the student. What is given is the views' mean of before the update; for frames that adaptation saw only a crop of,
    that of the whole frame after it. With the published decay of 0.95 per update the weights come to rest after about
    a hundred frames. On the streams measured for this package it changed nothing over :class:`SelfEnsemble`.

    Args:
        model: see :class:`Adapter`, as for ``options``.
        select: which weights to adapt.
        lr: learning rate of the first update.
        lr_decay: factor of the learning rate from update to update.
        lr_floor: share of ``lr`` below which the learning rate never falls.
        betas: Adam's.
        ema: share of itself that the teacher keeps at each update.
        restore: probability with which a scalar of the student returns to the source after an update.
        views: see :func:`resolve_views`.
        steps: updates per frame.
        region: what adaptation looks at in large frames; None for the released rule, "full" for all of it.
        emit: whose restoration is given.
        seed: source of the restore masks.

    Source: Causal Siamese networks for continual test-time adaptation of defocus deblurring (arXiv 2501.09052); the
    released code where it differs. Deviations: eval mode, crops never leave the frame, masks for adapted tensors only.
    """

    def __init__(
        self,
        model: Any,
        *,
        select: Select,
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
        seen = RELEASED_REGION if region is None else None if region == "full" else region
        super().__init__(model, select=select, views=views, steps=steps, region=seen, seed=seed, **options)
        self.lr, self.lr_decay, self.lr_floor, self.betas = lr, lr_decay, lr_floor, tuple(betas)
        self.ema, self.restore_probability, self.emitted = ema, restore, emit

    def make_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas)

    def learning_rate(self, update: int) -> float:
        """Decays with every update, down to its floor, and is never raised again."""
        return self.lr * max(self.lr_decay**update, self.lr_floor)

    def objective(self, frame: Frame) -> Tensor:
        """L1 between the student and the teacher's mean."""
        target = frame.notes["target"] = self.ensemble("teacher", frame.region)
        return siamese_consistency_loss(self.run("student", frame.region).image, target.image)

    def after_step(self, frame: Frame) -> None:
        """The teacher sees the student before anything of it is restored."""
        self.update_teacher(self.ema)
        self.stochastic_restore(self.restore_probability)

    def emit(self, frame: Frame) -> Restoration:
        """The target of the last step where it covers the frame, else a new pass over all of it."""
        if self.emitted == "source":
            return self.run("source", frame.image)
        if self.emitted != "teacher_mean":
            return self.run(self.emitted, frame.image)
        if "target" in frame.notes and not frame.cropped:
            return frame.notes["target"]
        return self.ensemble("teacher", frame.image)

    def config(self) -> dict[str, Any]:
        """Settings that a saved state depends on."""
        return super().config() | {
            "lr": self.lr,
            "lr_decay": self.lr_decay,
            "lr_floor": self.lr_floor,
            "betas": list(self.betas),
            "ema": self.ema,
            "restore": self.restore_probability,
            "emit": self.emitted,
        }

    def cost(self) -> str:
        """Passes through the model for each frame."""
        views, source = len(self.views), " + 1 (source, for the context)" if self.semantic is not None else ""
        large = f"; {views} more at full size for large frames" if self.region is not None else ""
        return f"per frame {self.steps} x ({views} forward + 1 forward and backward){source}{large}"
