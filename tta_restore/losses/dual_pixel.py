"""Losses that tell the filters of IFAN what the blur is: by the two views of a dual pixel, and by blurring again."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore import _checks


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
    _checks.expect_floating(function, **{name: small, target_name: target})
    b, c, h, w = _checks.expect_shape(function, name, small, "(B, C, H, W)")
    height, width = _checks.expect_shape(function, target_name, target, "(B, C, S*H, S*W)", (b, c, None, None))[2:]
    times = height // max(h, 1)
    if (height, width) != (times * h, times * w) or times < 1:
        raise ValueError(
            f"{function}: expected {target_name} of shape (B, C, S*H, S*W) = ({b}, {c}, S*{h}, S*{w}), "
            f"got {tuple(target.shape)}"
        )
    if small.dtype.itemsize < 4 or target.dtype.itemsize < 4:
        small, target = small.float(), target.float()
    return F.mse_loss(small, F.avg_pool2d(target, times) if times > 1 else target)
