"""Loss of a misaligned pair: images are compared after warping, where the optical flow is reliable."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tta_restore import ops
from tta_restore._core import checks
from tta_restore._core.color import luma_8bit
from tta_restore.losses._base import LossModule, Reduction, expect_pair, expect_reduction
from tta_restore.losses.pixel import charbonnier_loss

__all__ = ["DeformationLoss", "calibration_mask", "deformation_loss"]

_ARCS = (15, 6, 4, 11, 13, 6)  # steps of the color wheel: red, yellow, green, cyan, blue, magenta and back to red


def _color_wheel() -> Tensor:
    """Return the 55 colors of the Middlebury flow encoding, float64 in 0..255: (55, 3).

    Source: Baker et al., A database and evaluation methodology for optical flow, IJCV 2011.
    """
    corners = ((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255))
    rows = []
    for i, (start, steps) in enumerate(zip(corners, _ARCS, strict=True)):
        end = corners[(i + 1) % 6]
        for step in range(steps):
            up = math.floor(255 * step / steps)
            rows.append([a if a == b else (up if b else 255 - up) for a, b in zip(start, end, strict=True)])
    return torch.tensor(rows, dtype=torch.float64)


def _flow_to_gray(flow: Tensor) -> Tensor:
    """Return the gray value, 0 to 255, of the Middlebury color encoding of each sample's flow.

    ``torchvision.utils.flow_to_image`` draws the same image, but scales by the largest displacement of the batch and
    with another epsilon, which changes 18 % of the recorded grays of a nearly still flow by one level.

    Shape: flow (B, 2, H, W) in pixels -> (B, 1, H, W), integers as float32.
    """
    u, v = flow.detach().float().unbind(1)
    largest = (u.square() + v.square()).sqrt().amax((1, 2), keepdim=True)
    # Float32 up to the angle, as in the official code: the mask is compared with it bit by bit.
    u, v = u / (largest + 1e-5), v / (largest + 1e-5)
    radius, angle = (u.square() + v.square()).sqrt(), torch.atan2(-v, -u) / math.pi
    position = (angle + 1) / 2 * 54
    low = position.nan_to_num(0.0).floor()  # NaN is no place on the wheel
    # Interpolation in float64: the official code computes colors with NumPy, and the floor below amplifies rounding.
    part = (position.double() - low.double())[:, None]
    wheel = (_color_wheel().to(flow.device) / 255).T  # (3, 55)
    first, second = wheel[:, low.long()].movedim(0, 1), wheel[:, (low.long() + 1) % 55].movedim(0, 1)
    color = 1 - radius.double()[:, None] * (1 - ((1 - part) * first + part * second))
    gray = luma_8bit((255 * color).nan_to_num(0.0).floor().long()).float()
    return gray.masked_fill(position.isnan()[:, None], math.nan)


def calibration_mask(flow: Tensor, *, tolerance: float = 0.35) -> Tensor:
    """Return a mask of the pixels whose flow is close to that of the sample as a whole.

    The flow is drawn with the Middlebury color wheel, relative to the largest displacement of its sample, and converted
    to gray. The mask is 1 where the gray value is within ``tolerance`` of the mean, relative to the mean. Zero and
    constant flow give a mask of ones, flow that is not finite one of zeros. The mask carries no gradient.

    Args:
        flow: optical flow in pixels.
        tolerance: largest relative deviation from the mean gray value.

    Shape: flow (B, 2, H, W) -> (B, 1, H, W), 0 or 1.

    Raises:
        TypeError: ``flow`` is not a floating-point tensor.
        ValueError: ``flow`` has another shape, or ``tolerance`` is negative.

    Source: Li et al., JDRL, AAAI 2023.
    """
    checks.expect_number("calibration_mask", "tolerance", tolerance, minimum=0)
    checks.expect_floating("calibration_mask", flow=flow)
    checks.expect_shape("calibration_mask", "flow", flow, "(B, 2, H, W)", (None, 2, None, None))
    gray = _flow_to_gray(flow)
    mean = gray.mean((1, 2, 3), keepdim=True)
    return ((gray >= (1 - tolerance) * mean) & (gray <= (1 + tolerance) * mean)).to(flow.dtype)


def deformation_loss(
    restored: Tensor,
    sharp: Tensor,
    flow: Tensor,
    back_flow: Tensor | None = None,
    *,
    mask_tolerance: float | None = 0.35,
    eps: float = 1e-3,
    align_corners: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the masked Charbonnier distances of a misaligned pair, each image warped onto the other.

    ``charbonnier(M r, M warp(s, flow)) + charbonnier(M' s, M' warp(r, back_flow))`` with the calibration masks M and M'
    of the two flows. The mean runs over all pixels, masked ones included, as published. Flows get no gradient.

    Args:
        restored: restored image; receives the gradient through both terms.
        sharp: misaligned reference image.
        flow: optical flow from ``restored`` to ``sharp`` in pixels.
        back_flow: optical flow from ``sharp`` to ``restored``; None leaves the second term out.
        mask_tolerance: ``tolerance`` of :func:`calibration_mask`; None for no masks.
        eps: width of the quadratic part of the Charbonnier distance around zero.
        align_corners: True warps exactly; False as the official code, which is half a pixel off at the borders, see
            :func:`tta_restore.ops.flow_warp`.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per element, terms added.

    Shape:
        - restored, sharp: (B, C, H, W), in [0, 1]
        - flow, back_flow: (B, 2, H, W)
        - output: scalar, or (B, C, H, W) with ``reduction="none"``

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: Shapes differ, or a setting is out of range.

    Source: Li et al., JDRL, AAAI 2023.
    """
    expect_reduction("deformation_loss", reduction)
    checks.expect_number("deformation_loss", "eps", eps, above=0)
    checks.expect_number("deformation_loss", "mask_tolerance", mask_tolerance, minimum=0, optional=True)
    expect_pair("deformation_loss", restored=restored, sharp=sharp)
    checks.expect_floating("deformation_loss", flow=flow)
    b, _, h, w = restored.shape
    terms = []
    for name, target, source, motion in (("flow", restored, sharp, flow), ("back_flow", sharp, restored, back_flow)):
        if motion is None:
            continue
        checks.expect_shape("deformation_loss", name, motion, "(B, 2, H, W)", (b, 2, h, w))
        motion = motion.detach()  # flow is a constant of the loss
        warped = ops.flow_warp(source, motion, padding_mode="border", align_corners=align_corners)
        if mask_tolerance is not None:
            mask = calibration_mask(motion, tolerance=mask_tolerance).to(target.dtype)
            target, warped = mask * target, mask * warped
        terms.append(charbonnier_loss(warped, target, eps=eps, reduction=reduction))
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


class DeformationLoss(LossModule):
    """Module form of :func:`deformation_loss`."""

    def __init__(
        self,
        *,
        mask_tolerance: float | None = 0.35,
        eps: float = 1e-3,
        align_corners: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(mask_tolerance=mask_tolerance, eps=eps, align_corners=align_corners, reduction=reduction)

    def forward(self, restored: Tensor, sharp: Tensor, flow: Tensor, back_flow: Tensor | None = None) -> Tensor:
        """Return the loss of a restored image against a misaligned sharp one."""
        return deformation_loss(restored, sharp, flow, back_flow, **self.settings)
