"""What methods have in common that were made for classifiers and learn from the student's own output."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tta_restore import _checks
from tta_restore.adapters.base import Adapter
from tta_restore.adapters.frame import Frame
from tta_restore.adapters.guards import Guards
from tta_restore.adapters.selection import Select
from tta_restore.adapters.semantic import Semantic
from tta_restore.adapters.views import Views
from tta_restore.models import Restoration, RestorerSpec, as_restorer, structure
from tta_restore.models.normalization import normalization_layers

Form = Literal["literal", "regression"]


def entropy(image: Tensor, target: Tensor | None = None) -> Tensor:
    """Entropy in nats of each pixel's softmax over channels, or its cross-entropy under the softmax of ``target``.

    Shape: image (B, C, H, W), or (B, C) of a classifier, taken as logits -> (B, H, W), or (B,).
    """
    logarithm = image.float().movedim(1, -1).log_softmax(-1)
    weights = logarithm.exp() if target is None else target.float().movedim(1, -1).softmax(-1)
    return -(weights * logarithm).sum(-1)


class SelfTaught(Adapter):
    """A student that needs no teacher: it minimises the uncertainty of its own output.

    In the literal form, uncertainty is the entropy of a softmax over channels, which means nothing for pictures; the
    model runs in train mode, so that BatchNorm uses the frame's statistics; what is given is the output of before the
    step. In the regression form, uncertainty is the variance between the student's views, each turned back, and their
    mean of before the step is given.

    Args:
        model: see :class:`Adapter`, as for ``options``.
        form: "literal", the published rule; "regression", the same idea for pictures.
        select: which weights to adapt; by default injected ones if there are any, else those of normalisation layers,
            else all biases.
    """

    roles: ClassVar[tuple[str, ...]] = ("student",)

    def __init__(
        self,
        model: Any,
        *,
        form: Form,
        select: Select | None = None,
        semantic: Semantic | None = None,
        views: Views | None = None,
        spec: RestorerSpec | None = None,
        **options: Any,
    ) -> None:
        _checks.expect_choice(type(self).__name__, "form", form, ("literal", "regression"))
        restorer = as_restorer(model, spec)
        if select is None:
            select = usual_selection(restorer.module, semantic)
        self.form = form
        if form == "literal":
            defaults: dict[str, Any] = {"mode": "train", "guards": Guards(spike=None, drift=None)}
        else:
            defaults = {}
        views = ("identity" if form == "literal" else "rot4") if views is None else views
        super().__init__(restorer, select=select, semantic=semantic, views=views, **(defaults | options))

    def student_views(self, frame: Frame) -> Tensor:
        """The student's views of the region, turned back, with gradient; their mean is kept to be given.

        Shape: (V, B, C, H, W).
        """
        runs = [(self.run("student", there(frame.region)), back) for there, back in self.views]
        views = torch.stack([back(restoration.image).float() for restoration, back in runs])
        self.keep(frame, runs[0][0], views.mean(0))
        return views

    def student_image(self, frame: Frame) -> Tensor:
        """The student's restoration of the region, with gradient; kept to be given."""
        restoration = self.run("student", frame.region)
        self.keep(frame, restoration, restoration.image)
        return restoration.image

    def keep(self, frame: Frame, restoration: Restoration, image: Tensor) -> None:
        """Give this image for the frame, unless adaptation saw only a crop of it."""
        if not frame.cropped:
            raw = structure.transform(restoration.raw, lambda _, leaf: leaf.detach())
            frame.notes["output"] = Restoration(image.detach().to(restoration.image.dtype), raw, restoration.path)

    def emit(self, frame: Frame) -> Restoration:
        """What the student gave before its last step, or now, where that covers not all of the frame."""
        return frame.notes.get("output") or self.ensemble("student", frame.image)

    def config(self) -> dict[str, Any]:
        """Settings that a saved state depends on."""
        return super().config() | {"form": self.form}

    def cost(self) -> str:
        """Passes through the model for each frame."""
        return f"per frame {self.steps} x {len(self.views)} forward and backward"


def view_variance(views: Tensor) -> Tensor:
    """Variance over views (V, B, C, H, W), mean over channels -> (B, H, W)."""
    return views.var(0, correction=0).mean(1)


def usual_selection(module: Any, semantic: Semantic | None) -> Select:
    """Injected weights if there are any, else those of normalisation layers, else all biases."""
    if semantic is not None and semantic.at is not None:
        return "injected"
    if isinstance(module, nn.Module) and any(True for _ in normalization_layers(module)):
        return "norm"
    return "bias"
