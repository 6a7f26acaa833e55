"""A reblurrer that needs no training: it smears a frame along the motion that its neighbors show."""

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


@register_model("motion_reblur", kind="reblurrer")
class MotionReblur(nn.Module):
    """Blurs the middle frame of a clip as its neighbors move, for the time that the shutter is open.

    The velocity at the middle frame is half of the optical flow between the frames before and after it. The middle
    itself is not looked at: it may be a sharp picture of the same place at another moment, too. What a shutter
    gathers along a straight path of that velocity is summed in linear light. The only weight is the exposure.

    Args:
        exposure: part of the time between two frames in which the shutter is open, the start of the weight; 0.5 is
            what film and many cameras use.
        moments: of each exposure that are summed.
        num_frames: T, odd; three of them are looked at.
        flow: from two images to the flow in pixels; None for :class:`LucasKanade`, which takes camera motion.
        device: of the weight.
        dtype: of the weight.

    Shape:
        - clip: (B, T, 3, H, W) in [0, 1]
        - output: (B, 3, H, W) in [0, 1]

    Raises:
        ValueError: the clip has another shape, or a setting is out of range.
        TypeError: the clip is not of floating point, or ``flow`` cannot be called.

    Source: reblurring along optical flow, as in Reblur2Deblur (Chen et al., ICCP 2018), as the reblurrer of Meta
    Transferring for Deblurring (Liu et al., BMVC 2022).

    >>> MotionReblur()(torch.rand(1, 5, 3, 20, 33)).shape
    torch.Size([1, 3, 20, 33])
    """

    def __init__(
        self,
        *,
        exposure: float = 0.5,
        moments: int = 11,
        num_frames: int = 5,
        flow: FlowEstimator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.expect_int("MotionReblur", "moments", moments, minimum=2)
        checks.expect_int("MotionReblur", "num_frames", num_frames, minimum=3, odd=True)
        checks.expect_number("MotionReblur", "exposure", exposure, above=0, maximum=1)
        if flow is not None and not callable(flow):
            raise TypeError(f"MotionReblur: expected flow to be a function of two images, got {type(flow).__name__}")
        self.moments, self.num_frames = moments, num_frames
        self.flow: Callable[[Tensor, Tensor], Tensor] = flow or LucasKanade(window=15, iterations=8)
        self.exposure = nn.Parameter(torch.tensor(exposure, device=device, dtype=dtype))

    def forward(self, clip: Tensor) -> Tensor:
        """The middle frame, blurred."""
        checks.expect_floating("MotionReblur", clip=clip)
        checks.expect_shape("MotionReblur", "clip", clip, "(B, T, 3, H, W)", (None, self.num_frames, 3, None, None))
        middle = self.num_frames // 2
        before, sharp, after = clip[:, middle - 1 : middle + 2].unbind(1)
        with torch.no_grad():  # one way and back, for a path that is symmetric in time
            velocity = (self.flow(before, after) - self.flow(after, before)).to(clip.dtype) / 4
        light = srgb_to_linear(sharp.clamp(0, 1))
        path = velocity.movedim(1, -1) * self.exposure
        gathered = torch.zeros_like(light)
        for moment in range(self.moments):
            gathered = gathered + _look(light, path * ((moment + 0.5) / self.moments - 0.5))
        return linear_to_srgb((gathered / self.moments).clamp(0, 1))


def _look(x: Tensor, shift: Tensor) -> Tensor:
    """What a picture shows beside each pixel: (B, C, H, W), (B, H, W, 2) -> (B, C, H, W).

    Bicubic, for what `ops.flow_warp` does between pixels would add a blur of its own.
    """
    height, width = x.shape[-2:]
    size = shift.new_tensor([width, height])
    rows, columns = (torch.arange(n, device=x.device, dtype=shift.dtype) for n in (height, width))
    place = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
    grid = (2 * (place + shift) + 1) / size - 1
    return F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)
