"""CoTTA: a slow teacher's mean over views, followed by all weights, with stochastic restore."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks
from tta_restore.adapters.baselines.entropy import Form, entropy
from tta_restore.adapters.frame import Frame
from tta_restore.adapters.guards import Guards
from tta_restore.adapters.methods.siam_ctta import SiamCTTA
from tta_restore.adapters.select import Select
from tta_restore.adapters.views import View, Views


class CoTTA(SiamCTTA, method="cotta"):
    """Continual adaptation of all weights by a weight-averaged teacher, as published for classifiers or for pictures.

    Literal: cross-entropy of softmaxes over channels; the teacher's mean over random augmentations that are *not*
    undone, wherever the source's largest probability is on average below ``threshold`` (three channels in [0, 1] never
    exceed 0.576), else its plain output. On pictures these means are misaligned with the frame. Regression:
    :class:`SiamCTTA` with a slower teacher and a learning rate that stays. Given is the teacher's output of before the
    update. On the streams measured for this package it gained nothing over :class:`SelfEnsemble`.

    Args:
        model: see :class:`Adapter`, as for ``options``.
        form: "literal", the published rule; "regression", the same idea for pictures.
        select: which weights to adapt.
        views: of the teacher; in the literal form by default 32 random augmentations per frame.
        lr: learning rate of Adam; by default 1e-3, regression 1e-4.
        ema: share of itself that the teacher keeps at each update.
        restore: probability with which a scalar of the student returns to the source after an update.
        threshold: see above.

    Source: Wang et al., Continual test-time domain adaptation, CVPR 2022; the regression form is ours.
    """

    def __init__(
        self,
        model: Any,
        *,
        form: Form = "regression",
        select: Select = "all",
        views: Views | None = None,
        lr: float | None = None,
        ema: float = 0.999,
        restore: float = 0.01,
        threshold: float = 0.92,
        **options: Any,
    ) -> None:
        checks.expect_choice("CoTTA", "form", form, ("literal", "regression"))
        literal = form == "literal"
        defaults: dict[str, Any] = {"region": "full", "lr_decay": 1.0}
        if literal:
            defaults |= {"mode": "train", "guards": Guards(spike=None, drift=None)}
        super().__init__(
            model,
            select=select,
            views=("identity" if literal else "rot4") if views is None else views,
            lr=(1e-3 if literal else 1e-4) if lr is None else lr,
            ema=ema,
            restore=restore,
            **(defaults | options),
        )
        self.form, self.threshold, self._random = form, threshold, literal and views is None

    def objective(self, frame: Frame) -> Tensor:
        """Cross-entropy under the teacher, or L1 to it."""
        if self.form == "regression":
            return super().objective(frame)
        sure = self.run("source", frame.region).image.float().softmax(1).amax(1).mean()
        frame.extra["anchor"] = float(sure)
        target = self.run("teacher", frame.region)
        if frame.extra["anchor"] < self.threshold:
            views = self.views if not self._random else [_augmentation(self.generator) for _ in range(32)]
            images = [back(self.run("teacher", there(frame.region)).image) for there, back in views]
            target = target.with_image(torch.stack(images).mean(0))
        frame.notes["target"] = target
        return entropy(self.run("student", frame.region).image, target.image).mean()

    def config(self) -> dict[str, Any]:
        """Settings that a saved state depends on."""
        return super().config() | {"form": self.form, "threshold": self.threshold}


def _augmentation(generator: torch.Generator) -> View:
    """A random change of gain, gamma, place, angle and noise, and perhaps a flip; nothing undoes it."""
    gain, gamma, angle, right, down, noise, flip = torch.rand(7, generator=generator).tolist()
    seed = int(torch.randint(2**62, (), generator=generator))

    def change(x: Tensor) -> Tensor:
        flat = x.reshape(-1, *x.shape[-3:])
        turn = torch.tensor((2 * angle - 1) * torch.pi / 12)
        shift = [(2 * right - 1) / 8, (2 * down - 1) / 8]
        rows = [[turn.cos(), -turn.sin(), shift[0]], [turn.sin(), turn.cos(), shift[1]]]
        grid = F.affine_grid(torch.tensor(rows).to(flat).expand(len(flat), 2, 3), list(flat.shape), align_corners=False)
        flat = F.grid_sample(flat, grid, padding_mode="border", align_corners=False)
        flat = (flat.clamp(1e-6, 1) ** (0.7 + 0.6 * gamma) * (0.6 + 0.8 * gain)).clamp(0, 1)
        flat = flat.flip(-1) if flip < 0.5 else flat
        grain = torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed)).to(flat)
        return (flat + 0.005 * noise * grain).reshape(x.shape)

    return change, lambda image: image
