"""Methods made for classifiers, which minimize the uncertainty of the student's output: Tent, ROID and their base."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore.adapters import state as parameter_sets
from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.frame import FrameContext
from tta_restore.adapters.injection import Semantic
from tta_restore.adapters.select import Select
from tta_restore.adapters.state import Guards
from tta_restore.adapters.views import Views
from tta_restore.models import Restoration, RestorerSpec, as_restorer
from tta_restore.models.restorer import outputs
from tta_restore.models.restorer.normalization import normalization_layers

Variant = Literal["official", "ours"]


def entropy(image: Tensor, target: Tensor | None = None) -> Tensor:
    """Return the entropy in nats of each pixel's softmax over channels, or the cross-entropy under ``target``'s.

    Shape: image (B, C, H, W), or (B, C) of a classifier, taken as logits -> (B, H, W), or (B,).
    """
    logarithm = image.float().movedim(1, -1).log_softmax(-1)
    weights = logarithm.exp() if target is None else target.float().movedim(1, -1).softmax(-1)
    return -(weights * logarithm).sum(-1)


class EntropyAdapter(Adapter):
    """Adapter without a teacher, whose student minimizes the uncertainty of its own output.

    In the official variant, uncertainty is the entropy of a softmax over channels, which has no meaning for images; the
    model runs in train mode, so that BatchNorm uses the frame's statistics, and the output computed before the step is
    returned. In our variant, uncertainty is the variance between the student's views, each transformed back, and their
    mean computed before the step is returned.

    Args:
        model: see :class:`Adapter`, as for ``options``.
        variant: "official", the published rule; "ours", the same idea for images.
        select: which weights to adapt; by default injected ones if there are any, else those of normalization layers,
            else all biases.
    """

    roles: ClassVar[tuple[str, ...]] = ("student",)

    def __init__(
        self,
        model: Any,
        *,
        variant: Variant,
        select: Select | None = None,
        semantic: Semantic | None = None,
        views: Views | None = None,
        spec: RestorerSpec | None = None,
        **options: Any,
    ) -> None:
        checks.expect_choice(type(self).__name__, "variant", variant, ("official", "ours"))
        restorer = as_restorer(model, spec)
        if select is None:
            select = usual_selection(restorer.module, semantic)
        self.variant = variant
        if variant == "official":
            defaults: dict[str, Any] = {"mode": "train", "guards": Guards(max_loss_ratio=None, max_drift=None)}
        else:
            defaults = {}
        views = ("identity" if variant == "official" else "rot4") if views is None else views
        super().__init__(restorer, select=select, semantic=semantic, views=views, **(defaults | options))

    def student_views(self, frame: FrameContext) -> Tensor:
        """Return the student's views of the region, transformed back, with gradient; their mean is kept for ``emit``.

        Shape: (V, B, C, H, W).
        """
        runs = [self.run_view("student", frame.region, view) for view in self.views]
        views = torch.stack([restoration.image.float() for restoration in runs])
        self.keep(frame, runs[0], views.mean(0))
        return views

    def student_image(self, frame: FrameContext) -> Tensor:
        """Return the student's restoration of the region, with gradient; it is kept for ``emit``."""
        restoration = self.run("student", frame.region)
        self.keep(frame, restoration, restoration.image)
        return restoration.image

    def keep(self, frame: FrameContext, restoration: Restoration, image: Tensor) -> None:
        """Keep this image for ``emit``, unless adaptation used only a crop of the frame."""
        if not frame.cropped:
            raw = outputs.transform(restoration.raw, lambda _, leaf: leaf.detach())
            frame.scratch["output"] = Restoration(image.detach().to(restoration.image.dtype), raw, restoration.path)

    def emit(self, frame: FrameContext) -> Restoration:
        """Return the student's output computed before its last step, or a new one where that covers a crop only."""
        return frame.scratch.get("output") or self.ensemble("student", frame.image)

    def cost(self) -> str:
        """Return the passes through the model for each frame, in words."""
        return f"per frame {self.steps} x {len(self.views)} forward and backward"


def view_variance(views: Tensor) -> Tensor:
    """Return the variance over views (V, B, C, H, W), averaged over channels -> (B, H, W)."""
    return views.var(0, correction=0).mean(1)


def usual_selection(module: Any, semantic: Semantic | None) -> Select:
    """Return injected weights if there are any, else those of normalization layers, else all biases."""
    if semantic is not None and semantic.at is not None:
        return "injected"
    if isinstance(module, nn.Module) and any(True for _ in normalization_layers(module)):
        return "norm"
    return "bias"


class Tent(EntropyAdapter, method="tent"):
    """Entropy minimization on the weights of normalization layers, with Adam.

    On images the official variant saturates colors: the entropy of a softmax over values in [0, 1] lies between 0.975
    and 1.099 for any content. Our variant minimizes the variance between views.

    Args:
        model: see ``EntropyAdapter``, as for ``options``.
        variant: see ``EntropyAdapter``.
        lr: learning rate.
        betas: coefficients of Adam's running averages.

    Source: Wang et al., Tent: fully test-time adaptation by entropy minimization, ICLR 2021; the variant for
    images is ours.
    """

    def __init__(
        self,
        model: Any,
        *,
        variant: Variant = "ours",
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        **options: Any,
    ) -> None:
        checks.expect_number("Tent", "lr", lr, minimum=0)
        super().__init__(model, variant=variant, **options)
        self.lr, self.betas = lr, tuple(betas)

    def objective(self, frame: FrameContext) -> Tensor:
        """Return the mean entropy, or the mean variance between views."""
        if self.variant == "official":
            return entropy(self.student_image(frame)).mean()
        return view_variance(self.student_views(frame)).mean()


class ROID(EntropyAdapter, method="roid"):
    """Adapter that minimizes the certainty-weighted variance of views and averages its weights with the source's.

    Of the published method it keeps the weight ensembling, a deterministic counterpart of stochastic restoration, and
    the weighting by certainty; its loss over classes has no meaning for images.

    Args:
        model: see ``EntropyAdapter``, as for ``options``.
        lr: learning rate of Adam.
        momentum: fraction of itself that the student keeps after each step; the rest is the source's.
        temperature: variance at which a pixel's weight has fallen to 1 / e.

    Source: Marsden et al., Universal test-time adaptation through weight ensembling, diversity weighting, and prior
    correction, WACV 2024.
    """

    def __init__(
        self, model: Any, *, lr: float = 1e-3, momentum: float = 0.99, temperature: float = 1e-3, **options: Any
    ) -> None:
        checks.expect_number("ROID", "lr", lr, minimum=0)
        checks.expect_number("ROID", "temperature", temperature, above=0)
        checks.expect_number("ROID", "momentum", momentum, minimum=0, maximum=1)
        super().__init__(model, variant="ours", **options)
        self.lr, self.momentum, self.temperature = lr, momentum, temperature

    def objective(self, frame: FrameContext) -> Tensor:
        """Return the variance between views, weighted by certainty."""
        uncertainty = view_variance(self.student_views(frame))
        return ((-uncertainty.detach() / self.temperature).exp() * uncertainty).mean()

    def after_step(self, frame: FrameContext) -> None:
        """Average the student with the source."""
        source = {name: tensor.to(self.student[name]) for name, tensor in self.source.items()}
        parameter_sets.ema_update(self.student, source, self.momentum)
