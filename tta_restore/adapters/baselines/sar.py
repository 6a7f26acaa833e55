"""SAR: sharpness-aware minimization on the reliable part of the output, with a reset on collapse."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore.adapters.baselines.entropy import EntropyAdapter, Variant, entropy, view_variance
from tta_restore.adapters.frame import FrameContext
from tta_restore.adapters.state import Guards


class SAR(EntropyAdapter, method="sar"):
    """:class:`Tent` on reliable pixels only, with the gradient at the worst point near the weights, and with resets.

    A step has two phases: it moves the weights by ``rho`` along the gradient, computes the gradient there, and applies
    that one to the original weights. In the official variant a pixel is reliable if its entropy is below
    ``entropy_margin * ln C`` at both points, and the adapter resets when the running loss falls below
    ``reset_threshold``. Three channels in [0, 1] never get below the margin: on images it does nothing, and reports
    that. In our variant the ``reliable_fraction`` of pixels with the least variance between views is reliable, and the
    adapter resets when its output diverges from the source's (``Guards.min_source_psnr``).

    Args:
        model: see ``EntropyAdapter``, as for ``options``.
        variant: see ``EntropyAdapter``.
        lr: learning rate of SGD with momentum 0.9.
        rho: length of the first phase's step.
        entropy_margin: largest entropy of a reliable pixel, as a fraction of the largest possible one.
        reset_threshold: running loss below which the student resets, in the official variant.
        reliable_fraction: fraction of reliable pixels, in our variant.

    Source: Niu et al., Towards stable test-time adaptation in dynamic wild world, ICLR 2023; the variant for images is
    ours. Deviation: with nothing reliable no step is taken, where the released code lets the momentum go on.
    """

    def __init__(
        self,
        model: Any,
        *,
        variant: Variant = "ours",
        lr: float = 1e-3,
        rho: float = 0.05,
        entropy_margin: float = 0.4,
        reset_threshold: float = 0.2,
        reliable_fraction: float = 0.9,
        **options: Any,
    ) -> None:
        for name, value in (
            ("lr", lr),
            ("rho", rho),
            ("entropy_margin", entropy_margin),
            ("reset_threshold", reset_threshold),
        ):
            checks.expect_number("SAR", name, value, minimum=0)
        checks.expect_number("SAR", "reliable_fraction", reliable_fraction, minimum=0, maximum=1)
        defaults: dict[str, Any] = {"guards": Guards(min_source_psnr=20.0)} if variant == "ours" else {}
        super().__init__(model, variant=variant, **(defaults | options))
        self.lr, self.rho, self.entropy_margin = lr, rho, entropy_margin
        self.reset_threshold, self.reliable_fraction = reset_threshold, reliable_fraction

    def initial_memory(self) -> dict[str, Any]:
        """Return the running mean of the second loss."""
        return {"running": None}

    def make_optimizer(self, tensors: list[Tensor], role: str = "student") -> torch.optim.Optimizer:
        """Return SGD with momentum."""
        return torch.optim.SGD(tensors, lr=self.lr, momentum=0.9)

    def objective(self, frame: FrameContext) -> Tensor:
        """Return the mean uncertainty of the reliable pixels."""
        return self._over_reliable(frame, "reliable")

    def accept(self, frame: FrameContext, loss: Tensor) -> str | None:
        """Reject a step without a reliable pixel."""
        return None if frame.scratch["reliable"].any() else "no pixel is reliable"

    def optimize(self, frame: FrameContext, loss: Tensor) -> str | None:
        """Apply the gradient of the worst point within ``rho`` to the original weights."""
        student = list(self.student.values())
        first = self.gradients(loss)
        reached = [gradient for gradient in first if gradient is not None]
        norm = torch.stack([gradient.norm().cpu() for gradient in reached]).norm().item()
        here = [tensor.detach().clone() for tensor in student]
        with torch.no_grad():
            for tensor, gradient in zip(student, first, strict=True):
                if gradient is not None:
                    tensor.add_(gradient, alpha=self.rho / (norm + 1e-12))
        with torch.enable_grad():
            second = self._over_reliable(frame, "reliable twice", within=frame.scratch["reliable"])
        there = self.gradients(second)
        with torch.no_grad():
            for tensor, old in zip(student, here, strict=True):
                tensor.copy_(old)
        if not frame.scratch["reliable twice"].any():
            return "no pixel is reliable near by"
        value, running = second.item(), self.memory["running"]
        self.memory["running"] = value if running is None else 0.9 * running + 0.1 * value
        return self.step(frame, there)

    def after_step(self, frame: FrameContext) -> None:
        """Reset when the official variant has made everything certain."""
        if self.variant == "official" and self.memory["running"] < self.reset_threshold:
            self.restart()
            self.memory["running"] = None

    def cost(self) -> str:
        """Return the passes through the model for each frame, in words."""
        return f"per frame {self.steps} x {2 * len(self.views)} forward and backward"

    def _over_reliable(self, frame: FrameContext, note: str, within: Tensor | None = None) -> Tensor:
        output = frame.scratch.get("output")
        if self.variant == "official":
            image = self.student_image(frame)
            uncertainty = entropy(image)
            limit = self.entropy_margin * math.log(image.shape[1])
        else:
            uncertainty = view_variance(self.student_views(frame))
            rank = max(1, round(self.reliable_fraction * uncertainty.numel()))
            limit = float(uncertainty.detach().flatten().kthvalue(rank).values)
        if within is not None:
            frame.scratch["output"] = output  # returned is the output of the original weights
        reliable = uncertainty.detach() <= limit
        if within is not None:
            reliable &= within
        frame.scratch[note] = reliable
        return uncertainty[reliable].mean() if reliable.any() else uncertainty.mean()
