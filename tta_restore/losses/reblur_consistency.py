"""Losses of the blur: a restored image, reblurred, meets its observation; a blur map meets the blur that was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tta_restore import _checks
from tta_restore.losses.charbonnier import charbonnier


def reblur_consistency(reblurred: Tensor, blurry: Tensor, *, eps: float = 1e-3, border: int = 0) -> Tensor:
    """Charbonnier distance between a reblurred restoration and the observation.

    Args:
        reblurred: the restoration, blurred again.
        blurry: the observation.
        eps: of the Charbonnier distance.
        border: pixels at each side that are left out: reblurring darkens the outer 7, since it sees zeros there. 0 as
            published.

    Shape: reblurred, blurry (B, C, H, W) in [0, 1] -> scalar.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes differ, or the border leaves nothing.

    Source: JDRL (Li et al., AAAI 2023), its reblurring loss.
    """
    _checks.expect_int("reblur_consistency", "border", border, minimum=0)
    _checks.expect_floating("reblur_consistency", reblurred=reblurred, blurry=blurry)
    _, _, h, w = _checks.expect_shape("reblur_consistency", "reblurred", reblurred, "(B, C, H, W)")
    _checks.expect_shape("reblur_consistency", "blurry", blurry, "reblurred.shape", tuple(reblurred.shape))
    if border and 2 * border >= min(h, w):
        raise ValueError(f"reblur_consistency: a border of {border} leaves nothing of {tuple(reblurred.shape)}")
    if border:
        reblurred, blurry = (x[..., border:-border, border:-border] for x in (reblurred, blurry))
    return charbonnier(reblurred, blurry, eps=eps)


class ReblurConsistency(nn.Module):
    """Module of :func:`reblur_consistency`."""

    def __init__(self, *, eps: float = 1e-3, border: int = 0) -> None:
        super().__init__()
        self.eps, self.border = eps, border

    def forward(self, reblurred: Tensor, blurry: Tensor) -> Tensor:
        """Loss of a reblurred restoration against the observation."""
        return reblur_consistency(reblurred, blurry, eps=self.eps, border=self.border)

    def extra_repr(self) -> str:
        """Arguments shown by repr."""
        return f"eps={self.eps}, border={self.border}"


def weigh_seeds(seeds: Tensor, weights: Tensor, *, kernel_sizes: Sequence[int] = (3, 5, 7, 9, 11, 13, 15)) -> Tensor:
    """Seeds of every kernel size times the weight of that size: seeds that blur nothing count for nothing.

    Shape: seeds (B, sum((K+1)/2), H, W), weights (B, 1+N, H, W) -> (B, sum((K+1)/2), H, W).
    """
    blocks = seeds.split([(size + 1) // 2 for size in kernel_sizes], 1)
    return torch.cat([block * weights[:, n, None] for n, block in enumerate(blocks, 1)], 1)


def blur_map(
    predicted: Tensor,
    seeds: Tensor,
    *,
    compare: Literal["signed", "absolute"] = "signed",
    detach: bool = False,
    eps: float = 1e-3,
) -> Tensor:
    """Charbonnier distance between a blur map predicted from the observation and the seeds that reblurring found.

    Pairs become triplets: the seeds are the pseudo ground truth of the map.

    Args:
        predicted: the map.
        seeds: what the reblurring module found.
        compare: ``"signed"`` as released, though the sign of a seed has no effect on its kernel; or ``"absolute"``.
        detach: keeps the reblurring module from moving towards the map, which the release lets it do.
        eps: of the Charbonnier distance.

    Shape: predicted, seeds (B, sum((K+1)/2), H, W) -> scalar.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes differ, or ``compare`` is unknown.

    Source: Reblurring-guided defocus deblurring (Ren et al., IJCV 2025), the supervision of its blur estimator.
    """
    _checks.expect_choice("blur_map", "compare", compare, ("signed", "absolute"))
    _checks.expect_floating("blur_map", predicted=predicted, seeds=seeds)
    _checks.expect_shape("blur_map", "seeds", seeds, "predicted.shape", tuple(predicted.shape))
    if detach:
        seeds = seeds.detach()
    if compare == "absolute":
        predicted, seeds = predicted.abs(), seeds.abs()
    return charbonnier(predicted, seeds, eps=eps)


class BlurMap(nn.Module):
    """Module of :func:`blur_map`."""

    def __init__(
        self, *, compare: Literal["signed", "absolute"] = "signed", detach: bool = False, eps: float = 1e-3
    ) -> None:
        super().__init__()
        self.compare: Literal["signed", "absolute"] = compare
        self.detach, self.eps = detach, eps

    def forward(self, predicted: Tensor, seeds: Tensor) -> Tensor:
        """Loss of a predicted blur map against the seeds of the reblurring module."""
        return blur_map(predicted, seeds, compare=self.compare, detach=self.detach, eps=self.eps)

    def extra_repr(self) -> str:
        """Arguments shown by repr."""
        return f"compare={self.compare!r}, detach={self.detach}, eps={self.eps}"
