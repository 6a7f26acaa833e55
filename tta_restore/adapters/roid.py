"""ROID's weight ensembling: after every step a little of the source is mixed back in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tta_restore import _checks
from tta_restore.adapters import parameter_sets
from tta_restore.adapters.frame import Frame
from tta_restore.adapters.self_taught import SelfTaught, view_variance


class ROID(SelfTaught, method="roid"):
    """Consistency of the student's views, weighted by how certain they are, with the source mixed back in.

    Only the form for pictures exists: of the published method it keeps the weight ensembling, a deterministic
    counterpart of stochastic restore, and weights by certainty; its loss over classes has no meaning for pictures.

    Args:
        model: see :class:`SelfTaught`, as for ``options``.
        lr: learning rate of Adam.
        keep: share of itself that the student keeps after each step; the rest is the source's.
        temperature: variance at which a pixel's weight has fallen to 1 / e.

    Source: Marsden et al., Universal test-time adaptation through weight ensembling, diversity weighting, and prior
    correction, WACV 2024.
    """

    def __init__(
        self, model: Any, *, lr: float = 1e-3, keep: float = 0.99, temperature: float = 1e-3, **options: Any
    ) -> None:
        _checks.expect_number("ROID", "lr", lr, minimum=0)
        _checks.expect_number("ROID", "temperature", temperature, above=0)
        _checks.expect_number("ROID", "keep", keep, minimum=0, maximum=1)
        super().__init__(model, form="regression", **options)
        self.lr, self.kept, self.temperature = lr, keep, temperature

    def make_optimiser(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
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
