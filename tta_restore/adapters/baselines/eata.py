"""EATA: learn from what is reliable and new, and stay near the source where that matters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks
from tta_restore.adapters.baselines.entropy import EntropyAdapter, Form, entropy, view_variance
from tta_restore.adapters.frame import Frame


class EATA(EntropyAdapter, method="eata"):
    """:class:`Tent` with weights for reliable samples, none for redundant ones, and a pull to the source by Fisher.

    Literal: pixels whose entropy is below ``margin`` x ln C and whose softmax is not too near the running mean of those
    used; each counts exp(margin - entropy). Three channels in [0, 1] never get below the margin: on pictures the
    literal form does nothing, and says so. Regression: each pixel counts exp(-variance / ``temperature``), and frames
    that look like the running mean of those used (a thumbnail's cosine) are skipped.

    Args:
        model: see :class:`EntropyAdapter`, as for ``options``.
        form: see :class:`EntropyAdapter`.
        lr: learning rate of SGD with momentum 0.9.
        margin: of reliable entropy, as a share of the largest possible one.
        redundant: cosine to the running mean beyond which a sample is redundant.
        temperature: of the weights of the regression form, a variance.
        fisher: importance of each adapted tensor's scalars by name, see :meth:`measure_fisher`; None for no pull.
        fisher_weight: of the pull.

    Source: Niu et al., Efficient test-time model adaptation without forgetting, ICML 2022; the regression form is ours.
    """

    def __init__(
        self,
        model: Any,
        *,
        form: Form = "regression",
        lr: float = 1e-3,
        margin: float = 0.4,
        redundant: float | None = None,
        temperature: float = 1e-3,
        fisher: Mapping[str, Tensor] | None = None,
        fisher_weight: float = 2000.0,
        **options: Any,
    ) -> None:
        for name, value in (("lr", lr), ("margin", margin), ("fisher_weight", fisher_weight)):
            checks.expect_number("EATA", name, value, minimum=0)
        checks.expect_number("EATA", "temperature", temperature, above=0)
        checks.expect_number("EATA", "redundant", redundant, optional=True)
        super().__init__(model, form=form, **options)
        self.lr, self.margin, self.temperature = lr, margin, temperature
        self.redundant = (0.05 if form == "literal" else 0.99) if redundant is None else redundant
        self.fisher_weight = fisher_weight
        self._fisher = dict(fisher or {})

    def initial_extra(self) -> dict[str, Any]:
        """Running mean of what was used, and counts of samples that were reliable and that were used."""
        return {"mean": None, "reliable": 0, "used": 0}

    def make_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(parameters, lr=self.lr, momentum=0.9)

    def objective(self, frame: Frame) -> Tensor:
        """Weighted uncertainty of what is reliable and new, and the pull to the source."""
        loss, frame.notes["used"] = self._entropies(frame) if self.form == "literal" else self._variances(frame)
        for name, importance in self._fisher.items():
            tensor = self.student[name]
            pull = importance.to(tensor) * (tensor - self.source[name].to(tensor)).square()
            loss = loss + self.fisher_weight * pull.sum()
        return loss

    def accept(self, frame: Frame, loss: Tensor) -> str | None:
        """Not without a reliable and new sample."""
        return None if frame.notes["used"] else "nothing is reliable and new"

    def measure_fisher(self, frames: Iterable[Tensor]) -> dict[str, Tensor]:
        """Importance of the adapted scalars on frames of the source domain: mean squared gradient of the loss."""
        total = {name: torch.zeros_like(tensor) for name, tensor in self.source.items()}
        frames = list(frames)
        for x in frames:
            with self._session(x) as frame, self._working_on(self.state.view()), torch.enable_grad():
                if self.form == "literal":
                    image = self.student_image(frame)
                    loss = F.cross_entropy(image.float(), image.argmax(1))
                else:
                    loss = view_variance(self.student_views(frame)).mean()
                for name, gradient in zip(total, self.gradients(loss), strict=True):
                    if gradient is not None:
                        total[name] += gradient.square()
        return {name: value / max(len(frames), 1) for name, value in total.items()}

    def config(self) -> dict[str, Any]:
        """Settings that a saved state depends on."""
        names = ("lr", "margin", "redundant", "temperature", "fisher_weight")
        return super().config() | {name: getattr(self, name) for name in names} | {"fisher": bool(self._fisher)}

    def _entropies(self, frame: Frame) -> tuple[Tensor, int]:
        image = self.student_image(frame)
        uncertainty, limit, mean = entropy(image), self.margin * math.log(image.shape[1]), self.extra["mean"]
        softmax = image.detach().float().softmax(1)
        used = uncertainty.detach() < limit
        self.extra["reliable"] += int(used.sum())
        if mean is not None:
            used &= (
                F.cosine_similarity(mean.to(softmax).view(-1, *[1] * (softmax.ndim - 2)), softmax).abs()
                < self.redundant
            )
        count = int(used.sum())
        self.extra["used"] += count
        if not count:
            return uncertainty.mean(), 0
        self._remember(softmax.movedim(1, -1)[used].mean(0))
        weights = (limit - uncertainty.detach()).exp()
        return (weights * uncertainty)[used].mean(), count

    def _variances(self, frame: Frame) -> tuple[Tensor, int]:
        uncertainty = view_variance(self.student_views(frame))
        look = F.adaptive_avg_pool2d(frame.region.reshape(-1, *frame.region.shape[-3:]).float(), 8).mean((0, 1))
        look, mean = (look - look.mean()).flatten(), self.extra["mean"]
        new = mean is None or float(F.cosine_similarity(look, mean.to(look), dim=0)) < self.redundant
        self.extra["reliable"] += 1
        self.extra["used"] += int(new)
        if new:
            self._remember(look)
        weights = (-uncertainty.detach() / self.temperature).exp()
        return (weights * uncertainty).mean(), int(new)

    def _remember(self, sample: Tensor) -> None:
        mean = self.extra["mean"]
        self.extra["mean"] = sample if mean is None else 0.9 * mean.to(sample) + 0.1 * sample
