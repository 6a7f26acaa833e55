"""Reblurring network without training: blur along the optical flow of the neighboring frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore._core.color import linear_to_srgb, srgb_to_linear
from tta_restore.models.optical_flow import FlowEstimator, LucasKanade
from tta_restore.models.registry import register_model

__all__ = ["MotionReblur"]


@register_model("motion_reblur", kind="reblurrer")
class MotionReblur(nn.Module):
    """Motion blur of the center frame of a clip along the flow between its neighbors.

    The velocity at the center frame is half of the optical flow between the frames before and after it. The center
    frame does not enter the flow, so that it may be replaced by a sharp image of the same content. Light along the
    straight path of that velocity is averaged in linear light over the exposure time, the only parameter.

    Args:
        exposure: initial value of the parameter, the fraction of the frame interval in which the shutter is open, in
            (0, 1]; 0.5 is the 180 degree shutter of film.
        num_subframes: number of sub-frames averaged over each exposure.
        num_frames: odd number T of frames; the center three are used.
        flow: function of two images that returns flow in pixels; None for :class:`LucasKanade`.
        device: device of the parameter.
        dtype: dtype of the parameter.

    Shape:
        - clip: (B, T, 3, H, W) in [0, 1]
        - output: (B, 3, H, W) in [0, 1]

    Raises:
        ValueError: The clip has another shape, or a setting is out of range.
        TypeError: The clip is not a floating-point tensor, or ``flow`` is not callable.

    Source: Chen et al., Reblur2Deblur, ICCP 2018; it takes the role of the reblurring network of Liu et al., Meta
    transferring for deblurring, BMVC 2022.

    >>> MotionReblur()(torch.rand(1, 5, 3, 20, 33)).shape
    torch.Size([1, 3, 20, 33])
    """

    def __init__(
        self,
        *,
        exposure: float = 0.5,
        num_subframes: int = 11,
        num_frames: int = 5,
        flow: FlowEstimator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.expect_int("MotionReblur", "num_subframes", num_subframes, minimum=2)
        checks.expect_int("MotionReblur", "num_frames", num_frames, minimum=3, odd=True)
        checks.expect_number("MotionReblur", "exposure", exposure, above=0, maximum=1)
        if flow is not None and not callable(flow):
            raise TypeError(f"MotionReblur: expected flow to be a function of two images, got {type(flow).__name__}")
        self.num_subframes, self.num_frames = num_subframes, num_frames
        self.flow: Callable[[Tensor, Tensor], Tensor] = flow or LucasKanade(window=15, iterations=8)
        self.exposure = nn.Parameter(torch.tensor(exposure, device=device, dtype=dtype))

    def forward(self, clip: Tensor) -> Tensor:
        """Return the blurred center frame."""
        checks.expect_floating("MotionReblur", clip=clip)
        checks.expect_shape("MotionReblur", "clip", clip, "(B, T, 3, H, W)", (None, self.num_frames, 3, None, None))
        middle = self.num_frames // 2
        before, sharp, after = clip[:, middle - 1 : middle + 2].unbind(1)
        # Forward minus backward flow makes the path symmetric in time; both span two frame intervals.
        with torch.no_grad():
            velocity = (self.flow(before, after) - self.flow(after, before)).to(clip.dtype) / 4
        # A sensor sums light, not stored values.
        light = srgb_to_linear(sharp.clamp(0, 1))
        path = velocity.movedim(1, -1) * self.exposure
        total = torch.zeros_like(light)
        for subframe in range(self.num_subframes):
            total = total + _sample(light, path * ((subframe + 0.5) / self.num_subframes - 0.5))
        return linear_to_srgb((total / self.num_subframes).clamp(0, 1))


def _sample(x: Tensor, shift: Tensor) -> Tensor:
    """Sample an image at shifted pixels: (B, C, H, W), (B, H, W, 2) -> (B, C, H, W).

    Bicubic: the bilinear samples of ``ops.flow_warp`` would add blur.
    """
    height, width = x.shape[-2:]
    size = shift.new_tensor([width, height])
    rows, columns = (torch.arange(n, device=x.device, dtype=shift.dtype) for n in (height, width))
    position = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
    grid = (2 * (position + shift) + 1) / size - 1
    return F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)
