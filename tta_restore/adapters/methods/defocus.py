"""The blur of a frame as isotropic kernels, and how far a restoration, blurred again with them, is from the frame."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore import ops
from tta_restore._core.color import linear_to_srgb, srgb_to_linear
from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.frame import FrameContext
from tta_restore.degradations.lens import KERNEL_SIZE
from tta_restore.losses import charbonnier_loss
from tta_restore.models import create_model
from tta_restore.models.defocus.estimator import DefocusEstimate
from tta_restore.models.defocus.pupil import rasterize_pupil

_RADII = 24  # root mean square radii between which seeds are interpolated
_LEAST, _MOST = 0.15, 7.0
_FLOOR = 1e-4  # weight, relative to the largest, below which a kernel is nothing
_EPS = 1e-3  # of the Charbonnier distances


def seeds_of(estimator: Any, estimate: DefocusEstimate, *, covered: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Seeds of the isotropic kernels nearest to the lens that an estimator read from a frame.

    Args:
        estimator: that made the estimate.
        estimate: of a frame with sides ``covered``.
        covered: sides that the estimate's radii stand for.
        size: sides of the frame, which begins where the estimate's does.

    Shape: (B, (K+1)/2, H, W), for :func:`tta_restore.ops.isotropic_kernels` with K = 17.
    """
    with torch.no_grad(), torch.autocast(estimate.radius.device.type, enabled=False):
        pictures = estimator.aperture(estimate.statistics)
        logs = F.interpolate(estimate.radius.log()[:, None], size=covered, mode="bilinear")[..., : size[0], : size[1]]
        tables = torch.stack([_seed_table(picture, estimator.reach) for picture in pictures])
        place = (logs[:, 0] - math.log(_LEAST)) / (math.log(_MOST) - math.log(_LEAST)) * (_RADII - 1)
        place = place.nan_to_num(0).clamp(0, _RADII - 1 - 1e-4)  # a bad frame that is passed through
        low = place.long()
        part = (place - low)[:, None]
        rows = [torch.stack([t[index], t[index + 1]]).movedim(-1, 1) for t, index in zip(tables, low, strict=True)]
        ends = torch.stack(rows)
        return torch.lerp(ends[:, 0], ends[:, 1], part)


def disagreement(
    restored: Tensor, x: Tensor, seeds: Tensor, *, source: Tensor, null_space_weight: float, border: int
) -> tuple[Tensor, Tensor]:
    """Return how far the reblurred restoration is from the frame, and that plus what blurring hides of its change.

    Args:
        restored: the restoration that is judged; gradients go through it.
        x: the frame.
        seeds: of the frame's blur, see :func:`seeds_of`.
        source: what the source makes of the frame; the change from it, less that change blurred, is what the comparison
            with the frame cannot see.
        null_space_weight: weight of that; 0 leaves it out.
        border: pixels at each side that are not compared: blurring sees zeros beyond the frame.

    Shape: restored, x, source (B, C, H, W), seeds (B, (K+1)/2, H, W) -> (B,), (B,): Charbonnier distances.
    """
    border = min(border, (min(x.shape[-2:]) - 1) // 2)
    inner = slice(border, -border or None)
    seen = _distance((reblur(restored, seeds) - x)[..., inner, inner])
    if not null_space_weight:
        return seen, seen
    change = restored - source
    return seen, seen + null_space_weight * _distance(change - _blurred(change, seeds))


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


def _distance(difference: Tensor) -> Tensor:
    """Charbonnier distance from zero of every sample: (B, C, H, W) -> (B,)."""
    return charbonnier_loss(difference, torch.zeros_like(difference), eps=_EPS, reduction="none").mean((1, 2, 3))


def _seed_table(picture: Tensor, reach: float) -> Tensor:
    """Seeds of the isotropic kernels nearest to an aperture at log spaced radii: (radii, (K+1)/2)."""
    ratio = torch.linspace(math.log(_LEAST), math.log(_MOST), _RADII, device=picture.device)
    kernels = rasterize_pupil(picture, ratio.exp(), size=KERNEL_SIZE, reach=reach)
    axis = torch.arange(KERNEL_SIZE, device=picture.device, dtype=kernels.dtype) - KERNEL_SIZE // 2
    distance = (axis.square() + axis[:, None].square()).sqrt()
    # mean weight at every whole distance, taps between two counted for both
    shares = (1 - (distance - torch.arange(KERNEL_SIZE // 2 + 1, device=picture.device)[:, None, None]).abs()).clamp(0)
    profile = torch.einsum("lij,kij->lk", kernels, shares) / shares.sum((1, 2))
    relative = profile / profile.amax(1, keepdim=True)
    return (relative.clamp(min=_FLOOR) / _FLOOR).log()


SMALLEST = 32  # side in pixels that the estimator can read


class DefocusAdapter(Adapter):
    """An adapter of still frames at scale 1 that carries a lens estimator, which it does not train.

    Args:
        model: a restorer of single frames at scale 1; see :class:`Adapter`, as for ``options``.
        estimator: a ``tta_restore.models.defocus.DefocusEstimator``; the shipped one by default.
    """

    keeps_size: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = True

    def __init__(self, model: Any, estimator: nn.Module | None = None, **options: Any) -> None:
        super().__init__(model, **options)
        if estimator is None:
            estimator = create_model("lens_estimator", checkpoint="lens_estimator")
        self.estimator: Any = estimator

    def begin_frame(self, frame: FrameContext) -> None:
        """Refuse frames from which no lens can be read."""
        if frame.image.ndim != 4 or frame.image.shape[1] not in (1, 3):
            raise ValueError(
                f"{type(self).__name__}: expected frames (B, C, H, W) with C of 1 or 3, got {tuple(frame.image.shape)}"
            )

    def read_lens(self, x: Tensor) -> DefocusEstimate:
        """Return the estimate of (B, C, H, W) with C of 1 or 3, smaller frames continued at their border."""
        device = self._estimator_device()
        short = [max(SMALLEST - side, 0) for side in x.shape[-2:]]
        padded = F.pad(x.float().to(device), (0, short[1], 0, short[0]), mode="replicate")
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self.estimator(padded.expand(-1, 3, -1, -1))

    def blur_map(self, x: Tensor) -> Tensor:
        """Seeds of the isotropic kernels that the estimator reads from a frame; nothing changes.

        Shape:
            - x: (B, C, H, W), RGB in [0, 1]
            - output: (B, (K+1)/2, H, W), for :func:`tta_restore.ops.isotropic_kernels` with K = 17
        """
        height, width = x.shape[-2:]
        covered = max(height, SMALLEST), max(width, SMALLEST)
        return seeds_of(self.estimator, self.read_lens(x), covered=covered, size=(height, width)).to(x.device)

    def _estimator_device(self) -> torch.device:
        return next(self.estimator.parameters()).device
