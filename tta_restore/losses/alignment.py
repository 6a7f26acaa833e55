"""Losses of a pair whose images are not aligned: compare after warping, where the flow can be trusted."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tta_restore import ops
from tta_restore._core import checks
from tta_restore.losses.pixel import charbonnier

_ARCS = (15, 6, 4, 11, 13, 6)  # steps of the color wheel from red to yellow, green, cyan, blue, magenta and back


def color_wheel() -> Tensor:
    """The 55 colors by which optical flow is usually drawn, float64 in 0..255: (55, 3).

    Source: A database and evaluation methodology for optical flow (Baker et al., IJCV 2011).
    """
    corners = ((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255))
    rows = []
    for i, (start, steps) in enumerate(zip(corners, _ARCS, strict=True)):
        end = corners[(i + 1) % 6]
        for step in range(steps):
            up = math.floor(255 * step / steps)
            rows.append([a if a == b else (up if b else 255 - up) for a, b in zip(start, end, strict=True)])
    return torch.tensor(rows, dtype=torch.float64)


def flow_gray(flow: Tensor) -> Tensor:
    """Gray value, 0 to 255, of the flow drawn in color, each sample relative to its own largest displacement.

    Shape: flow (B, 2, H, W) in pixels -> (B, 1, H, W), integers as float32.
    """
    checks.expect_floating("flow_gray", flow=flow)
    checks.expect_shape("flow_gray", "flow", flow, "(B, 2, H, W)", (None, 2, None, None))
    u, v = flow.detach().float().unbind(1)
    largest = (u.square() + v.square()).sqrt().amax((1, 2), keepdim=True)
    u, v = u / (largest + 1e-5), v / (largest + 1e-5)
    radius, angle = (u.square() + v.square()).sqrt(), torch.atan2(-v, -u) / math.pi
    place = (angle + 1) / 2 * 54
    low = place.floor()
    part = (place.double() - low.double())[:, None]
    wheel = (color_wheel().to(flow.device) / 255).T  # (3, 55)
    first, second = wheel[:, low.long()].movedim(0, 1), wheel[:, (low.long() + 1) % 55].movedim(0, 1)
    color = 1 - radius.double()[:, None] * (1 - ((1 - part) * first + part * second))
    red, green, blue = (255 * color).floor().long().split(1, 1)
    return ((9798 * red + 19235 * green + 3735 * blue + 16384) >> 15).float()


def calibration_mask(flow: Tensor, *, sigma: float = 0.35) -> Tensor:
    """Where the flow is like that of the sample as a whole: 1 where its gray is within ``sigma`` of the mean gray.

    Grays are those of the flow drawn in color, see :func:`flow_gray`: still pixels are white, fast ones dark, and
    direction counts too. Zero and constant flow give a mask of ones. Without gradient.

    Shape: flow (B, 2, H, W) in pixels -> (B, 1, H, W), 0 or 1.

    Raises:
        TypeError: ``flow`` is no floating-point tensor.
        ValueError: its shape differs, or ``sigma`` is negative.

    Source: JDRL (Li et al., AAAI 2023), the calibration mask of its deformation loss.
    """
    checks.expect_number("calibration_mask", "sigma", sigma, minimum=0)
    gray = flow_gray(flow)
    mean = gray.mean((1, 2, 3), keepdim=True)
    return ((gray >= (1 - sigma) * mean) & (gray <= (1 + sigma) * mean)).to(flow.dtype)


def deformed_pair(
    restored: Tensor,
    sharp: Tensor,
    flow: Tensor,
    back_flow: Tensor | None = None,
    *,
    sigma: float | None = 0.35,
    eps: float = 1e-3,
    exact: bool = False,
) -> Tensor:
    """Charbonnier distance of a restored image and a misaligned sharp one, each warped onto the other, and masked.

    ``charbonnier(M r, M warp(s, flow)) + charbonnier(M' s, M' warp(r, back_flow))``, M and M' the calibration masks of
    the two flows. The mean is over all pixels, masked ones too, as published. Flows get no gradient.

    Args:
        restored: gets the gradient, through both terms.
        sharp: the misaligned target.
        flow: from the restored image to the sharp one: where its pixels are found there, in pixels.
        back_flow: from the sharp image to the restored one; None leaves the second term out.
        sigma: of the masks, see :func:`calibration_mask`; None for no masks.
        eps: of the Charbonnier distance.
        exact: warp exactly; False warps as released, half a pixel off at the borders
            (see :func:`tta_restore.ops.flow_warp`).

    Shape: restored, sharp (B, C, H, W) in [0, 1]; flow, back_flow (B, 2, H, W) -> scalar.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes differ, or a setting is out of range.

    Source: JDRL (Li et al., AAAI 2023), its deformation loss.
    """
    checks.expect_floating("deformed_pair", restored=restored, sharp=sharp, flow=flow)
    b, c, h, w = checks.expect_shape("deformed_pair", "restored", restored, "(B, C, H, W)")
    checks.expect_shape("deformed_pair", "sharp", sharp, "restored.shape", (b, c, h, w))
    terms = []
    for name, target, source, motion in (("flow", restored, sharp, flow), ("back_flow", sharp, restored, back_flow)):
        if motion is None:
            continue
        checks.expect_shape("deformed_pair", name, motion, "(B, 2, H, W)", (b, 2, h, w))
        motion = motion.detach()
        warped = ops.flow_warp(source, motion, padding_mode="border", align_corners=exact)
        if sigma is not None:
            mask = calibration_mask(motion, sigma=sigma).to(target.dtype)
            target, warped = mask * target, mask * warped
        terms.append(charbonnier(warped, target, eps=eps))
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


class DeformedPair(nn.Module):
    """Module of :func:`deformed_pair`."""

    def __init__(self, *, sigma: float | None = 0.35, eps: float = 1e-3, exact: bool = False) -> None:
        super().__init__()
        self.sigma, self.eps, self.exact = sigma, eps, exact

    def forward(self, restored: Tensor, sharp: Tensor, flow: Tensor, back_flow: Tensor | None = None) -> Tensor:
        """Loss of a restored image against a misaligned sharp one."""
        return deformed_pair(restored, sharp, flow, back_flow, sigma=self.sigma, eps=self.eps, exact=self.exact)

    def extra_repr(self) -> str:
        """Arguments shown by repr."""
        return f"sigma={self.sigma}, eps={self.eps}, exact={self.exact}"
