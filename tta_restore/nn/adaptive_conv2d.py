"""Layers of per-pixel convolution: filter with given kernels, and predict kernels from features."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore import ops
from tta_restore._core import checks
from tta_restore.ops.adaptive_conv2d import Normalize, PaddingMode

# Weight of the center tap at the start where taps are a softmax, which cannot be exactly one-hot.
_CENTER_WEIGHT = 0.999

__all__ = ["AdaptiveConv2d", "KernelPredictor"]


class AdaptiveConv2d(nn.Module):
    """Filter every pixel with its own K x K kernel. See :func:`tta_restore.ops.adaptive_conv2d`.

    Args:
        kernel_size: K, odd.
        groups: kernels per pixel: None for one per channel, 1 for one shared by all channels, G for involution.
        dilation: distance between taps in pixels.
        stride: distance in pixels of x between pixels of the output.
        padding_mode: what lies outside the frame: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        normalize: None uses the taps as they are, ``"sum"`` divides them by their sum, ``"softmax"`` takes logits.

    Shape:
        - x: (B, C, H, W)
        - kernels: (B, G*K*K, H', W') with ``H' = (H - 1) // stride + 1``, W' likewise
        - output: (B, C, H', W')

    Source: Burst denoising with kernel prediction networks (Mildenhall et al., CVPR 2018).

    >>> layer = AdaptiveConv2d(3, groups=1, normalize="softmax")
    >>> layer(torch.rand(1, 4, 5, 6), torch.rand(1, 9, 5, 6)).shape
    torch.Size([1, 4, 5, 6])
    """

    def __init__(
        self,
        kernel_size: int,
        *,
        groups: int | None = None,
        dilation: int = 1,
        stride: int = 1,
        padding_mode: PaddingMode = "replicate",
        normalize: Normalize | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.groups = groups
        self.dilation = dilation
        self.stride = stride
        self.padding_mode: PaddingMode = padding_mode
        self.normalize: Normalize | None = normalize

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the function behind this layer."""
        names = ("kernel_size", "groups", "dilation", "stride", "padding_mode", "normalize")
        return {name: getattr(self, name) for name in names}

    def forward(self, x: Tensor, kernels: Tensor) -> Tensor:
        """Filter ``x`` (B, C, H, W) with ``kernels`` (B, G*K*K, H', W')."""
        return ops.adaptive_conv2d(x, kernels, **self.options)

    def extra_repr(self) -> str:
        """Show the constructor arguments."""
        first, *rest = self.options.items()
        return ", ".join([str(first[1]), *(f"{name}={value!r}" for name, value in rest)])


class KernelPredictor(nn.Module):
    """1 x 1 convolution that predicts per-pixel kernels, which start at the identity.

    The bias is 1 at the center taps and 0 elsewhere, so that an untrained predictor passes the frame through, and
    features perturb each tap by about ``init_scale``. For ``normalize="softmax"`` the bias holds logits that give the
    center tap a weight of 0.999.

    Args:
        in_channels: D, channels of the features.
        groups: G, kernels per pixel: 1 for one shared by all channels of a frame, C for one per channel.
        kernel_size: K, odd.
        normalize: what the kernels are used with, see :class:`AdaptiveConv2d`.
        init_scale: standard deviation of the change that features of unit variance make to each tap at the start.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - features: (B, D, H, W)
        - output: (B, G*K*K, H, W), for :func:`tta_restore.ops.adaptive_conv2d`

    Source: Burst denoising with kernel prediction networks (Mildenhall et al., CVPR 2018); the initialization is ours.

    >>> predict = KernelPredictor(8, 3, kernel_size=3, init_scale=0)
    >>> x = torch.rand(1, 3, 5, 6)
    >>> torch.equal(AdaptiveConv2d(3)(x, predict(torch.rand(1, 8, 5, 6))), x)
    True
    """

    def __init__(
        self,
        in_channels: int,
        groups: int = 1,
        *,
        kernel_size: int,
        normalize: Normalize | None = None,
        init_scale: float = 0.01,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = "KernelPredictor"
        checks.expect_int(name, "in_channels", in_channels, minimum=1)
        checks.expect_int(name, "groups", groups, minimum=1)
        checks.expect_int(name, "kernel_size", kernel_size, minimum=1, odd=True)
        checks.expect_choice(name, "normalize", normalize, (None, "sum", "softmax"))
        checks.expect_number(name, "init_scale", init_scale, minimum=0)
        self.in_channels = in_channels
        self.groups = groups
        self.kernel_size = kernel_size
        self.normalize: Normalize | None = normalize
        self.init_scale = init_scale
        self.conv = nn.Conv2d(in_channels, groups * kernel_size**2, 1, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset the kernels to the identity."""
        nn.init.normal_(self.conv.weight, std=self.init_scale / self.in_channels**0.5)
        taps, center = self.kernel_size**2, 1.0
        if self.normalize == "softmax" and taps > 1:
            center = math.log((taps - 1) * _CENTER_WEIGHT / (1 - _CENTER_WEIGHT))
        bias = dict(self.conv.named_parameters())["bias"]
        nn.init.zeros_(bias)
        with torch.no_grad():
            bias.view(self.groups, taps)[:, taps // 2] = center

    def forward(self, features: Tensor) -> Tensor:
        """Predict kernels from ``features`` (B, D, H, W)."""
        checks.expect_floating("KernelPredictor", features=features)
        sizes = (None, self.in_channels, None, None)
        checks.expect_shape("KernelPredictor", "features", features, "(B, D, H, W)", sizes)
        return self.conv(features)

    def extra_repr(self) -> str:
        """Show the constructor arguments."""
        options = f"kernel_size={self.kernel_size}, normalize={self.normalize!r}, init_scale={self.init_scale}"
        return f"{self.in_channels}, {self.groups}, {options}"
