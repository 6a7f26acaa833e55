"""Layers of the iterative adaptive convolution: filters given, or predicted from features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tta_restore import ops
from tta_restore.ops.adaptive_conv import Horizontal


class IterativeAdaptiveConv2d(nn.Module):
    """Filter features N times with per-pixel filters that another network predicts. See :func:`tta_restore.ops.iac`.

    Args:
        channels: C of the features.
        num_steps: N.
        kernel_size: K, odd.
        negative_slope: of the leaky ReLU after each step.
        activate_last: whether it follows the last step too.
        horizontal: ``"own"`` as published, ``"vertical"`` as the released IFAN checkpoints run.

    Shape:
        - x: (B, C, H, W)
        - filters: (B, N*C*(2K+1), H, W); ``filter_channels`` is their number
        - output: (B, C, H, W)

    Source: Iterative Filter Adaptive Network (Lee et al., CVPR 2021), the IAC layer.

    >>> layer = IterativeAdaptiveConv2d(4, num_steps=2)
    >>> layer(torch.rand(1, 4, 5, 6), torch.rand(1, layer.filter_channels, 5, 6)).shape
    torch.Size([1, 4, 5, 6])
    """

    def __init__(
        self,
        channels: int,
        *,
        num_steps: int = 17,
        kernel_size: int = 3,
        negative_slope: float = 0.1,
        activate_last: bool = True,
        horizontal: Horizontal = "own",
    ) -> None:
        super().__init__()
        self.channels = channels
        self.num_steps = num_steps
        self.kernel_size = kernel_size
        self.negative_slope = negative_slope
        self.activate_last = activate_last
        self.horizontal = horizontal

    @property
    def filter_channels(self) -> int:
        """N*C*(2K+1), what a predictor of the filters must put out."""
        return self.num_steps * self.channels * (2 * self.kernel_size + 1)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the function behind this layer."""
        names = ("num_steps", "kernel_size", "negative_slope", "activate_last", "horizontal")
        return {name: getattr(self, name) for name in names}

    def forward(self, x: Tensor, filters: Tensor) -> Tensor:
        """Filter ``x`` (B, C, H, W) with ``filters`` (B, N*C*(2K+1), H, W)."""
        return ops.iac(x, filters, **self.options)

    def extra_repr(self) -> str:
        """Show what the layer was built with."""
        return ", ".join([str(self.channels), *(f"{name}={value!r}" for name, value in self.options.items())])


class IterativeFilterAdaptiveBlock(IterativeAdaptiveConv2d):
    """Predict per-pixel filters from features by a 1x1 convolution and apply them N times, without holding the filters.

    See :func:`tta_restore.ops.iac_from_features`. The block starts near the identity for positive values: every center
    tap is 1 through the bias, and the features disturb it by about ``init_scale``. Gradients then reach ``x``, the
    features and every step from the first update on. (Filters that start near zero, as in the original network, let
    nothing of ``x`` through N steps, and the gradient of ``x`` is exactly zero.) Negative values pass N leaky ReLUs.

    Args:
        channels: C of the features that are filtered.
        feature_channels: D of the features that filters are predicted from.
        num_steps: N.
        kernel_size: K, odd.
        negative_slope: of the leaky ReLU after each step.
        activate_last: whether it follows the last step too.
        horizontal: ``"own"`` as published, ``"vertical"`` as the released IFAN checkpoints run.
        init_scale: how much features of unit variance change each tap and bias at the start, as a standard deviation.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - x: (B, C, H, W)
        - features: (B, D, H, W)
        - output: (B, C, H, W)

    Source: Iterative Filter Adaptive Network (Lee et al., CVPR 2021); the initialization is ours.

    >>> block = IterativeFilterAdaptiveBlock(4, 8, num_steps=2, init_scale=0)
    >>> x = torch.rand(1, 4, 5, 6)
    >>> torch.equal(block(x, torch.rand(1, 8, 5, 6)), x)
    True
    """

    def __init__(
        self,
        channels: int,
        feature_channels: int,
        *,
        num_steps: int = 17,
        kernel_size: int = 3,
        negative_slope: float = 0.1,
        activate_last: bool = True,
        horizontal: Horizontal = "own",
        init_scale: float = 0.01,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            channels,
            num_steps=num_steps,
            kernel_size=kernel_size,
            negative_slope=negative_slope,
            activate_last=activate_last,
            horizontal=horizontal,
        )
        self.feature_channels = feature_channels
        self.init_scale = init_scale
        self.weight = nn.Parameter(torch.empty(self.filter_channels, feature_channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(self.filter_channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start near the identity again."""
        nn.init.normal_(self.weight, std=self.init_scale / self.feature_channels**0.5)
        nn.init.zeros_(self.bias)
        taps = self.num_steps * 2 * self.channels * self.kernel_size
        with torch.no_grad():
            self.bias[:taps].view(-1, self.kernel_size)[:, self.kernel_size // 2] = 1

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Filter ``x`` (B, C, H, W) as ``features`` (B, D, H, W) tell."""
        return ops.iac_from_features(x, features, self.weight, self.bias, **self.options)

    def predict_filters(self, features: Tensor) -> Tensor:
        """The filters themselves, (B, N*C*(2K+1), H, W), for what reads them besides this block: training only."""
        return nn.functional.conv2d(features, self.weight[:, :, None, None], self.bias)

    def apply_filters(self, x: Tensor, filters: Tensor) -> Tensor:
        """Filter ``x`` with filters that :meth:`predict_filters` gave."""
        return super().forward(x, filters)

    def extra_repr(self) -> str:
        """Show what the layer was built with."""
        channels, rest = super().extra_repr().split(", ", 1)
        return f"{channels}, {self.feature_channels}, {rest}"
