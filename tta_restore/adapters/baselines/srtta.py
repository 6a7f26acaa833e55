"""SRTTA-like adaptation: features of a frame that was degraded once more have to be those of the frame itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.baselines.entropy import view_variance
from tta_restore.adapters.frame import Frame
from tta_restore.adapters.injection import find_site, hooked
from tta_restore.adapters.select import Select
from tta_restore.adapters.views import Views
from tta_restore.data.datasets.mining import random_patches
from tta_restore.degradations import Blur, Clip, Compose, Noise
from tta_restore.losses import charbonnier_loss


class SRTTA(Adapter, method="srtta"):
    """Learns to see through one more degradation, at the level of features, and keeps the weights that matter most.

    Per step, patches of the frame are blurred and made noisy at random; the student's features of them have to meet the
    source's and its own features of the patches as they are. Weights on which the agreement of views depends most are
    put back to the source after every step. Given is the student's mean over views, after the steps.

    Like the published method in its losses and in what it keeps; its classifier of degradations is left out, and it was
    made for super-resolution. Nothing was measured of it on defocus.

    Args:
        model: a restorer of single frames; see :class:`Adapter`, as for ``options``.
        at: path of the module whose output is compared; "auto" for the deepest wide one.
        select: which weights to adapt.
        lr: learning rate of Adam.
        steps: updates per frame.
        patches: per step.
        patch: their side in pixels.
        blur: largest standard deviation of the added blur, in pixels.
        noise: largest standard deviation of the added noise, in stored values.
        keep: share of the adapted scalars, the most important ones on the first frame, that return to the source.
        views: that importance is judged by, and that the output is averaged over.

    Raises:
        ValueError: a setting is out of range, or there is no module ``at``.

    Source: Deng et al., Efficient test-time adaptation for super-resolution with second-order degradation and
    reconstruction, NeurIPS 2023; see above for what differs.
    """

    roles = ("student",)

    def __init__(
        self,
        model: Any,
        *,
        at: str = "auto",
        select: Select = "all",
        lr: float = 5e-5,
        steps: int = 10,
        patches: int = 4,
        patch: int = 48,
        blur: float = 2.0,
        noise: float = 10 / 255,
        keep: float = 0.5,
        views: Views = "d4",
        **options: Any,
    ) -> None:
        for name, value in (("patches", patches), ("patch", patch)):
            checks.expect_int("SRTTA", name, value, minimum=1)
        for name, value in (("lr", lr), ("blur", blur)):
            checks.expect_number("SRTTA", name, value, above=0)
        checks.expect_number("SRTTA", "noise", noise, minimum=0)
        checks.expect_number("SRTTA", "keep", keep, minimum=0, maximum=1)
        super().__init__(model, select=select, steps=steps, views=views, **options)
        self.at = find_site(self.restorer, at, asker="SRTTA").path
        self.lr, self.patches, self.patch = lr, patches, patch
        self.blur, self.noise, self.keep = blur, noise, keep
        # a Gaussian of standard deviation s has the root mean square radius s * sqrt(2)
        lens = Blur(radius=(0.0, blur * math.sqrt(2)), lens="gaussian", linear=False, log_uniform=False)
        self.degradation = Compose([lens, Noise(read_std=(0.0, noise), log_uniform=False), Clip()])

    def initial_extra(self) -> dict[str, Any]:
        """Which scalars return to the source, found on the first frame."""
        return {"important": None}

    def make_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(parameters, lr=self.lr)

    def begin_frame(self, frame: Frame) -> None:
        """Find the scalars that the agreement of views depends on most."""
        if self.extra["important"] is not None:
            return
        with torch.enable_grad():
            runs = [back(self.run("student", there(frame.region)).image.float()) for there, back in self.views]
            gradients = self.gradients(view_variance(torch.stack(runs)).mean())
        importance = [
            torch.zeros_like(tensor) if gradient is None else gradient.detach().square()
            for gradient, tensor in zip(gradients, self.student.values(), strict=True)
        ]
        ranked = torch.cat([values.flatten() for values in importance]).sort(descending=True).values
        count = round(self.keep * len(ranked))
        least = ranked[count - 1] if count else torch.inf
        self.extra["important"] = {name: values >= least for name, values in zip(self.student, importance, strict=True)}

    def objective(self, frame: Frame) -> Tensor:
        """Distance of features of degraded patches from the source's and the student's own features of the patches."""
        side = min(self.patch, *frame.region.shape[-2:])
        clean = random_patches(frame.region.float().cpu(), self.patches, side, self.generator).to(frame.region)
        with torch.no_grad():
            targets = [self._features(role, clean) for role in ("source", "student")]
        found = self._features("student", self._degraded(clean))
        return charbonnier_loss(found, targets[0]) + charbonnier_loss(found, targets[1])

    def after_step(self, frame: Frame) -> None:
        """Put the scalars that matter most back."""
        source = self.source
        with torch.no_grad():
            for name, tensor in self.student.items():
                important = self.extra["important"][name].to(tensor.device)
                tensor.copy_(torch.where(important, source[name].to(tensor), tensor))

    def config(self) -> dict[str, Any]:
        """Settings that a saved state depends on."""
        own = ("at", "lr", "patches", "patch", "blur", "noise", "keep")
        return super().config() | {name: getattr(self, name) for name in own}

    def cost(self) -> str:
        """Passes through the model for each frame."""
        return (
            f"per frame {self.steps} x (3 forward and 1 backward on {self.patches} patches of {self.patch} x "
            f"{self.patch}), {len(self.views)} forward for the output; once {len(self.views)} forward and backward"
        )

    def _features(self, role: str, image: Tensor) -> Tensor:
        """What the module puts out for an image, in at least float32."""
        seen: list[Tensor] = []
        with hooked(self._backbone.root, self.at, lambda features: seen.append(features) or features):
            self.run(role, image)
        features = torch.cat(seen)  # several where the model takes one image at a time
        return features.to(torch.promote_types(features.dtype, torch.float32))

    def _degraded(self, clean: Tensor) -> Tensor:
        """Degrade each patch with its own blur and noise, within [0, 1]."""
        parameters = self.degradation.sample(self.generator, len(clean))
        return self.degradation.apply(clean, parameters, self.generator)
