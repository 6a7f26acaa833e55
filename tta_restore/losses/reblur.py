"""Losses of the blur: a restored image, reblurred, meets its observation; a blur map meets the blur that was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore.losses.pixel import charbonnier


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
    checks.expect_int("reblur_consistency", "border", border, minimum=0)
    checks.expect_floating("reblur_consistency", reblurred=reblurred, blurry=blurry)
    _, _, h, w = checks.expect_shape("reblur_consistency", "reblurred", reblurred, "(B, C, H, W)")
    checks.expect_shape("reblur_consistency", "blurry", blurry, "reblurred.shape", tuple(reblurred.shape))
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
    checks.expect_choice("blur_map", "compare", compare, ("signed", "absolute"))
    checks.expect_floating("blur_map", predicted=predicted, seeds=seeds)
    checks.expect_shape("blur_map", "seeds", seeds, "predicted.shape", tuple(predicted.shape))
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


def disparity(warped_right: Tensor, left: Tensor) -> Tensor:
    """Mean squared difference of the right view, moved by a disparity map, and the left view.

    What the warp brings in from outside the picture, black, is compared too, as published. Half types are accumulated
    in float32.

    Args:
        warped_right: from :func:`tta_restore.ops.disparity_warp`; the gradient reaches the disparity through it.
        left: of the same size, or a multiple of it along both sides; blocks of it are averaged then.

    Shape: warped_right (B, C, H, W), left (B, C, S*H, S*W), S an integer >= 1 -> scalar.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: the shapes do not match.

    Source: Iterative Filter Adaptive Network (Lee et al., CVPR 2021), its disparity loss.
    """
    return _squared_difference("disparity", "warped_right", warped_right, "left", left)


class Disparity(nn.Module):
    """Module of :func:`disparity`."""

    def forward(self, warped_right: Tensor, left: Tensor) -> Tensor:
        """Loss of a right view that was moved onto the left one."""
        return disparity(warped_right, left)


def reblur(reblurred: Tensor, blurry: Tensor) -> Tensor:
    """Mean squared difference of a reblurred sharp picture and the blurry one, at the size of the former.

    Half types are accumulated in float32.

    Args:
        reblurred: the sharp picture, blurred by filters that were made of the deblurring ones.
        blurry: of the same size, or a multiple of it along both sides; blocks of it are averaged then.

    Shape: reblurred (B, C, H, W), blurry (B, C, S*H, S*W), S an integer >= 1 -> scalar.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: the shapes do not match.

    Source: Iterative Filter Adaptive Network (Lee et al., CVPR 2021), its reblurring loss.
    """
    return _squared_difference("reblur", "reblurred", reblurred, "blurry", blurry)


class Reblur(nn.Module):
    """Module of :func:`reblur`."""

    def forward(self, reblurred: Tensor, blurry: Tensor) -> Tensor:
        """Loss of a picture that was blurred again."""
        return reblur(reblurred, blurry)


def _squared_difference(function: str, name: str, small: Tensor, target_name: str, target: Tensor) -> Tensor:
    checks.expect_floating(function, **{name: small, target_name: target})
    b, c, h, w = checks.expect_shape(function, name, small, "(B, C, H, W)")
    height, width = checks.expect_shape(function, target_name, target, "(B, C, S*H, S*W)", (b, c, None, None))[2:]
    times = height // max(h, 1)
    if (height, width) != (times * h, times * w) or times < 1:
        raise ValueError(
            f"{function}: expected {target_name} of shape (B, C, S*H, S*W) = ({b}, {c}, S*{h}, S*{w}), "
            f"got {tuple(target.shape)}"
        )
    if small.dtype.itemsize < 4 or target.dtype.itemsize < 4:
        small, target = small.float(), target.float()
    return F.mse_loss(small, F.avg_pool2d(target, times) if times > 1 else target)
