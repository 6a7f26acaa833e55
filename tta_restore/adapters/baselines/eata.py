"""EATA: learn from reliable and new samples, with a Fisher-weighted penalty on leaving the source."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks
from tta_restore.adapters.baselines.entropy import EntropyAdapter, Variant, entropy, view_variance
from tta_restore.adapters.frame import FrameContext


class EATA(EntropyAdapter, method="eata"):
    """:class:`Tent` that weights reliable samples, skips redundant ones and penalizes the Fisher distance from the
    source.

    The official variant uses pixels whose entropy is below ``entropy_margin * ln C`` and whose softmax is not too
    similar to the running mean of those used, each with weight exp(margin - entropy). Three channels in [0, 1] never
    get below the margin: on images it does nothing, and reports that. In our variant each pixel has weight
    exp(-variance / ``temperature``), and frames whose thumbnail is similar to the running mean of those used are
    skipped.

    Args:
        model: see ``EntropyAdapter``, as for ``options``.
        variant: see ``EntropyAdapter``.
        lr: learning rate of SGD with momentum 0.9.
        entropy_margin: largest entropy of a reliable pixel, as a fraction of the largest possible one.
        max_similarity: cosine to the running mean beyond which a sample is redundant; by default 0.05 in the official
            variant, 0.99 in ours.
        temperature: variance at which a pixel's weight has fallen to 1 / e, in our variant.
        fisher: importance of each adapted tensor's scalars by name, see :meth:`measure_fisher`; None for no penalty.
        fisher_weight: weight of the penalty on the squared distance from the source.

    Source: Niu et al., Efficient test-time model adaptation without forgetting, ICML 2022; the variant for images is
    ours.
    """

    def __init__(
        self,
        model: Any,
        *,
        variant: Variant = "ours",
        lr: float = 1e-3,
        entropy_margin: float = 0.4,
        max_similarity: float | None = None,
        temperature: float = 1e-3,
        fisher: Mapping[str, Tensor] | None = None,
        fisher_weight: float = 2000.0,
        **options: Any,
    ) -> None:
        for name, value in (("lr", lr), ("entropy_margin", entropy_margin), ("fisher_weight", fisher_weight)):
            checks.expect_number("EATA", name, value, minimum=0)
        checks.expect_number("EATA", "temperature", temperature, above=0)
        checks.expect_number("EATA", "max_similarity", max_similarity, optional=True)
        super().__init__(model, variant=variant, **options)
        self.lr, self.entropy_margin, self.temperature = lr, entropy_margin, temperature
        usual = 0.05 if variant == "official" else 0.99
        self.max_similarity = usual if max_similarity is None else max_similarity
        self.fisher_weight = fisher_weight
        self._fisher = dict(fisher or {})

    def initial_memory(self) -> dict[str, Any]:
        """Return the running mean of used samples, and counts of reliable and of used ones."""
        return {"mean": None, "reliable": 0, "used": 0}

    def make_optimizer(self, tensors: list[Tensor], role: str = "student") -> torch.optim.Optimizer:
        """Return SGD with momentum."""
        return torch.optim.SGD(tensors, lr=self.lr, momentum=0.9)

    def objective(self, frame: FrameContext) -> Tensor:
        """Return the weighted uncertainty of reliable and new samples, plus the penalty."""
        loss, frame.scratch["used"] = self._entropies(frame) if self.variant == "official" else self._variances(frame)
        for name, importance in self._fisher.items():
            tensor = self.student[name]
            pull = importance.to(tensor) * (tensor - self.source[name].to(tensor)).square()
            loss = loss + self.fisher_weight * pull.sum()
        return loss

    def accept(self, frame: FrameContext, loss: Tensor) -> str | None:
        """Reject a step without a reliable and new sample."""
        return None if frame.scratch["used"] else "nothing is reliable and new"

    def measure_fisher(self, frames: Iterable[Tensor]) -> dict[str, Tensor]:
        """Return the importance of the adapted scalars on frames of the source domain: mean squared gradients."""
        total = {name: torch.zeros_like(tensor) for name, tensor in self.source.items()}
        frames = list(frames)
        for x in frames:
            with self._session(x) as frame, self._working_on(self.state.view()), torch.enable_grad():
                if self.variant == "official":
                    image = self.student_image(frame)
                    loss = F.cross_entropy(image.float(), image.argmax(1))
                else:
                    loss = view_variance(self.student_views(frame)).mean()
                for name, gradient in zip(total, self.gradients(loss), strict=True):
                    if gradient is not None:
                        total[name] += gradient.square()
        return {name: value / max(len(frames), 1) for name, value in total.items()}

    def _entropies(self, frame: FrameContext) -> tuple[Tensor, int]:
        image = self.student_image(frame)
        uncertainty, limit, mean = entropy(image), self.entropy_margin * math.log(image.shape[1]), self.memory["mean"]
        softmax = image.detach().float().softmax(1)
        used = uncertainty.detach() < limit
        self.memory["reliable"] += int(used.sum())
        if mean is not None:
            used &= (
                F.cosine_similarity(mean.to(softmax).view(-1, *[1] * (softmax.ndim - 2)), softmax).abs()
                < self.max_similarity
            )
        count = int(used.sum())
        self.memory["used"] += count
        if not count:
            return uncertainty.mean(), 0
        self._remember(softmax.movedim(1, -1)[used].mean(0))
        weights = (limit - uncertainty.detach()).exp()
        return (weights * uncertainty)[used].mean(), count

    def _variances(self, frame: FrameContext) -> tuple[Tensor, int]:
        uncertainty = view_variance(self.student_views(frame))
        look = F.adaptive_avg_pool2d(frame.region.reshape(-1, *frame.region.shape[-3:]).float(), 8).mean((0, 1))
        look, mean = (look - look.mean()).flatten(), self.memory["mean"]
        new = mean is None or float(F.cosine_similarity(look, mean.to(look), dim=0)) < self.max_similarity
        self.memory["reliable"] += 1
        self.memory["used"] += int(new)
        if new:
            self._remember(look)
        weights = (-uncertainty.detach() / self.temperature).exp()
        return (weights * uncertainty).mean(), int(new)

    def _remember(self, sample: Tensor) -> None:
        mean = self.memory["mean"]
        self.memory["mean"] = sample if mean is None else 0.9 * mean.to(sample) + 0.1 * sample
