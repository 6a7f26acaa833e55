"""Backward warps, composed from torch's ``grid_sample``: fast, differentiable to second order and well kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tta_restore._core import checks

_PADDING_MODES = ("zeros", "border", "reflection")


def flow_warp(x: Tensor, flow: Tensor, *, padding_mode: str = "zeros", align_corners: bool = True) -> Tensor:
    r"""Fetch every output pixel bilinearly from where the flow points: ``out[y, x] = x[y + flow_y, x + flow_x]``.

    Zero flow is the identity. The half-precision types are sampled in float32; the result has the dtype of ``x``.

    Args:
        x: frames or features, any range.
        flow: displacement in pixels of ``x``, channel 0 to the right, channel 1 downwards.
        padding_mode: what lies outside the frame: ``"zeros"``, ``"border"`` or ``"reflection"`` about the outer pixels.
            Flow that is not finite gives NaN.
        align_corners: False reproduces the released JDRL warp (with ``padding_mode="border"``), whose grid and sampler
            disagree: along an axis of N pixels it samples at ``(p + flow) * N / (N - 1) - 1 / 2``, so that even zero
            flow stretches and blurs. For published numbers only.

    Shape:
        - x: (B, C, H, W)
        - flow: (B, 2, H, W)
        - output: (B, C, H, W)

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes or devices do not match, ``padding_mode`` is unknown, or an axis of length 1 with
            ``align_corners=False``.

    Source: JDRL (Li et al., AAAI 2023), the deformation loss and its released warp.

    >>> ramp = torch.arange(4.0).view(1, 1, 1, 4)
    >>> right = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    >>> flow_warp(ramp, right).flatten().tolist()
    [1.0, 2.0, 3.0, 0.0]
    """
    checks.expect_floating("flow_warp", x=x, flow=flow)
    b, _, h, w = checks.expect_shape("flow_warp", "x", x, "(B, C, H, W)")
    checks.expect_shape("flow_warp", "flow", flow, "(B, 2, H, W)", (b, 2, h, w))
    checks.expect_same_device("flow_warp", x=x, flow=flow)
    checks.expect_choice("flow_warp", "padding_mode", padding_mode, _PADDING_MODES)
    if not align_corners and min(h, w) < 2:
        raise ValueError(f"flow_warp: expected H >= 2 and W >= 2 with align_corners=False, got {tuple(x.shape)}")
    return _sample(x, flow, padding_mode, exact=align_corners)


def disparity_warp(x: Tensor, disparity: Tensor) -> Tensor:
    r"""Fetch every output pixel from ``disparity`` pixels further right: ``out[y, x] = x[y, x + disparity[y, x]]``.

    Bilinear, zeros outside the frame. With the right view of a stereo or dual-pixel pair as ``x`` and the right-to-left
    disparity, the result is comparable with the left view.

    Shape:
        - x: (B, C, H, W), any range
        - disparity: (B, 1, H, W), in pixels of ``x``
        - output: (B, C, H, W)

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes or devices do not match.

    Source: Iterative Filter Adaptive Network (Lee et al., CVPR 2021), disparity loss.

    >>> ramp = torch.arange(1.0, 5.0).view(1, 1, 1, 4)
    >>> disparity_warp(ramp, torch.ones(1, 1, 1, 4)).flatten().tolist()
    [2.0, 3.0, 4.0, 0.0]
    """
    checks.expect_floating("disparity_warp", x=x, disparity=disparity)
    b, _, h, w = checks.expect_shape("disparity_warp", "x", x, "(B, C, H, W)")
    checks.expect_shape("disparity_warp", "disparity", disparity, "(B, 1, H, W)", (b, 1, h, w))
    checks.expect_same_device("disparity_warp", x=x, disparity=disparity)
    return _sample(x, F.pad(disparity, (0, 0, 0, 0, 0, 1)), "zeros", exact=True)


def _sample(x: Tensor, flow: Tensor, padding_mode: str, *, exact: bool) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    # Reflection about the outer pixels is what grid_sample calls align_corners=True. The other modes go by half-pixel
    # centers, whose normalization also holds for axes of length 1.
    corners = exact and padding_mode == "reflection"
    axes = []
    for axis, size in ((0, x.shape[3]), (1, x.shape[2])):
        pixels = torch.arange(size, device=x.device, dtype=dtype)
        position = flow[:, axis].to(dtype) + (pixels if axis == 0 else pixels[:, None])
        centers = exact and not corners
        axes.append((2 * position + 1) / size - 1 if centers else 2 * position / max(size - 1, 1) - 1)
    grid = torch.stack(axes, -1)
    if padding_mode == "zeros":
        # NaN becomes pixel 0 where aarch64 and GPUs convert it to an integer, which then gets a gradient of NaN
        places = grid.nan_to_num(math.inf, math.inf, -math.inf)
        return F.grid_sample(x.to(dtype), places, padding_mode=padding_mode, align_corners=corners).to(x.dtype)
    # torch's backward pass on CPUs writes outside its memory at positions that are not finite; the result there is NaN
    places = grid.nan_to_num(0.0, 0.0, 0.0)
    sampled = F.grid_sample(x.to(dtype), places, padding_mode=padding_mode, align_corners=corners)
    return (sampled + (grid - grid).sum(-1)[:, None]).to(x.dtype)
