"""SelfDenoise: adapt a denoiser to a frame by a self-supervised loss on the noisy frame alone."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks
from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.frame import FrameContext
from tta_restore.adapters.select import Select
from tta_restore.adapters.views import Views

__all__ = ["SelfDenoise"]

_GRID = 4  # one pixel of 4 x 4 is masked at a time


class SelfDenoise(Adapter, method="self_denoise"):
    """Fine-tunes a denoiser on the noisy frame itself; nothing about the noise has to be known.

    It is valid for noise that is independent from pixel to pixel, and harms where it is not: after JPEG compression,
    resizing or demosaicking. :class:`DegradationPairs` tests its result on the frame; this method does not.

    Args:
        model: a restorer of single frames at scale 1; see :class:`Adapter`, as for ``options``.
        loss: "neighbor2neighbor" compares the restoration of one half-size subsample of the frame with another one;
            "noise2self" predicts pixels that the restorer does not see from their neighbors.
        select: which weights to adapt.
        steps: optimizer steps per frame.
        lr: learning rate.
        consistency_weight: weight of the regularizer of Neighbor2Neighbor, which compensates for the distance between
            the two subsamples.
        ema: EMA momentum of the teacher, whose self-ensemble is returned.
        views: test-time augmentations that the output is averaged over, see :func:`resolve_views`.
        seed: source of subsamples and masks.

    Raises:
        ValueError: a setting is out of range, or a frame is a clip or smaller than 8 pixels, or the model enlarges.

    Source: Huang et al., "Neighbor2Neighbor", CVPR 2021; Batson and Royer, "Noise2Self", ICML 2019. Both train a
    network from scratch on a set of images; here a trained restorer takes a few steps on one frame.
    """

    keeps_size: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = True

    def __init__(
        self,
        model: Any,
        *,
        loss: Literal["neighbor2neighbor", "noise2self"] = "neighbor2neighbor",
        select: Select = "all",
        steps: int = 24,
        lr: float = 1e-4,
        consistency_weight: float = 1.0,
        ema: float = 0.9,
        views: Views = "rot4",
        seed: int = 0,
        **options: Any,
    ) -> None:
        checks.expect_choice("SelfDenoise", "loss", loss, ("neighbor2neighbor", "noise2self"))
        checks.expect_number("SelfDenoise", "lr", lr, above=0)
        checks.expect_number("SelfDenoise", "consistency_weight", consistency_weight, minimum=0)
        checks.expect_number("SelfDenoise", "ema", ema, minimum=0, maximum=1)
        super().__init__(model, select=select, views=views, steps=steps, seed=seed, **options)
        self.loss, self.lr, self.consistency_weight, self.ema = loss, lr, consistency_weight, ema

    def begin_frame(self, frame: FrameContext) -> None:
        """Refuse clips and frames that are too small."""
        if frame.image.ndim != 4 or min(frame.region.shape[-2:]) < 2 * _GRID:
            raise ValueError(
                f"SelfDenoise: expected frames (B, C, H, W) with H, W >= {2 * _GRID}, got {tuple(frame.image.shape)}"
            )

    def objective(self, frame: FrameContext) -> Tensor:
        """Return the self-supervised loss of one random subsample or mask."""
        return self._neighbors(frame) if self.loss == "neighbor2neighbor" else self._masked(frame)

    def after_step(self, frame: FrameContext) -> None:
        """Update the teacher."""
        self.update_teacher(self.ema)

    def make_optimizer(self, tensors: list[Tensor], role: str = "student") -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(tensors, lr=self.lr)

    def cost(self) -> str:
        """Passes through the model for each frame."""
        return f"{self.steps} forward and backward on the frame, {len(self.views)} forward"

    def _neighbors(self, frame: FrameContext) -> Tensor:
        x = frame.region
        first, second = neighbor_subsamples(x, self.generator)
        restored = self.run("student", first(x)).image.float()
        target = second(x)
        loss = (restored - target).square().mean()
        if self.consistency_weight:
            whole = self.run("student", x).image.float().detach()
            apart = restored - target - (first(whole) - second(whole))
            loss = loss + self.consistency_weight * apart.square().mean()
        return loss

    def _masked(self, frame: FrameContext) -> Tensor:
        x = frame.region.float()
        row, column = (int(torch.randint(_GRID, (), generator=self.generator)) for _ in range(2))
        mask = torch.zeros_like(x[:1, :1])
        mask[..., row::_GRID, column::_GRID] = 1
        around = x.new_tensor([[0.5, 1, 0.5], [1, 0, 1], [0.5, 1, 0.5]]) / 6
        channels = x.shape[1]
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        mean = F.conv2d(padded, around.expand(channels, 1, 3, 3), groups=channels)
        restored = self.run("student", torch.where(mask > 0, mean, x).to(frame.region.dtype)).image.float()
        return ((restored - x).square() * mask).sum() / (mask.sum() * x.shape[0] * channels)


class _Subsample:
    """Selection of one pixel of each 2 x 2 cell: (B, C, H, W) -> (B, C, H // 2, W // 2)."""

    def __init__(self, chosen: Tensor) -> None:
        self.chosen = chosen

    def __call__(self, x: Tensor) -> Tensor:
        height, width = (side // 2 * 2 for side in x.shape[-2:])
        cells = F.pixel_unshuffle(x[..., :height, :width], 2).unflatten(1, (x.shape[1], 4))
        index = self.chosen.to(x.device).expand(len(x), x.shape[1], 1, -1, -1)
        return cells.gather(2, index)[:, :, 0]


def neighbor_subsamples(x: Tensor, generator: torch.Generator) -> tuple[_Subsample, _Subsample]:
    """Draw two subsamples of an image that take adjacent pixels of every 2 x 2 cell."""
    height, width = (side // 2 for side in x.shape[-2:])
    # row-major cells 0 1 / 2 3: the neighbors of each pixel along a row and along a column
    first = torch.randint(4, (1, 1, 1, height, width), generator=generator)
    along_row = torch.rand(first.shape, generator=generator) < 0.5
    second = torch.where(along_row, first ^ 1, first ^ 2)
    return _Subsample(first), _Subsample(second)
