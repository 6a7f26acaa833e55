"""Optical flow for misaligned pairs: flow networks behind one interface, and Lucas-Kanade without weights.

An estimator is a function of two images (B, 3, H, W), RGB in [0, 1], that returns (B, 2, H, W) pixels: the content of
the first image at p is at p + flow(p) in the second; channel 0 points right, channel 1 down.
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
from tta_restore.models.pwc_net import PWCNet

__all__ = ["FlowEstimator", "LucasKanade", "NetworkFlow", "create_flow", "resized_flow"]

FlowEstimator = Callable[[Tensor, Tensor], Tensor]


def resized_flow(
    network: Callable[[Tensor, Tensor], Tensor],
    first: Tensor,
    second: Tensor,
    *,
    size_multiple: int = 64,
    flow_unit: float = 20,
) -> Tensor:
    """Return the flow in pixels from a network with a size multiple and a flow unit.

    Args:
        network: function of two images to (B, 2, h, w), of any size.
        first: image in which the flow is given.
        second: image to which the flow points.
        size_multiple: number of pixels of which the network's sides are multiples; images are resized to them.
        flow_unit: unit of the network's flow in pixels of its input.

    Shape: first, second (B, C, H, W) -> (B, 2, H, W).

    Source: Li et al., JDRL, AAAI 2023.
    """
    _, _, height, width = checks.expect_shape("resized_flow", "first", first, "(B, C, H, W)")
    checks.expect_shape("resized_flow", "second", second, "first.shape", tuple(first.shape))
    size = (math.ceil(height / size_multiple) * size_multiple, math.ceil(width / size_multiple) * size_multiple)
    a, b = (F.interpolate(x, size=size, mode="bilinear") for x in (first, second))
    flow = F.interpolate(network(a, b), size=(height, width), mode="bilinear") * flow_unit
    return flow * flow.new_tensor([width / size[1], height / size[0]])[:, None, None]


class NetworkFlow(nn.Module):
    """Frozen flow network as an estimator, in eval mode and without gradients.

    Args:
        network: network of two images to (B, 2, h, w).
        size_multiple: number of pixels of which the network's sides are multiples, see :func:`resized_flow`.
        flow_unit: unit of the network's flow in pixels of its input.
        value_range: value range of the network's input.
        bgr: feed the color channels in reverse order, as the public PWC-Net weights expect.

    Shape: first, second (B, 3, H, W), RGB in [0, 1] -> (B, 2, H, W) in pixels.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        size_multiple: int = 64,
        flow_unit: float = 20.0,
        value_range: tuple[float, float] = (0.0, 1.0),
        bgr: bool = False,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.size_multiple, self.flow_unit = size_multiple, flow_unit
        self.value_range, self.bgr = value_range, bgr

    def train(self, mode: bool = True) -> NetworkFlow:
        """Keep eval mode."""
        return self

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the flow from ``first`` to ``second``. Shape: (B, 3, H, W) each -> (B, 2, H, W)."""
        low, high = self.value_range
        first, second = (x.float() * (high - low) + low for x in (first, second))
        if self.bgr:
            first, second = first.flip(1), second.flip(1)
        with torch.autocast(first.device.type, enabled=False):
            return resized_flow(self.network, first, second, size_multiple=self.size_multiple, flow_unit=self.flow_unit)


class LucasKanade(nn.Module):
    """Dense Lucas-Kanade flow without weights, by windowed least squares on a pyramid.

    It covers the motion of misaligned pairs: shifts, zooms, rotations and slow local motion of up to about ten pixels.
    Both images are low-pass filtered first, so that a blurry image can be compared with a sharp one.

    Args:
        levels: largest number of pyramid levels; small images use fewer.
        iterations: iterations per level.
        window: odd side of the least-squares window in pixels of a level.
        smooth: standard deviation in pixels of the low-pass filter on every level.

    Shape: first, second (B, 3, H, W), RGB in [0, 1] -> (B, 2, H, W) in pixels.

    Source: Lucas and Kanade, An iterative image registration technique, IJCAI 1981.
    """

    def __init__(self, *, levels: int = 4, iterations: int = 4, window: int = 41, smooth: float = 1.5) -> None:
        super().__init__()
        for name, value in (("levels", levels), ("iterations", iterations)):
            checks.expect_int("LucasKanade", name, value, minimum=1)
        checks.expect_int("LucasKanade", "window", window, minimum=3, odd=True)
        self.levels, self.iterations, self.window, self.smooth = levels, iterations, window, smooth

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the flow from ``first`` to ``second``. Shape: (B, 3, H, W) each -> (B, 2, H, W)."""
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
            # Pixels whose flow points outside the image do not count.
            inside = ops.flow_warp(torch.ones_like(b), flow)
            mean = F.pad((a + moved) / 2, (1, 1, 1, 1), mode="replicate")
            dx, dy = (mean[..., 1:-1, 2:] - mean[..., 1:-1, :-2]) / 2, (mean[..., 2:, 1:-1] - mean[..., :-2, 1:-1]) / 2
            error = a - moved
            products = torch.cat([dx * dx, dx * dy, dy * dy, dx * error, dy * error], 1) * inside
            xx, xy, yy, xe, ye = _blur(products, self.window / 4).split(1, 1)
            # Damping relative to the mean gradient energy keeps flat regions from diverging.
            damping = 1e-6 + 0.01 * (xx + yy).mean((2, 3), keepdim=True)
            xx, yy = xx + damping, yy + damping
            determinant = xx * yy - xy * xy
            # Cramer's rule on the 2 x 2 normal equations; steps are limited to one pixel of the level.
            step = torch.cat([yy * xe - xy * ye, xx * ye - xy * xe], 1) / determinant
            flow = _blur(flow + step.clamp(-1, 1), self.window / 8)
        return flow


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Return the image blurred by a Gaussian, with replicated borders."""
    reach = math.ceil(2.5 * sigma)
    if reach == 0:
        return x
    taps = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    taps = torch.exp(-taps.square() / (2 * sigma**2))
    taps = (taps / taps.sum()).expand(x.shape[1], 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), taps[:, :, None], groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), taps[..., None], groups=x.shape[1])


def create_flow(name: str = "auto", *, checkpoint: str | Path | None = None, **options: Any) -> nn.Module:
    """Return a flow estimator by name.

    Nothing is downloaded.

    Args:
        name: ``"lucas_kanade"``; ``"pwc"``, PWC-Net, which needs a checkpoint; ``"raft"``, torchvision's small RAFT,
            with a checkpoint or weights that torchvision has downloaded before; or ``"auto"``: RAFT if its weights are
            present, else Lucas-Kanade.
        checkpoint: file with the weights of the network.
        options: arguments of :class:`LucasKanade` or :class:`NetworkFlow`.

    Raises:
        ValueError: The name is unknown, or its weights are missing.
    """
    checks.expect_choice("create_flow", "name", name, ("auto", "lucas_kanade", "pwc", "raft"))
    if name == "lucas_kanade" or (name == "auto" and checkpoint is None and _raft_file() is None):
        return LucasKanade(**options)
    if name == "pwc":
        if checkpoint is None:
            raise ValueError(
                "create_flow: expected a checkpoint of PWC-Net, whose weights are non-commercial and not included; "
                "pass checkpoint (--flow-checkpoint)"
            )
        return NetworkFlow(load_checkpoint(PWCNet(), checkpoint), **options)
    checkpoint = checkpoint or _raft_file()
    if checkpoint is None:
        raise ValueError("create_flow: expected weights of torchvision's RAFT, found none; pass checkpoint")
    from torchvision.models.optical_flow import raft_small  # slow to import, and most estimators do not need it

    network = _LastFlow(load_checkpoint(raft_small(progress=False), checkpoint))
    raft: dict[str, Any] = {"size_multiple": 8, "flow_unit": 1.0, "value_range": (-1.0, 1.0)}
    return NetworkFlow(network, **raft | options)


class _LastFlow(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        # The correlation pyramid of RAFT needs sides of at least 128 pixels.
        height, width = first.shape[2:]
        pad = (0, max(128 - width, 0), 0, max(128 - height, 0))
        first, second = (F.pad(x, pad, mode="replicate") for x in (first, second))
        return self.network(first, second)[-1][..., :height, :width]


def _raft_file() -> Path | None:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return next(iter(sorted(folder.glob("raft_small*.pth"))), None)
