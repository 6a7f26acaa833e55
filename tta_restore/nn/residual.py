"""Convolutions and residual blocks with leaky ReLUs, and the disparity estimator built of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tta_restore._core import checks

SLOPE = 0.1


def activated_conv(
    in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1, **factory: Any
) -> nn.Sequential:
    """A convolution that keeps the size (or halves it, with stride 2), then a leaky ReLU of slope 0.1, in place."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, **factory)
    return nn.Sequential(conv, nn.LeakyReLU(SLOPE, inplace=True))


def activated_upconv(in_channels: int, out_channels: int, **factory: Any) -> nn.Sequential:
    """A transposed convolution that doubles the size exactly, then a leaky ReLU of slope 0.1, in place."""
    conv = nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1, **factory)
    return nn.Sequential(conv, nn.LeakyReLU(SLOPE, inplace=True))


class ResidualChain(nn.Module):
    """Residual units in a row, each activated after its sum: ``x <- leaky_relu(x + conv(leaky_relu(conv(x))))``.

    With more than one unit the input of the chain is added once more at its end, without an activation.

    Args:
        channels: C.
        num_units: of two 3x3 convolutions each.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - x: (B, C, H, W)
        - output: (B, C, H, W)

    Source: Iterative Filter Adaptive Network (Lee et al., CVPR 2021), its residual block.

    >>> ResidualChain(4, num_units=2)(torch.rand(1, 4, 5, 6)).shape
    torch.Size([1, 4, 5, 6])
    """

    def __init__(
        self,
        channels: int,
        *,
        num_units: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.expect_int("ResidualChain", "num_units", num_units, minimum=1)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.stem = nn.ModuleList(
            nn.Sequential(
                *activated_conv(channels, channels, **factory),
                nn.Conv2d(channels, channels, 3, padding=1, **factory),
            )
            for _ in range(num_units)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Refine ``x``."""
        y = x
        for unit in self.stem:
            y = nn.functional.leaky_relu_(y + unit(y), SLOPE)
        return y + x if len(self.stem) > 1 else y


class DisparityEstimator(nn.Sequential):
    """Estimate from features by how much the right view of a dual pixel must be shifted to meet the left one.

    Trained through :func:`tta_restore.ops.disparity_warp`: the right view, fetched from ``disparity`` pixels further
    right, is compared with the left view. In pixels of the features' own grid; without bounds.

    Args:
        channels: C of the features.
        num_res_blocks: units in each of the two residual chains.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - features: (B, C, H, W)
        - output: (B, 1, H, W)

    Source: Iterative Filter Adaptive Network (Lee et al., CVPR 2021), its disparity map estimator.

    >>> DisparityEstimator(8)(torch.rand(1, 8, 5, 6)).shape
    torch.Size([1, 1, 5, 6])
    """

    def __init__(
        self,
        channels: int = 128,
        *,
        num_res_blocks: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            activated_conv(channels, channels, **factory),
            ResidualChain(channels, num_units=num_res_blocks, **factory),
            ResidualChain(channels, num_units=num_res_blocks, **factory),
            nn.Conv2d(channels, 1, 3, padding=1, **factory),
        )
        self.channels = channels

    def forward(self, features: Tensor) -> Tensor:
        """Disparity of every pixel."""
        checks.expect_floating("DisparityEstimator", features=features)
        sizes = (None, self.channels, None, None)
        checks.expect_shape("DisparityEstimator", "features", features, "(B, C, H, W)", sizes)
        return super().forward(features)
