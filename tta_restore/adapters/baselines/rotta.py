"""RoTTA: steps on a memory bank of recent and certain patches, towards a slow teacher."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.baselines.cotta import random_augmentation
from tta_restore.adapters.baselines.entropy import Variant, entropy, usual_selection, view_variance
from tta_restore.adapters.frame import FrameContext
from tta_restore.adapters.injection import Semantic
from tta_restore.adapters.select import Select
from tta_restore.adapters.views import Views
from tta_restore.models import Restoration, RestorerSpec, as_restorer
from tta_restore.models.restorer.tiles import is_map

__all__ = ["RoTTA"]


class RoTTA(Adapter, method="rotta"):
    """Continual adapter that learns from a memory bank of patches, weighted by age, as published or for images.

    Every frame leaves a patch in the bank. A full bank drops the patch with the largest
    ``timeliness_weight / (1 + exp(-age / capacity)) + uncertainty_weight * uncertainty``, if that exceeds the score of
    the new one. Every ``interval`` patches the student takes a step on all of them towards the teacher, which follows
    it by EMA. Returns the teacher's output computed before the update.

    The official variant takes channels for classes: uncertainty is the normalized entropy of their softmax, the bank is
    balanced over the channel that is largest on average, and the student sees a strong augmentation that is not
    inverted, so that its target is misaligned. In our variant uncertainty is the variance between the teacher's views,
    there are no classes, and the student sees a view with noise, which is transformed back.

    Args:
        model: see :class:`Adapter`, as for ``options``.
        variant: "official", the published rule; "ours", the same idea for images.
        select: which weights to adapt; by default injected ones if there are any, else those of normalization layers,
            else all biases.
        semantic: see :class:`Adapter`.
        views: the teacher's test-time augmentations.
        lr: learning rate of Adam; by default 1e-3 in the official variant, 1e-4 in ours.
        ema: EMA momentum of the teacher.
        capacity: patches in the bank; by default 64 in the official variant, 16 in ours.
        interval: patches between two steps; by default ``capacity``, in our variant a quarter of it.
        patch_size: side of a patch in pixels; where the frame is smaller, its side.
        timeliness_weight: weight of the age in the score.
        uncertainty_weight: weight of the uncertainty in the score.
        temperature: variance between views at which the uncertainty of our variant is a half.
        noise_std: standard deviation of the noise that the student of our variant sees, in [0, 1] values.
        spec: see :class:`Adapter`.

    Source: Yuan, Xie and Li, Robust test-time adaptation in dynamic scenarios, CVPR 2023; the variant for images is
    ours. Deviation: BatchNorm layers keep the source's statistics, instead of running ones.
    """

    def __init__(
        self,
        model: Any,
        *,
        variant: Variant = "ours",
        select: Select | None = None,
        semantic: Semantic | None = None,
        views: Views | None = None,
        lr: float | None = None,
        ema: float = 0.999,
        capacity: int | None = None,
        interval: int | None = None,
        patch_size: int = 128,
        timeliness_weight: float = 1.0,
        uncertainty_weight: float = 1.0,
        temperature: float = 1e-3,
        noise_std: float = 0.02,
        spec: RestorerSpec | None = None,
        **options: Any,
    ) -> None:
        checks.expect_choice("RoTTA", "variant", variant, ("official", "ours"))
        official = variant == "official"
        capacity = (64 if official else 16) if capacity is None else capacity
        checks.expect_int("RoTTA", "capacity", capacity, minimum=1)
        interval = (capacity if official else max(capacity // 4, 1)) if interval is None else interval
        checks.expect_int("RoTTA", "interval", interval, minimum=1)
        checks.expect_int("RoTTA", "patch_size", patch_size, minimum=1)
        checks.expect_number("RoTTA", "temperature", temperature, above=0)
        checks.expect_number("RoTTA", "ema", ema, minimum=0, maximum=1)
        lr = (1e-3 if official else 1e-4) if lr is None else lr
        for name, value in (
            ("lr", lr),
            ("noise_std", noise_std),
            ("timeliness_weight", timeliness_weight),
            ("uncertainty_weight", uncertainty_weight),
        ):
            checks.expect_number("RoTTA", name, value, minimum=0)
        restorer = as_restorer(model, spec)
        if select is None:
            select = usual_selection(restorer.module, semantic)
        if views is None:
            views = "identity" if official else "rot4"
        super().__init__(restorer, select=select, semantic=semantic, views=views, **options)
        self.variant, self.lr, self.ema = variant, lr, ema
        self.capacity, self.interval, self.patch_size = capacity, interval, patch_size
        self.timeliness_weight, self.uncertainty_weight = timeliness_weight, uncertainty_weight
        self.temperature, self.noise_std = temperature, noise_std

    def initial_memory(self) -> dict[str, Any]:
        """Return an empty bank, and the number of patches since the last step."""
        return {"bank": [], "waiting": 0}

    def begin_frame(self, frame: FrameContext) -> None:
        """Restore the frame, put a patch of each of its images into the bank, and see whether a step is due."""
        sides = frame.image.shape[-2:]
        for key, value in frame.arguments.items():
            if is_map(value, sides):
                raise ValueError(
                    f"RoTTA: {key} has a value for each pixel of the frame, and the bank holds patches of other "
                    "frames; pass one value for the frame"
                )
        frame.scratch["output"] = self.ensemble("teacher", frame.image)
        for image in frame.region.split(1):
            self._insert(self._patch(image))
            self.memory["waiting"] += 1
        frame.metrics["bank"] = float(len(self.memory["bank"]))
        if self.memory["waiting"] < self.interval:
            frame.steps = 0
        else:
            self.memory["waiting"] = 0

    def objective(self, frame: FrameContext) -> Tensor:
        """Return the distance of the student from the teacher, mean over the bank, weighted by age."""
        losses = [self._timeliness(item["age"]) * self._distance(item["patch"]) for item in self.memory["bank"]]
        return torch.stack(losses).mean()

    def after_step(self, frame: FrameContext) -> None:
        """Update the teacher."""
        self.update_teacher(self.ema)

    def emit(self, frame: FrameContext) -> Restoration:
        """Return the teacher's restoration computed before the update."""
        return frame.scratch.get("output") or self.ensemble("teacher", frame.image)

    def cost(self) -> str:
        """Return the passes through the model for each frame, in words."""
        per_step = (
            f"{self.capacity} x {len(self.views) + 1} forward and 1 backward on patches of {self.patch_size} pixels"
        )
        views = len(self.views)
        return f"per frame {views} forward, {views} on a patch; every {self.interval} frames {per_step}"

    def _patch(self, image: Tensor) -> Tensor:
        """Return a patch at a random place. Shape: (1, ..., C, H, W) -> (1, ..., C, h, w)."""
        window = []
        for side in image.shape[-2:]:
            start = int(torch.randint(max(side - self.patch_size, 0) + 1, (), generator=self.generator, device="cpu"))
            window.append(slice(start, start + self.patch_size))
        return image[(..., *window)].detach().clone()

    def _insert(self, patch: Tensor) -> None:
        """Put a patch into the bank, where there is room or its score is lower than the largest one."""
        bank = self.memory["bank"]
        category, uncertainty = self._judge(patch)
        item = {"patch": patch, "age": 0, "category": category, "uncertainty": uncertainty}
        counts: dict[int, int] = {}
        for held in bank:
            counts[held["category"]] = counts.get(held["category"], 0) + 1
        categories = 1 if self.variant == "ours" else patch.shape[-3]
        if counts.get(category, 0) >= self.capacity / categories:
            rivals = {category}
        elif len(bank) < self.capacity:
            rivals = set()
        else:
            rivals = {name for name, count in counts.items() if count == max(counts.values())}
        if not rivals:
            bank.append(item)
        else:
            worst = max((held for held in bank if held["category"] in rivals), key=self._score)
            if self._score(worst) > self._score(item):
                bank[:] = [held for held in bank if held is not worst]
                bank.append(item)
        for held in bank:
            held["age"] += 1

    def _judge(self, patch: Tensor) -> tuple[int, float]:
        """Return the category of a patch and its uncertainty in [0, 1]."""
        if self.variant == "official":
            image = self.run("teacher", patch).image.float()
            softmax = image.softmax(-3).mean((-2, -1)).flatten(0, -2).mean(0)
            return int(softmax.argmax()), float(entropy(image).mean()) / math.log(max(image.shape[-3], 2))
        views = torch.stack([self.run_view("teacher", patch, view).image.float() for view in self.views])
        variance = float(view_variance(views).mean())
        return 0, variance / (variance + self.temperature)

    def _score(self, item: dict[str, Any]) -> float:
        """Return the score of an item; the largest one is dropped first."""
        age = self.timeliness_weight / (1 + math.exp(-item["age"] / self.capacity))
        return age + self.uncertainty_weight * item["uncertainty"]

    def _timeliness(self, age: int) -> float:
        return math.exp(-age / self.capacity) / (1 + math.exp(-age / self.capacity))

    def _distance(self, patch: Tensor) -> Tensor:
        """Return the loss of one patch."""
        target = self.ensemble("teacher", patch).image.float()
        if self.variant == "official":
            there, _ = random_augmentation(self.generator)
            return entropy(self.run("student", there(patch)).image.float(), target).mean()
        view = self.views[int(torch.randint(len(self.views), (), generator=self.generator, device="cpu"))]
        noise = torch.randn(patch.shape, generator=self.generator, dtype=torch.float32, device="cpu").to(patch)
        seen = (patch + self.noise_std * noise).clamp(0, 1)
        return (self.run_view("student", seen, view).image.float() - target).abs().mean()
