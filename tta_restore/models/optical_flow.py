"""Optical flow for misaligned pairs: any estimator behind one call, and one that needs no weights.

An estimator is a function of two images (B, 3, H, W), RGB in [0, 1], that returns (B, 2, H, W) pixels: what the first
image shows at p is found in the second at p + flow(p); channel 0 points right, channel 1 down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore import ops
from tta_restore._core import checks
from tta_restore._core.color import luma
from tta_restore.models.checkpoint import load_checkpoint
from tta_restore.models.pwc_net import PwcNet

FlowEstimator = Callable[[Tensor, Tensor], Tensor]


def resized_flow(
    network: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor, *, multiple: int = 64, scale: float = 20
) -> Tensor:
    """Flow in pixels from a network that wants sides of a ``multiple`` and answers small and in units of its own.

    Shape: first, second (B, C, H, W) -> (B, 2, H, W); the network maps to (B, 2, h, w) of any size.

    Source: JDRL (Li et al., AAAI 2023), how it calls its flow network.
    """
    _, _, height, width = checks.expect_shape("resized_flow", "first", first, "(B, C, H, W)")
    checks.expect_shape("resized_flow", "second", second, "first.shape", tuple(first.shape))
    size = (math.ceil(height / multiple) * multiple, math.ceil(width / multiple) * multiple)
    a, b = (F.interpolate(x, size=size, mode="bilinear") for x in (first, second))
    flow = F.interpolate(network(a, b), size=(height, width), mode="bilinear") * scale
    return flow * flow.new_tensor([width / size[1], height / size[0]])[:, None, None]


class NetworkFlow(nn.Module):
    """A flow network as an estimator: frozen, in eval mode, without gradient, resized as :func:`resized_flow` does.

    Args:
        network: two images -> (B, 2, h, w).
        multiple: of its sides.
        scale: its unit in pixels.
        value_range: of its input.
        bgr: whether it takes blue first, as the released PWC-Net weights customarily do.

    Shape: first, second (B, 3, H, W), RGB in [0, 1] -> (B, 2, H, W) in pixels.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        multiple: int = 64,
        scale: float = 20.0,
        value_range: tuple[float, float] = (0.0, 1.0),
        bgr: bool = False,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.multiple, self.scale, self.value_range, self.bgr = multiple, scale, value_range, bgr

    def train(self, mode: bool = True) -> NetworkFlow:
        """Stay in eval mode."""
        return self

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Flow from ``first`` to ``second``."""
        low, high = self.value_range
        first, second = (x.float() * (high - low) + low for x in (first, second))
        if self.bgr:
            first, second = first.flip(1), second.flip(1)
        with torch.autocast(first.device.type, enabled=False):
            return resized_flow(self.network, first, second, multiple=self.multiple, scale=self.scale)


class LucasKanade(nn.Module):
    """Dense flow by windowed least squares from coarse to fine: no weights, CPU or GPU, for small smooth motion.

    It is meant for what misaligned pairs have, shifts, zooms, rotations and slow local motion of up to some ten pixels,
    and takes a blurry image beside a sharp one: both are low-passed first, so that their edges look alike.

    Args:
        levels: of the pyramid, fewer for small images.
        iterations: per level.
        window: side of the least-squares window in pixels of a level.
        smooth: standard deviation in pixels of the low pass on every level.

    Shape: first, second (B, 3, H, W), RGB in [0, 1] -> (B, 2, H, W) in pixels.

    Source: An iterative image registration technique (Lucas and Kanade, IJCAI 1981).
    """

    def __init__(self, *, levels: int = 4, iterations: int = 4, window: int = 41, smooth: float = 1.5) -> None:
        super().__init__()
        for name, value in (("levels", levels), ("iterations", iterations)):
            checks.expect_int("LucasKanade", name, value, minimum=1)
        checks.expect_int("LucasKanade", "window", window, minimum=3, odd=True)
        self.levels, self.iterations, self.window, self.smooth = levels, iterations, window, smooth

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Flow from ``first`` to ``second``."""
        checks.expect_floating("LucasKanade", first=first, second=second)
        checks.expect_shape("LucasKanade", "second", second, "first.shape", tuple(first.shape))
        with torch.autocast(first.device.type, enabled=False):
            pyramid = [tuple(luma(x.float()) for x in (first, second))]
            while len(pyramid) < self.levels and min(pyramid[-1][0].shape[2:]) >= 2 * self.window:
                pyramid.append(tuple(F.avg_pool2d(x, 2, ceil_mode=True) for x in pyramid[-1]))
            flow = first.new_zeros(first.shape[0], 2, *pyramid[-1][0].shape[2:], dtype=torch.float32)
            for a, b in reversed(pyramid):
                if flow.shape[2:] != a.shape[2:]:
                    flow = 2 * F.interpolate(flow, size=a.shape[2:], mode="bilinear")
                flow = self._refine(_blur(a, self.smooth), _blur(b, self.smooth), flow)
        return flow

    def _refine(self, a: Tensor, b: Tensor, flow: Tensor) -> Tensor:
        for _ in range(self.iterations):
            moved = ops.flow_warp(b, flow, padding_mode="border")
            # where the flow points outside the frame there is nothing to compare
            inside = ops.flow_warp(torch.ones_like(b), flow)
            mean = F.pad((a + moved) / 2, (1, 1, 1, 1), mode="replicate")
            dx, dy = (mean[..., 1:-1, 2:] - mean[..., 1:-1, :-2]) / 2, (mean[..., 2:, 1:-1] - mean[..., :-2, 1:-1]) / 2
            error = a - moved
            products = torch.cat([dx * dx, dx * dy, dy * dy, dx * error, dy * error], 1) * inside
            xx, xy, yy, xe, ye = _blur(products, self.window / 4).split(1, 1)
            damping = 1e-6 + 0.01 * (xx + yy).mean((2, 3), keepdim=True)
            xx, yy = xx + damping, yy + damping
            determinant = xx * yy - xy * xy
            step = torch.cat([yy * xe - xy * ye, xx * ye - xy * xe], 1) / determinant
            flow = _blur(flow + step.clamp(-1, 1), self.window / 8)
        return flow


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with replicated borders."""
    reach = math.ceil(2.5 * sigma)
    if reach == 0:
        return x
    taps = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    taps = torch.exp(-taps.square() / (2 * sigma**2))
    taps = (taps / taps.sum()).expand(x.shape[1], 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), taps[:, :, None], groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), taps[..., None], groups=x.shape[1])


def create_flow(name: str = "auto", *, checkpoint: str | Path | None = None, **options: Any) -> nn.Module:
    """A flow estimator by name.

    Args:
        name: ``"lucas_kanade"``; ``"pwc"`` with a ``checkpoint`` of PWC-Net; ``"raft"``, torchvision's small RAFT, with
            a ``checkpoint`` or with weights that torchvision has downloaded before; or ``"auto"``: RAFT where its
            weights are there, else Lucas-Kanade. Nothing is downloaded.
        checkpoint: of the network.
        options: for the class.

    Raises:
        ValueError: there is no such estimator, or its weights are missing.
    """
    checks.expect_choice("create_flow", "name", name, ("auto", "lucas_kanade", "pwc", "raft"))
    if name == "lucas_kanade" or (name == "auto" and checkpoint is None and _raft_file() is None):
        return LucasKanade(**options)
    if name == "pwc":
        if checkpoint is None:
            raise ValueError("create_flow: PWC-Net comes without weights (theirs are non-commercial); pass checkpoint")
        return NetworkFlow(load_checkpoint(PwcNet(), checkpoint), **options)
    file = checkpoint or _raft_file()
    if file is None:
        raise ValueError("create_flow: torchvision's RAFT weights are not on this machine; pass checkpoint")
    from torchvision.models.optical_flow import raft_small

    network = _LastFlow(load_checkpoint(raft_small(progress=False), file))
    raft: dict[str, Any] = {"multiple": 8, "scale": 1.0, "value_range": (-1.0, 1.0)}
    return NetworkFlow(network, **raft | options)


class _LastFlow(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        # RAFT's correlation pyramid wants 128 pixels at least
        height, width = first.shape[2:]
        pad = (0, max(128 - width, 0), 0, max(128 - height, 0))
        first, second = (F.pad(x, pad, mode="replicate") for x in (first, second))
        return self.network(first, second)[-1][..., :height, :width]


def _raft_file() -> Path | None:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return next(iter(sorted(folder.glob("raft_small*.pth"))), None)
