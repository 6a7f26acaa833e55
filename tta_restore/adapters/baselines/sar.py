"""SAR: sharpness-aware minimization on the reliable part of the output, with a restart when it collapses."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore.adapters.baselines.entropy import EntropyAdapter, Form, entropy, view_variance
from tta_restore.adapters.frame import Frame
from tta_restore.adapters.guards import Guards


class SAR(EntropyAdapter, method="sar"):
    """:class:`Tent` that looks at reliable pixels only, at the worst point near the weights, and starts afresh.

    Two phases per step: gradient, a step of length ``rho`` up it, the gradient there, and that one is taken from where
    the weights were. Literal: reliable is an entropy below ``margin`` x ln C, at both points; when the running loss
    falls below ``collapse`` everything starts afresh. Three channels in [0, 1] never get below the margin: on pictures
    the literal form does nothing, and says so. Regression: reliable are the ``quantile`` of pixels with the least
    variance between views, and the adapter starts afresh when its output leaves the source's (``Guards.divergence``).

    Args:
        model: see :class:`EntropyAdapter`, as for ``options``.
        form: see :class:`EntropyAdapter`.
        lr: learning rate of SGD with momentum 0.9.
        rho: length of the first step.
        margin: of reliable entropy, as a share of the largest possible one.
        collapse: running loss of the literal form below which the student starts afresh.
        quantile: share of pixels that count in the regression form.

    Source: Niu et al., Towards stable test-time adaptation in dynamic wild world, ICLR 2023; the regression form is
    ours. Deviation: with nothing reliable no step is taken, where the released code lets the momentum go on.
    """

    def __init__(
        self,
        model: Any,
        *,
        form: Form = "regression",
        lr: float = 1e-3,
        rho: float = 0.05,
        margin: float = 0.4,
        collapse: float = 0.2,
        quantile: float = 0.9,
        **options: Any,
    ) -> None:
        for name, value in (("lr", lr), ("rho", rho), ("margin", margin), ("collapse", collapse)):
            checks.expect_number("SAR", name, value, minimum=0)
        checks.expect_number("SAR", "quantile", quantile, minimum=0, maximum=1)
        defaults: dict[str, Any] = {"guards": Guards(divergence=20.0)} if form == "regression" else {}
        super().__init__(model, form=form, **(defaults | options))
        self.lr, self.rho, self.margin, self.collapse, self.quantile = lr, rho, margin, collapse, quantile

    def initial_extra(self) -> dict[str, Any]:
        """Running mean of the second loss."""
        return {"running": None}

    def make_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(parameters, lr=self.lr, momentum=0.9)

    def objective(self, frame: Frame) -> Tensor:
        """Mean uncertainty of the reliable pixels."""
        return self._over_reliable(frame, "reliable")

    def accept(self, frame: Frame, loss: Tensor) -> str | None:
        """Not without a reliable pixel."""
        return None if frame.notes["reliable"].any() else "no pixel is reliable"

    def optimize(self, frame: Frame, loss: Tensor) -> str | None:
        """The gradient of the worst point within ``rho``, applied where the weights are."""
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
            second = self._over_reliable(frame, "reliable twice", within=frame.notes["reliable"])
        there = self.gradients(second)
        with torch.no_grad():
            for tensor, old in zip(student, here, strict=True):
                tensor.copy_(old)
        if not frame.notes["reliable twice"].any():
            return "no pixel is reliable near by"
        value, running = second.item(), self.extra["running"]
        self.extra["running"] = value if running is None else 0.9 * running + 0.1 * value
        return self.step(frame, there)

    def after_step(self, frame: Frame) -> None:
        """Start afresh when the literal form has made everything certain."""
        if self.form == "literal" and self.extra["running"] < self.collapse:
            self.restart()
            self.extra["running"] = None

    def config(self) -> dict[str, Any]:
        """Settings that a saved state depends on."""
        names = ("lr", "rho", "margin", "collapse", "quantile")
        return super().config() | {name: getattr(self, name) for name in names}

    def cost(self) -> str:
        """Passes through the model for each frame."""
        return f"per frame {self.steps} x {2 * len(self.views)} forward and backward"

    def _over_reliable(self, frame: Frame, note: str, within: Tensor | None = None) -> Tensor:
        output = frame.notes.get("output")
        if self.form == "literal":
            image = self.student_image(frame)
            uncertainty = entropy(image)
            limit = self.margin * math.log(image.shape[1])
        else:
            uncertainty = view_variance(self.student_views(frame))
            rank = max(1, round(self.quantile * uncertainty.numel()))
            limit = float(uncertainty.detach().flatten().kthvalue(rank).values)
        if within is not None:
            frame.notes["output"] = output  # what is given is what the weights themselves made
        reliable = uncertainty.detach() <= limit
        if within is not None:
            reliable &= within
        frame.notes[note] = reliable
        return uncertainty[reliable].mean() if reliable.any() else uncertainty.mean()
