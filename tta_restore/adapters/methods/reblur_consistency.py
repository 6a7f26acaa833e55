"""ReblurConsistency: compare the restoration, blurred again by the estimated kernels, with the frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore.adapters.frame import FrameContext
from tta_restore.adapters.methods.defocus import DefocusAdapter, disagreement
from tta_restore.adapters.select import Select
from tta_restore.adapters.views import Views
from tta_restore.degradations.lens import KERNEL_SIZE
from tta_restore.models import Restoration


class ReblurConsistency(DefocusAdapter, method="reblur_consistency"):
    """Adapter that makes a restoration, blurred again, equal to the frame, with bounds on invented detail.

    On every frame the estimator reads the spatially varying blur, reduced to isotropic kernels, from the frame alone;
    the adapted restorer does not influence it. Then, `steps` times, the student's restoration is blurred with these
    kernels in linear light and compared with the frame. The comparison does not constrain what the blur removes (its
    null space), where a restorer that only minimizes it invents patterns, faster at higher learning rates. Four bounds
    prevent that:

    - `null_space_weight`: penalty on the part of the change from the source's restoration that the blur would remove;
    - `trust_radius`: the output lies within a ball around the source's restoration; the radius is this fraction of
      what the source itself changed in the frame, for any weights;
    - a student that starts a frame outside twice that ball is reset to the source;
    - where the source's restoration, blurred again, is nearer to the frame, it is the output.

    Otherwise the output is the teacher's self-ensemble, projected onto the ball.

    Args:
        model: a restorer of single frames at scale 1; see :class:`Adapter`, as for ``options``.
        estimator: a ``tta_restore.models.defocus.DefocusEstimator``; the shipped one by default.
        select: which weights to adapt.
        steps: optimizer steps per frame.
        lr: learning rate.
        ema: EMA momentum of the teacher at each step.
        null_space_weight: weight of the penalty on changes in the null space of the blur.
        trust_radius: radius of the ball, relative to the root mean square change that the source makes; None for no
            ball, no way back and no comparison with the source.
        border: pixels at each side that are not compared: blurring sees zeros beyond the frame.
        views: views that the output is averaged over, see :func:`resolve_views`.
        seed: of the adapter.

    Raises:
        ValueError: a setting is out of range; the model enlarges, or takes clips or other than 1 or 3 channels.

    Source: the reblurring loss of JDRL (Li et al., AAAI 2023), at test time; the estimate from the frame alone, the
    null-space term and the ball are ours.
    """

    def __init__(
        self,
        model: Any,
        estimator: nn.Module | None = None,
        *,
        select: Select = "all",
        steps: int = 8,
        lr: float = 2e-4,
        ema: float = 0.9,
        null_space_weight: float = 0.5,
        trust_radius: float | None = 0.5,
        border: int = KERNEL_SIZE // 2,
        views: Views = "rot4",
        seed: int = 0,
        **options: Any,
    ) -> None:
        checks.expect_int("ReblurConsistency", "border", border, minimum=0)
        checks.expect_number("ReblurConsistency", "ema", ema, minimum=0, maximum=1)
        checks.expect_number("ReblurConsistency", "lr", lr, above=0)
        checks.expect_number("ReblurConsistency", "null_space_weight", null_space_weight, minimum=0)
        checks.expect_number("ReblurConsistency", "trust_radius", trust_radius, above=0, optional=True)
        super().__init__(model, estimator, select=select, views=views, steps=steps, seed=seed, **options)
        self.lr, self.ema, self.border = lr, ema, border
        self.null_space_weight, self.trust_radius = null_space_weight, trust_radius

    def begin_frame(self, frame: FrameContext) -> None:
        """Read the blur; put a student that has left the source's neighborhood back."""
        super().begin_frame(frame)
        frame.scratch["seeds"] = self.blur_map(frame.region)
        frame.scratch["source"] = self.run("source", frame.region).image.float()
        if self.trust_radius is not None:
            reach = self.trust_radius * _rms(frame.scratch["source"] - frame.region)
            strayed = (
                _rms(self.run("student", frame.region).image.float() - frame.scratch["source"]) > 2 * reach
            ).any()
            frame.metrics["restarted"] = float(strayed)
            if strayed:
                self.restart()

    def objective(self, frame: FrameContext) -> Tensor:
        """Charbonnier distance of the reblurred restoration from the frame, and of the unseen change from none."""
        restored, source = self.run("student", frame.region).image.float(), frame.scratch["source"]
        seen, loss = self._judge_image(restored, source, frame.scratch["seeds"], frame.region)
        frame.metrics["reblur_loss"] = seen.mean().item()
        return loss.mean()

    def after_step(self, frame: FrameContext) -> None:
        """Move the teacher towards the student."""
        self.update_teacher(self.ema)

    def emit(self, frame: FrameContext) -> Restoration:
        """Return the teacher's self-ensemble within `trust_radius` of the source's, or the source's if it is better."""
        restored = self.ensemble("teacher", frame.image)
        if self.trust_radius is None:
            return restored
        source = self.ensemble("source", frame.image).image.float()
        change = restored.image.float() - source
        reach, length = self.trust_radius * _rms(source - frame.image), _rms(change)
        share = (reach / length.clamp(min=1e-12)).clamp(max=1)
        # a change that is no number is none
        near = torch.where((share < 1) | ~length.isfinite(), source + (share * change).nan_to_num(0), restored.image)
        seeds = self.blur_map(frame.image) if frame.cropped or not frame.scratch else frame.scratch["seeds"]
        own, others = (self._judge_image(image, source, seeds, frame.image)[1] for image in (near, source))
        better = (own < others)[:, None, None, None]
        near = torch.where(better, near, source)
        frame.metrics["share_given"] = float((share.nan_to_num(0) * better).mean())
        return restored.with_image(near.to(restored.image.dtype))

    def _judge_image(self, image: Tensor, source: Tensor, seeds: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance from the frame and the objective of each sample: (B,), (B,)."""
        return disagreement(
            image, x, seeds, source=source, null_space_weight=self.null_space_weight, border=self.border
        )

    def cost(self) -> str:
        """Passes through the model for each frame."""
        views = len(self.views) * (1 if self.trust_radius is None else 2)
        return (
            f"per frame 1 look of the estimator, 2 forward, {self.steps} forward and backward, {views} forward "
            "for the output"
        )


def _rms(change: Tensor) -> Tensor:
    """Root mean square of every sample: (B, C, H, W) -> (B, 1, 1, 1)."""
    return change.float().square().mean((1, 2, 3), keepdim=True).sqrt()
