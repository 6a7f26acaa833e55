"""ReblurConsistency: the restoration, blurred again with the blur that the frame shows, has to meet the frame."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore import _checks, ops
from tta_restore.adapters.frame import Frame
from tta_restore.adapters.lens_adapter import SMALLEST, LensAdapter
from tta_restore.adapters.selection import Select
from tta_restore.adapters.views import Views
from tta_restore.data.lenses import KERNEL_SIZE, linear_to_srgb, srgb_to_linear
from tta_restore.losses import charbonnier, reblur_consistency
from tta_restore.models import Restoration
from tta_restore.models.apertures import rasterize_picture

_RADII = 24  # root mean square radii between which seeds are interpolated
_LEAST, _MOST = 0.15, 7.0
_FLOOR = 1e-4  # weight, relative to the largest, below which a kernel is nothing


class ReblurConsistency(LensAdapter, method="reblur_consistency"):
    """Adapts a restorer until its restoration, blurred again, meets the frame, and keeps it from making things up.

    On every frame the estimator reads the spatially varying blur, reduced to isotropic kernels, from the frame alone:
    the adapting restorer has no say in it. Then, `steps` times, the student's restoration is blurred with them in
    linear light and compared with the frame. What blurring removes, that comparison cannot see, and a restorer that
    follows it alone fills the blind spot with patterns, faster at higher learning rates. Four things hold it:

    - `anchor`: the part of the change from the source's restoration that the blur would remove is held back;
    - `trust`: the image that is given lies within a ball around the source's restoration, whose radius is this share of
      what the source itself changed in the frame, whatever the weights have become;
    - a student that starts a frame outside twice that ball is put back to the source;
    - where the source's own restoration meets the frame better, by the same measure, that is given.

    What is given otherwise is the teacher's self-ensemble, projected onto that ball.

    Args:
        model: a restorer of single frames at scale 1; see :class:`Adapter`, as for ``options``.
        estimator: reads lenses as :class:`tta_restore.models.lens_estimator.LensEstimator` does; None: the shipped one.
        select: which weights to adapt.
        steps: optimiser steps per frame.
        lr: learning rate.
        ema: share of itself that the teacher keeps at each step.
        anchor: weight of the change that the comparison cannot see.
        trust: radius of the ball, relative to the root mean square change that the source makes; None for no ball, no
            way back and no comparison with the source.
        border: pixels at each side that are not compared: blurring sees zeros beyond the frame.
        views: views that the output is averaged over, see :func:`resolve_views`.
        seed: of the adapter.

    Raises:
        ValueError: a setting is out of range; the model enlarges, or takes clips or other than 1 or 3 channels.

    Source: the reblurring loss of JDRL (Li et al., AAAI 2023), at test time; the estimate from the frame alone, the
    anchor and the ball are ours.
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
        anchor: float = 0.5,
        trust: float | None = 0.5,
        border: int = KERNEL_SIZE // 2,
        views: Views = "rot4",
        seed: int = 0,
        **options: Any,
    ) -> None:
        _checks.expect_int("ReblurConsistency", "border", border, minimum=0)
        if not 0 <= ema <= 1:
            raise ValueError(f"ReblurConsistency: expected ema in [0, 1], got {ema}")
        if not (lr > 0 and anchor >= 0 and (trust is None or trust > 0)):
            raise ValueError(
                f"ReblurConsistency: expected lr > 0, anchor >= 0 and trust > 0 or None, got {lr}, {anchor}, {trust}"
            )
        super().__init__(model, estimator, select=select, views=views, steps=steps, seed=seed, **options)
        self.lr, self.ema, self.anchor, self.trust, self.border = lr, ema, anchor, trust, border

    def make_optimiser(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(parameters, lr=self.lr)

    def begin_frame(self, frame: Frame) -> None:
        """Read the blur; put a student that has left the source's neighbourhood back."""
        super().begin_frame(frame)
        frame.notes["seeds"] = self.blur_map(frame.region)
        frame.notes["anchor"] = self.run("source", frame.region).image.float()
        if self.trust is not None:
            reach = self.trust * _rms(frame.notes["anchor"] - frame.region)
            strayed = (_rms(self.run("student", frame.region).image.float() - frame.notes["anchor"]) > 2 * reach).any()
            frame.extra["restarted"] = float(strayed)
            if strayed:
                self.restart()

    def objective(self, frame: Frame) -> Tensor:
        """Charbonnier distance of the reblurred restoration from the frame, and of the unseen change from none."""
        seeds, source = frame.notes["seeds"], frame.notes["anchor"]
        restored = self.run("student", frame.region).image.float()
        border = min(self.border, (min(restored.shape[-2:]) - 1) // 2)
        loss = reblur_consistency(reblur(restored, seeds), frame.region.float(), border=border)
        frame.extra["reblur_loss"] = loss.item()
        if self.anchor:
            change = restored - source
            unseen = change - _blurred(change, seeds)
            loss = loss + self.anchor * charbonnier(unseen, torch.zeros_like(unseen))
        return loss

    def after_step(self, frame: Frame) -> None:
        """The teacher follows."""
        self.average_teacher(self.ema)

    def emit(self, frame: Frame) -> Restoration:
        """The teacher's self-ensemble, no farther from the source's than `trust` allows, or the source's if better."""
        restored = self.ensemble("teacher", frame.image)
        if self.trust is None:
            return restored
        source = self.ensemble("source", frame.image).image.float()
        change = restored.image.float() - source
        reach, length = self.trust * _rms(source - frame.image), _rms(change)
        share = (reach / length.clamp(min=1e-12)).clamp(max=1)
        # a change that is no number is none
        near = torch.where((share < 1) | ~length.isfinite(), source + (share * change).nan_to_num(0), restored.image)
        seeds = self.blur_map(frame.image) if frame.cropped or not frame.notes else frame.notes["seeds"]
        better = self._misses(near, source, seeds, frame.image) < self._misses(source, source, seeds, frame.image)
        near = torch.where(better, near, source)
        frame.extra["share_given"] = float((share.nan_to_num(0) * better).mean())
        return restored.with_image(near.to(restored.image.dtype))

    def blur_map(self, x: Tensor) -> Tensor:
        """Seeds of the isotropic kernels that the estimator reads from a frame; nothing changes.

        Shape:
            - x: (B, C, H, W), RGB in [0, 1]
            - output: (B, (K+1)/2, H, W), for :func:`tta_restore.ops.isotropic_kernels` with K = 17
        """
        device = self._estimator_device()
        estimate = self.read_lens(x)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            pictures = self.estimator.aperture(estimate.statistics)
            logs = estimate.radius.log()[:, None]
            covered = [max(side, SMALLEST) for side in x.shape[-2:]]
            logs = F.interpolate(logs, size=covered, mode="bilinear")[..., : x.shape[-2], : x.shape[-1]]
            tables = torch.stack([_seed_table(picture, self.estimator.reach) for picture in pictures])
            place = (logs[:, 0] - math.log(_LEAST)) / (math.log(_MOST) - math.log(_LEAST)) * (_RADII - 1)
            place = place.nan_to_num(0).clamp(0, _RADII - 1 - 1e-4)  # a bad frame that is passed through
            low = place.long()
            part = (place - low)[:, None]
            rows = [torch.stack([t[index], t[index + 1]]).movedim(-1, 1) for t, index in zip(tables, low, strict=True)]
            ends = torch.stack(rows)
            return torch.lerp(ends[:, 0], ends[:, 1], part).to(x.device)

    def _misses(self, image: Tensor, source: Tensor, seeds: Tensor, x: Tensor) -> Tensor:
        """The objective of every sample by itself: (B, 1, 1, 1)."""
        border = min(self.border, (min(x.shape[-2:]) - 1) // 2)
        inner = slice(border, -border or None)
        error = (reblur(image, seeds) - x)[..., inner, inner]
        change = image - source
        unseen = change - _blurred(change, seeds)
        means = [(e.float().square() + 1e-6).sqrt().mean((1, 2, 3), keepdim=True) for e in (error, unseen)]
        return means[0] + self.anchor * means[1]

    def config(self) -> dict[str, Any]:
        """Settings that a saved state depends on."""
        own = ("lr", "ema", "anchor", "trust", "border")
        return super().config() | {name: getattr(self, name) for name in own}

    def cost(self) -> str:
        """Passes through the model for each frame."""
        views = len(self.views) * (1 if self.trust is None else 2)
        return (
            f"per frame 1 look of the estimator, 2 forward, {self.steps} forward and backward, {views} forward "
            "for the output"
        )


def reblur(restored: Tensor, seeds: Tensor) -> Tensor:
    """Blur a stored picture in linear light. Shape: (B, C, H, W), (B, (K+1)/2, H, W) -> (B, C, H, W)."""
    # Values outside [0, 1] keep a gradient: curves are continued along their ends.
    inside = restored.clamp(0, 1)
    linear = srgb_to_linear(inside) + (restored - inside) * torch.where(restored < 0, 1 / 12.92, 2.275)
    blurred = _blurred(linear, seeds)
    return linear_to_srgb(blurred.clamp(1e-4, 1)) + (blurred - blurred.clamp(1e-4, 1))


def _blurred(image: Tensor, seeds: Tensor) -> Tensor:
    weights = torch.zeros_like(seeds[:, :2])
    weights[:, 1] = 1
    # half types come from autocast; sums are float32 in any case
    return ops.isotropic_reblur(image.float(), seeds, weights, kernel_sizes=(KERNEL_SIZE,))


def _rms(change: Tensor) -> Tensor:
    """Root mean square of every sample: (B, C, H, W) -> (B, 1, 1, 1)."""
    return change.float().square().mean((1, 2, 3), keepdim=True).sqrt()


def _seed_table(picture: Tensor, reach: float) -> Tensor:
    """Seeds of the isotropic kernels nearest to an aperture at log spaced radii: (radii, (K+1)/2)."""
    ratio = torch.linspace(math.log(_LEAST), math.log(_MOST), _RADII, device=picture.device)
    kernels = rasterize_picture(picture, ratio.exp(), size=KERNEL_SIZE, reach=reach)
    axis = torch.arange(KERNEL_SIZE, device=picture.device, dtype=kernels.dtype) - KERNEL_SIZE // 2
    distance = (axis.square() + axis[:, None].square()).sqrt()
    # mean weight at every whole distance, taps between two counted for both
    shares = (1 - (distance - torch.arange(KERNEL_SIZE // 2 + 1, device=picture.device)[:, None, None]).abs()).clamp(0)
    profile = torch.einsum("lij,kij->lk", kernels, shares) / shares.sum((1, 2))
    relative = profile / profile.amax(1, keepdim=True)
    return (relative.clamp(min=_FLOOR) / _FLOOR).log()
