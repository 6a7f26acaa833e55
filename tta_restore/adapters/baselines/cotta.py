"""CoTTA: all weights follow the average of a slow teacher's views, with stochastic restoration."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks
from tta_restore.adapters.baselines.entropy import Variant, entropy
from tta_restore.adapters.frame import FrameContext
from tta_restore.adapters.methods.siam_ctta import SiamCTTA
from tta_restore.adapters.select import Select
from tta_restore.adapters.state import Guards
from tta_restore.adapters.views import View, Views


class CoTTA(SiamCTTA, method="cotta"):
    """Continual adapter of all weights with an EMA teacher, as published for classifiers or for images.

    The official variant minimizes the cross-entropy of softmaxes over channels. Its target is the teacher's average
    over random augmentations that are *not* inverted where the source's largest probability is on average below
    ``confidence_threshold`` (three channels in [0, 1] never exceed 0.576), else the teacher's plain output; on images
    such averages are misaligned with the frame. Our variant is :class:`SiamCTTA` with a slower teacher and a constant
    learning rate. Both return the teacher's output computed before the update.

    Args:
        model: see :class:`Adapter`, as for ``options``.
        variant: "official", the published rule; "ours", the same idea for images.
        select: which weights to adapt.
        views: the teacher's augmentations; in the official variant by default 32 random ones per frame.
        lr: learning rate of Adam; by default 1e-3 in the official variant, 1e-4 in ours.
        ema: EMA momentum of the teacher, ``teacher = ema * teacher + (1 - ema) * student``.
        restore: probability of stochastic restoration of each scalar of the student after an update.
        confidence_threshold: mean probability of the source's best channel below which augmentations are averaged.

    Source: Wang et al., Continual test-time domain adaptation, CVPR 2022; the variant for images is ours.
    """

    def __init__(
        self,
        model: Any,
        *,
        variant: Variant = "ours",
        select: Select = "all",
        views: Views | None = None,
        lr: float | None = None,
        ema: float = 0.999,
        restore: float = 0.01,
        confidence_threshold: float = 0.92,
        **options: Any,
    ) -> None:
        checks.expect_choice("CoTTA", "variant", variant, ("official", "ours"))
        official = variant == "official"
        defaults: dict[str, Any] = {"region": "full", "lr_decay": 1.0}
        if official:
            defaults |= {"mode": "train", "guards": Guards(max_loss_ratio=None, max_drift=None)}
        super().__init__(
            model,
            select=select,
            views=("identity" if official else "rot4") if views is None else views,
            lr=(1e-3 if official else 1e-4) if lr is None else lr,
            ema=ema,
            restore=restore,
            **(defaults | options),
        )
        self.variant, self.confidence_threshold = variant, confidence_threshold
        self._random = official and views is None

    def objective(self, frame: FrameContext) -> Tensor:
        """Return the cross-entropy under the teacher, or the L1 distance from it."""
        if self.variant == "ours":
            return super().objective(frame)
        sure = self.run("source", frame.region).image.float().softmax(1).amax(1).mean()
        frame.metrics["anchor"] = float(sure)
        target = self.run("teacher", frame.region)
        if frame.metrics["anchor"] < self.confidence_threshold:
            views = self.views if not self._random else [random_augmentation(self.generator) for _ in range(32)]
            images = [back(self.run("teacher", there(frame.region)).image) for there, back in views]
            target = target.with_image(torch.stack(images).mean(0))
        frame.scratch["target"] = target
        return entropy(self.run("student", frame.region).image, target.image).mean()


def random_augmentation(generator: torch.Generator) -> View:
    """Return a random change of gain, gamma, place, angle and noise, and perhaps a flip; nothing undoes it."""
    gain, gamma, angle, right, down, noise, flip = torch.rand(
        7, generator=generator, dtype=torch.float32, device="cpu"
    ).tolist()
    seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))

    def change(x: Tensor) -> Tensor:
        flat = x.reshape(-1, *x.shape[-3:])
        turn = torch.tensor((2 * angle - 1) * torch.pi / 12, dtype=torch.float32, device="cpu")
        shift = [(2 * right - 1) / 8, (2 * down - 1) / 8]
        rows = [[turn.cos(), -turn.sin(), shift[0]], [turn.sin(), turn.cos(), shift[1]]]
        grid = F.affine_grid(
            torch.tensor(rows, dtype=torch.float32, device="cpu").to(flat).expand(len(flat), 2, 3),
            list(flat.shape),
            align_corners=False,
        )
        flat = F.grid_sample(flat, grid, padding_mode="border", align_corners=False)
        flat = (flat.clamp(1e-6, 1) ** (0.7 + 0.6 * gamma) * (0.6 + 0.8 * gain)).clamp(0, 1)
        flat = flat.flip(-1) if flip < 0.5 else flat
        generator = torch.Generator("cpu").manual_seed(seed)
        grain = torch.randn(flat.shape, generator=generator, dtype=torch.float32, device="cpu").to(flat)
        return (flat + 0.005 * noise * grain).reshape(x.shape)

    return change, lambda image: image
