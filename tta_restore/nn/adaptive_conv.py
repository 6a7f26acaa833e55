"""Iterative adaptive convolution layers: with given filters, or with filters predicted from features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tta_restore import ops
from tta_restore.ops.adaptive_conv import Horizontal

__all__ = ["IterativeAdaptiveConv2d", "IterativeFilterAdaptiveBlock"]


class IterativeAdaptiveConv2d(nn.Module):
    """Iterative adaptive convolution with given filters, see :func:`tta_restore.ops.iac`.

    Args:
        channels: channels C of the features.
        num_steps: number N of filtering steps.
        kernel_size: odd filter length K.
        negative_slope: slope of the leaky ReLU after each step.
        activate_last: apply the leaky ReLU after the last step too.
        horizontal: ``"own"`` uses separate horizontal filters, as published; ``"vertical"`` shares the vertical ones,
            as the official IFAN checkpoints do.

    Shape:
        - x: (B, C, H, W)
        - filters: (B, N*C*(2K+1), H, W), see :attr:`filter_channels`
        - output: (B, C, H, W)

    Source: Lee et al., Iterative filter adaptive network, CVPR 2021, IAC layer.

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
        """Channels N*C*(2K+1) that a filter predictor must return."""
        return self.num_steps * self.channels * (2 * self.kernel_size + 1)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of :func:`tta_restore.ops.iac` for this layer."""
        names = ("num_steps", "kernel_size", "negative_slope", "activate_last", "horizontal")
        return {name: getattr(self, name) for name in names}

    def forward(self, x: Tensor, filters: Tensor) -> Tensor:
        """Filter ``x`` with ``filters``. Shape: (B, C, H, W), (B, N*C*(2K+1), H, W) -> (B, C, H, W)."""
        return ops.iac(x, filters, **self.options)

    def extra_repr(self) -> str:
        """Return the arguments that ``repr`` shows."""
        return ", ".join([str(self.channels), *(f"{name}={value!r}" for name, value in self.options.items())])


class IterativeFilterAdaptiveBlock(IterativeAdaptiveConv2d):
    """Iterative adaptive convolution whose filters a 1x1 convolution predicts from features.

    The filters are never stored, see :func:`tta_restore.ops.iac_from_features`. The block starts near the identity for
    positive values: the bias sets every center tap to 1, and the features perturb it by about ``init_scale``. Gradients
    then reach ``x``, the features and every step from the first update on. Filters that start near zero, as in the
    official code, suppress ``x`` within N steps, so that its gradient is exactly zero. Negative values are scaled by
    the leaky ReLU of every step.

    Args:
        channels: channels C of the filtered features.
        feature_channels: channels D of the features from which filters are predicted.
        num_steps: number N of filtering steps.
        kernel_size: odd filter length K.
        negative_slope: slope of the leaky ReLU after each step.
        activate_last: apply the leaky ReLU after the last step too.
        horizontal: ``"own"`` uses separate horizontal filters, as published; ``"vertical"`` shares the vertical ones,
            as the official IFAN checkpoints do.
        init_scale: standard deviation by which features of unit variance change each tap and bias at the start.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - x: (B, C, H, W)
        - features: (B, D, H, W)
        - output: (B, C, H, W)

    Source: Lee et al., Iterative filter adaptive network, CVPR 2021. The initialization differs.

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
        """Draw the weight again and set the bias to identity filters."""
        nn.init.normal_(self.weight, std=self.init_scale / self.feature_channels**0.5)
        nn.init.zeros_(self.bias)
        # The bias holds all taps first, vertical and horizontal by step, then the biases of the steps.
        taps = self.num_steps * 2 * self.channels * self.kernel_size
        with torch.no_grad():
            self.bias[:taps].view(-1, self.kernel_size)[:, self.kernel_size // 2] = 1

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Filter ``x`` by ``features``. Shape: (B, C, H, W), (B, D, H, W) -> (B, C, H, W)."""
        return ops.iac_from_features(x, features, self.weight, self.bias, **self.options)

    def predict_filters(self, features: Tensor) -> Tensor:
        """Return the filters, for a training loss that reads them. Shape: (B, D, H, W) -> (B, N*C*(2K+1), H, W)."""
        return nn.functional.conv2d(features, self.weight[:, :, None, None], self.bias)

    def apply_filters(self, x: Tensor, filters: Tensor) -> Tensor:
        """Filter ``x`` with the filters returned by :meth:`predict_filters`."""
        return super().forward(x, filters)

    def extra_repr(self) -> str:
        """Return the arguments that ``repr`` shows."""
        channels, rest = super().extra_repr().split(", ", 1)
        return f"{channels}, {self.feature_channels}, {rest}"
