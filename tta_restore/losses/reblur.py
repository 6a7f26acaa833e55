"""Losses of reblurring: reblurred restoration against the observation, blur map against kernels, stereo views."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks
from tta_restore.losses._base import LossModule, Reduction, expect_pair, expect_reduction
from tta_restore.losses.pixel import charbonnier_loss

__all__ = ["BlurMapLoss", "DisparityLoss", "ReblurLoss", "blur_map_loss", "disparity_loss", "reblur_loss"]

Distance = Literal["mse", "charbonnier"]


def reblur_loss(
    reblurred: Tensor,
    blurry: Tensor,
    *,
    distance: Distance = "mse",
    border: int = 0,
    eps: float = 1e-3,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the distance between a reblurred image and the observation.

    A larger observation is averaged over blocks to the size of ``reblurred``, as IFAN does at an eighth of the size.
    Half-precision inputs are computed in float32.

    Args:
        reblurred: sharp or restored image after blurring; receives the gradient.
        blurry: observation, of the same size or an integer multiple of it along both axes.
        distance: ``"mse"`` as in IFAN, ``"charbonnier"`` as in JDRL.
        border: pixels of ``reblurred`` left out at each side. Zero padding in a blur of size K darkens the outer
            K // 2 pixels, 7 in JDRL; the papers use 0.
        eps: width of the quadratic part of the Charbonnier distance around zero.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per element.

    Shape:
        - reblurred: (B, C, H, W), in [0, 1]
        - blurry: (B, C, S*H, S*W), in [0, 1], S an integer >= 1
        - output: scalar, or (B, C, H - 2*border, W - 2*border) with ``reduction="none"``

    Raises:
        TypeError: An argument is not a floating-point tensor, or ``border`` not an integer.
        ValueError: The shapes do not match, the border leaves nothing, or a choice is unknown.

    Source: Lee et al., Iterative filter adaptive network, CVPR 2021; Li et al., JDRL, AAAI 2023.
    """
    checks.expect_choice("reblur_loss", "distance", distance, ("mse", "charbonnier"))
    checks.expect_int("reblur_loss", "border", border, minimum=0)
    checks.expect_number("reblur_loss", "eps", eps, above=0)
    expect_reduction("reblur_loss", reduction)
    reblurred, blurry = _at_one_size("reblur_loss", reblurred=reblurred, blurry=blurry)
    if border and 2 * border >= min(reblurred.shape[-2:]):
        shape = tuple(reblurred.shape)
        raise ValueError(f"reblur_loss: expected border < min(H, W) / 2 of reblurred {shape}, got {border}")
    if border:  # after averaging: the border is counted in pixels of the reblurred image
        reblurred, blurry = (x[..., border:-border, border:-border] for x in (reblurred, blurry))
    if distance == "charbonnier":
        return charbonnier_loss(reblurred, blurry, eps=eps, reduction=reduction)
    return F.mse_loss(reblurred, blurry, reduction=reduction)


class ReblurLoss(LossModule):
    """Module form of :func:`reblur_loss`."""

    def __init__(
        self,
        *,
        distance: Distance = "mse",
        border: int = 0,
        eps: float = 1e-3,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(distance=distance, border=border, eps=eps, reduction=reduction)

    def forward(self, reblurred: Tensor, blurry: Tensor) -> Tensor:
        """Return the loss of a reblurred image against the observation."""
        return reblur_loss(reblurred, blurry, **self.settings)


def blur_map_loss(
    predicted: Tensor,
    seeds: Tensor,
    *,
    compare: Literal["signed", "absolute"] = "signed",
    detach: bool = False,
    eps: float = 1e-3,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the Charbonnier distance between a predicted blur map and the kernel logits found by reblurring.

    The radial kernel logits (``seeds``) of the reblurring network serve as pseudo ground truth of the blur map.

    Args:
        predicted: blur map predicted from the observation.
        seeds: radial kernel logits of the reblurring network.
        compare: ``"signed"`` as in the official code, although the sign of a logit has no effect on its kernel;
            ``"absolute"`` compares absolute values.
        detach: stop the gradient to ``seeds``. The official code lets it pass, which moves the reblurring network
            towards the map.
        eps: width of the quadratic part of the Charbonnier distance around zero.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per element.

    Shape:
        - predicted, seeds: (B, sum((K+1)/2), H, W)
        - output: scalar, or the shape of ``predicted`` with ``reduction="none"``

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: The shapes differ, ``eps`` is not positive, or a choice is unknown.

    Source: Ren et al., Reblurring-guided defocus deblurring, IJCV 2025.
    """
    checks.expect_choice("blur_map_loss", "compare", compare, ("signed", "absolute"))
    checks.expect_number("blur_map_loss", "eps", eps, above=0)
    expect_reduction("blur_map_loss", reduction)
    expect_pair("blur_map_loss", None, predicted=predicted, seeds=seeds)
    if detach:
        seeds = seeds.detach()
    # Kernels depend on absolute logits only.
    if compare == "absolute":
        predicted, seeds = predicted.abs(), seeds.abs()
    return charbonnier_loss(predicted, seeds, eps=eps, reduction=reduction)


class BlurMapLoss(LossModule):
    """Module form of :func:`blur_map_loss`."""

    def __init__(
        self,
        *,
        compare: Literal["signed", "absolute"] = "signed",
        detach: bool = False,
        eps: float = 1e-3,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(compare=compare, detach=detach, eps=eps, reduction=reduction)

    def forward(self, predicted: Tensor, seeds: Tensor) -> Tensor:
        """Return the loss of a predicted blur map against the kernel logits of the reblurring network."""
        return blur_map_loss(predicted, seeds, **self.settings)


def disparity_loss(warped_right: Tensor, left: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return the mean squared difference between the right view warped by a disparity map and the left view.

    Pixels that the warp takes from outside the image are black and are compared too, as published. Half-precision
    inputs are computed in float32.

    Args:
        warped_right: result of :func:`tta_restore.ops.disparity_warp`, through which the gradient reaches the map.
        left: left view, of the same size or an integer multiple of it along both axes; averaged over blocks then.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per element.

    Shape:
        - warped_right: (B, C, H, W)
        - left: (B, C, S*H, S*W), S an integer >= 1
        - output: scalar, or (B, C, H, W) with ``reduction="none"``

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: The shapes do not match, or ``reduction`` is unknown.

    Source: Lee et al., Iterative filter adaptive network, CVPR 2021.
    """
    expect_reduction("disparity_loss", reduction)
    warped_right, left = _at_one_size("disparity_loss", warped_right=warped_right, left=left)
    return F.mse_loss(warped_right, left, reduction=reduction)


class DisparityLoss(LossModule):
    """Module form of :func:`disparity_loss`."""

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(self, warped_right: Tensor, left: Tensor) -> Tensor:
        """Return the loss of a warped right view against the left one."""
        return disparity_loss(warped_right, left, **self.settings)


def _at_one_size(function: str, **pair: Tensor) -> tuple[Tensor, Tensor]:
    """Check a pair and average the second tensor over blocks to the size of the first, both at least float32."""
    checks.expect_floating(function, **pair)
    (name, small), (target_name, target) = pair.items()
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
    # Block averages, the area interpolation of the official code.
    return small, F.avg_pool2d(target, times) if times > 1 else target
