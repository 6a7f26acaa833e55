"""Convolutions and residual blocks with leaky ReLUs, and the disparity estimator of IFAN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tta_restore._core import checks

__all__ = ["DisparityEstimator"]

SLOPE = 0.1


def activated_conv(
    in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1, **factory: Any
) -> nn.Sequential:
    """Return a size-preserving convolution (halving with stride 2) and an in-place leaky ReLU of slope 0.1."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, **factory)
    return nn.Sequential(conv, nn.LeakyReLU(SLOPE, inplace=True))


def activated_upconv(in_channels: int, out_channels: int, **factory: Any) -> nn.Sequential:
    """Return a transposed convolution that doubles the size and an in-place leaky ReLU of slope 0.1."""
    conv = nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1, **factory)
    return nn.Sequential(conv, nn.LeakyReLU(SLOPE, inplace=True))


class ResidualChain(nn.Module):
    """Sequence of residual units ``x <- leaky_relu(x + conv(leaky_relu(conv(x))))``.

    With more than one unit the input is added once more at the end, without an activation.

    Args:
        channels: channels C of input and output.
        num_units: number of units, of two 3x3 convolutions each.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - x: (B, C, H, W)
        - output: (B, C, H, W)

    Source: Lee et al., Iterative filter adaptive network, CVPR 2021.

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
        """Return refined features. Shape: (B, C, H, W) -> (B, C, H, W)."""
        y = x
        for unit in self.stem:
            # In place on the sum, which no other operation reads.
            y = nn.functional.leaky_relu_(y + unit(y), SLOPE)
        return y + x if len(self.stem) > 1 else y


class DisparityEstimator(nn.Sequential):
    """Estimator of the disparity between the two views of a dual pixel, from features of one image.

    It is trained through :func:`tta_restore.ops.disparity_warp`: the right view, sampled ``disparity`` pixels further
    right, is compared with the left view. Disparities are in pixels of the feature grid and unbounded.

    Args:
        channels: channels C of the features.
        num_res_blocks: units in each of the two residual chains.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - features: (B, C, H, W)
        - output: (B, 1, H, W)

    Source: Lee et al., Iterative filter adaptive network, CVPR 2021.

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
        """Return the disparity map. Shape: (B, C, H, W) -> (B, 1, H, W)."""
        checks.expect_floating("DisparityEstimator", features=features)
        sizes = (None, self.channels, None, None)
        checks.expect_shape("DisparityEstimator", "features", features, "(B, C, H, W)", sizes)
        return super().forward(features)
