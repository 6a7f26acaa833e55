"""What methods have in common that were made for classifiers and learn from the student's own output."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore.adapters import state as parameter_sets
from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.frame import Frame
from tta_restore.adapters.guards import Guards
from tta_restore.adapters.injection import Semantic
from tta_restore.adapters.select import Select
from tta_restore.adapters.views import Views
from tta_restore.models import Restoration, RestorerSpec, as_restorer
from tta_restore.models.restorer import outputs
from tta_restore.models.restorer.normalization import normalization_layers

Form = Literal["literal", "regression"]


def entropy(image: Tensor, target: Tensor | None = None) -> Tensor:
    """Entropy in nats of each pixel's softmax over channels, or its cross-entropy under the softmax of ``target``.

    Shape: image (B, C, H, W), or (B, C) of a classifier, taken as logits -> (B, H, W), or (B,).
    """
    logarithm = image.float().movedim(1, -1).log_softmax(-1)
    weights = logarithm.exp() if target is None else target.float().movedim(1, -1).softmax(-1)
    return -(weights * logarithm).sum(-1)


class EntropyAdapter(Adapter):
    """A student that needs no teacher: it minimizes the uncertainty of its own output.

    In the literal form, uncertainty is the entropy of a softmax over channels, which means nothing for pictures; the
    model runs in train mode, so that BatchNorm uses the frame's statistics; what is given is the output of before the
    step. In the regression form, uncertainty is the variance between the student's views, each turned back, and their
    mean of before the step is given.

    Args:
        model: see :class:`Adapter`, as for ``options``.
        form: "literal", the published rule; "regression", the same idea for pictures.
        select: which weights to adapt; by default injected ones if there are any, else those of normalization layers,
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
        checks.expect_choice(type(self).__name__, "form", form, ("literal", "regression"))
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
            raw = outputs.transform(restoration.raw, lambda _, leaf: leaf.detach())
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
    """Injected weights if there are any, else those of normalization layers, else all biases."""
    if semantic is not None and semantic.at is not None:
        return "injected"
    if isinstance(module, nn.Module) and any(True for _ in normalization_layers(module)):
        return "norm"
    return "bias"


class Tent(EntropyAdapter, method="tent"):
    """Entropy minimization on the weights of normalization layers, with Adam.

    On pictures the literal form saturates colors: the entropy of a softmax over values in [0, 1] lies between 0.975
    and 1.099 whatever they show. The regression form minimizes the variance between views. On the streams measured for
    this package neither gained anything over :class:`SelfEnsemble`.

    Args:
        model: see :class:`EntropyAdapter`, as for ``options``.
        form: see :class:`EntropyAdapter`.
        lr: learning rate.
        betas: Adam's.

    Source: Wang et al., Tent: fully test-time adaptation by entropy minimization, ICLR 2021; the regression form is
    ours.
    """

    def __init__(
        self,
        model: Any,
        *,
        form: Form = "regression",
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        **options: Any,
    ) -> None:
        checks.expect_number("Tent", "lr", lr, minimum=0)
        super().__init__(model, form=form, **options)
        self.lr, self.betas = lr, tuple(betas)

    def make_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas)

    def objective(self, frame: Frame) -> Tensor:
        """Mean entropy, or mean variance between views."""
        if self.form == "literal":
            return entropy(self.student_image(frame)).mean()
        return view_variance(self.student_views(frame)).mean()

    def config(self) -> dict[str, Any]:
        """Settings that a saved state depends on."""
        return super().config() | {"lr": self.lr, "betas": list(self.betas)}


class ROID(EntropyAdapter, method="roid"):
    """Consistency of the student's views, weighted by how certain they are, with the source mixed back in.

    Only the form for pictures exists: of the published method it keeps the weight ensembling, a deterministic
    counterpart of stochastic restore, and weights by certainty; its loss over classes has no meaning for pictures.

    Args:
        model: see :class:`EntropyAdapter`, as for ``options``.
        lr: learning rate of Adam.
        keep: share of itself that the student keeps after each step; the rest is the source's.
        temperature: variance at which a pixel's weight has fallen to 1 / e.

    Source: Marsden et al., Universal test-time adaptation through weight ensembling, diversity weighting, and prior
    correction, WACV 2024.
    """

    def __init__(
        self, model: Any, *, lr: float = 1e-3, keep: float = 0.99, temperature: float = 1e-3, **options: Any
    ) -> None:
        checks.expect_number("ROID", "lr", lr, minimum=0)
        checks.expect_number("ROID", "temperature", temperature, above=0)
        checks.expect_number("ROID", "keep", keep, minimum=0, maximum=1)
        super().__init__(model, form="regression", **options)
        self.lr, self.kept, self.temperature = lr, keep, temperature

    def make_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(parameters, lr=self.lr)

    def objective(self, frame: Frame) -> Tensor:
        """Variance between views, weighted by certainty."""
        uncertainty = view_variance(self.student_views(frame))
        return ((-uncertainty.detach() / self.temperature).exp() * uncertainty).mean()

    def after_step(self, frame: Frame) -> None:
        """Mix the source back in."""
        parameter_sets.average(self.student, {n: t.to(self.student[n]) for n, t in self.source.items()}, self.kept)

    def config(self) -> dict[str, Any]:
        """Settings that a saved state depends on."""
        return super().config() | {"lr": self.lr, "keep": self.kept, "temperature": self.temperature}
