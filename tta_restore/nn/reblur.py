"""Layers of reblurring-guided learning: predict isotropic kernels, blur with them, estimate and use a blur map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore import ops
from tta_restore._core import checks

KERNEL_SIZES = (3, 5, 7, 9, 11, 13, 15)


def seed_channels(kernel_sizes: Sequence[int]) -> int:
    """Channels of seeds that kernels of these sizes need: sum((K+1)/2).

    >>> seed_channels((3, 5))
    5
    """
    for size in kernel_sizes:
        checks.expect_int("seed_channels", "every kernel size", size, minimum=1, odd=True)
    return sum((size + 1) // 2 for size in kernel_sizes)


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, **factory: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, **factory)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x).relu())


class ResidualTrunk(nn.Module):
    """A convolution, three residual blocks, a convolution: what kernels, weights and blur maps are predicted with.

    Shape:
        - x: (B, in_channels, H, W)
        - output: (B, out_channels, H, W)

    Source: JDRL (Li et al., AAAI 2023), the trunks of its reblurring module.

    >>> ResidualTrunk(6, 8, width=4)(torch.rand(1, 6, 5, 7)).shape
    torch.Size([1, 8, 5, 7])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv_first = nn.Conv2d(in_channels, width, 3, padding=1, **factory)
        self.block1 = _ResidualBlock(width, **factory)
        self.block2 = _ResidualBlock(width, **factory)
        self.block3 = _ResidualBlock(width, **factory)
        self.out = nn.Conv2d(width, out_channels, 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Features of every pixel from its neighborhood."""
        name = type(self).__name__
        checks.expect_floating(name, x=x)
        checks.expect_shape(name, "x", x, "(B, C, H, W)", (None, self.conv_first.in_channels, None, None))
        return self.out(self.block3(self.block2(self.block1(self.conv_first(x)))))


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


class IsotropicKernelPredictor(nn.Module):
    """Predict how an image must be blurred to become an observation: seeds of isotropic kernels, and their mixture.

    Args:
        channels: C of both images.
        width: channels of the two trunks.
        kernel_sizes: of the kernels, see :func:`tta_restore.ops.isotropic_reblur`.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - image, blurry: (B, C, H, W), RGB in [0, 1]
        - output: seeds (B, sum((K+1)/2), H, W) and weights (B, 1+N, H, W), which sum to 1 over the channels

    Source: JDRL (Li et al., AAAI 2023), its reblurring module.

    >>> seeds, weights = IsotropicKernelPredictor(width=4)(torch.rand(1, 3, 6, 6), torch.rand(1, 3, 6, 6))
    >>> seeds.shape[1], weights.shape[1]
    (35, 8)
    """

    def __init__(
        self,
        channels: int = 3,
        *,
        width: int = 64,
        kernel_sizes: Sequence[int] = KERNEL_SIZES,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.width, self.kernel_sizes = channels, width, tuple(kernel_sizes)
        factory: dict[str, Any] = {"width": width, "device": device, "dtype": dtype}
        self.weight_trunk = ResidualTrunk(2 * channels, 1 + len(self.kernel_sizes), **factory)
        self.seed_trunk = ResidualTrunk(2 * channels, seed_channels(self.kernel_sizes), **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier's normal weights, no biases, as published."""
        for layer in _convolutions(self):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor, blurry: Tensor) -> tuple[Tensor, Tensor]:
        """Seeds and weights that blur ``image`` like ``blurry``."""
        checks.expect_floating("IsotropicKernelPredictor", image=image, blurry=blurry)
        sizes = (None, self.channels, None, None)
        checks.expect_shape("IsotropicKernelPredictor", "image", image, "(B, C, H, W)", sizes)
        checks.expect_shape("IsotropicKernelPredictor", "blurry", blurry, "image.shape", tuple(image.shape))
        both = torch.cat((image, blurry), 1)
        return self.seed_trunk(both), self.weight_trunk(both).softmax(1)

    def extra_repr(self) -> str:
        """Show what the layer was built with."""
        return f"{self.channels}, width={self.width}, kernel_sizes={self.kernel_sizes}"


class IsotropicReblur(nn.Module):
    """Blur every pixel with its own mixture of isotropic kernels. See :func:`tta_restore.ops.isotropic_reblur`.

    Shape:
        - image: (B, C, H, W); seeds: (B, sum((K+1)/2), H, W); weights: (B, 1+N, H, W)
        - output: (B, C, H, W)

    Source: JDRL (Li et al., AAAI 2023), its reblurring module.

    >>> layer = IsotropicReblur(kernel_sizes=(3,))
    >>> layer(torch.rand(1, 3, 4, 4), torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 4)).shape
    torch.Size([1, 3, 4, 4])
    """

    def __init__(self, *, kernel_sizes: Sequence[int] = KERNEL_SIZES) -> None:
        super().__init__()
        self.kernel_sizes = tuple(kernel_sizes)

    def forward(self, image: Tensor, seeds: Tensor, weights: Tensor) -> Tensor:
        """Blur ``image``."""
        return ops.isotropic_reblur(image, seeds, weights, kernel_sizes=self.kernel_sizes)

    def extra_repr(self) -> str:
        """Show what the layer was built with."""
        return f"kernel_sizes={self.kernel_sizes}"


class BlurMapEstimator(ResidualTrunk):
    """Estimate seeds of isotropic kernels, a map of the blur, from the blurry image alone.

    Args:
        channels: C of the image.
        width: channels of the trunk.
        kernel_sizes: of the kernels whose seeds are estimated.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - blurry: (B, C, H, W), RGB in [0, 1]
        - output: (B, sum((K+1)/2), H, W)

    Source: Reblurring-guided defocus deblurring (Ren et al., IJCV 2025), its blur estimator.

    >>> BlurMapEstimator(width=4)(torch.rand(1, 3, 5, 5)).shape
    torch.Size([1, 35, 5, 5])
    """

    checkpoint_wrappers = ("Pred_state_dict",)

    def __init__(
        self,
        channels: int = 3,
        *,
        width: int = 32,
        kernel_sizes: Sequence[int] = KERNEL_SIZES,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, seed_channels(kernel_sizes), width=width, device=device, dtype=dtype)
        self.kernel_sizes = tuple(kernel_sizes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming's normal weights by their outputs, biases of 0.1, as published."""
        for layer in _convolutions(self):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            if layer.bias is not None:
                nn.init.constant_(layer.bias, 0.1)


class ChannelGate(nn.Module):
    """Scale every channel by a number in (0, 1) that the means of all channels decide (squeeze and excitation).

    Shape:
        - x, output: (B, C, H, W)

    Source: Squeeze-and-excitation networks (Hu et al., CVPR 2018), without biases.

    >>> ChannelGate(8, reduction=4)(torch.rand(1, 8, 3, 3)).shape
    torch.Size([1, 8, 3, 3])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False, device=device, dtype=dtype),
            nn.ReLU(),
            nn.Linear(hidden, channels, bias=False, device=device, dtype=dtype),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``x``."""
        return x * self.fc(x.mean((2, 3)))[..., None, None]


class BlurMapFusion(nn.Module):
    """Let a blur map into features by a channel gate and a 1x1 convolution back to the features' own channels.

    It starts as the identity of the features, so that it can be put in front of a trained network.

    Args:
        channels: C of the features, 3 for an image.
        map_channels: M of the blur map.
        reduction: of the gate.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - x: (B, C, H, W)
        - blur_map: (B, M, h, w), resized where it differs in size
        - output: (B, C, H, W)

    Source: Reblurring-guided defocus deblurring (Ren et al., IJCV 2025), its fusion block; the initialization is ours.

    >>> x = torch.rand(1, 3, 4, 4)
    >>> torch.allclose(BlurMapFusion()(x, torch.rand(1, 35, 4, 4)), x)
    True
    """

    def __init__(
        self,
        channels: int = 3,
        map_channels: int = 35,
        *,
        reduction: int = 16,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.map_channels = channels, map_channels
        self.gate = ChannelGate(channels + map_channels, reduction=reduction, device=device, dtype=dtype)
        self.adjust = nn.Conv2d(channels + map_channels, channels, 1, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the identity again: a gate of one half, doubled by the convolution."""
        last = self.gate.fc[2]
        for parameter in (*last.parameters(), *self.adjust.parameters()):
            nn.init.zeros_(parameter)
        with torch.no_grad():
            self.adjust.weight[:, : self.channels, 0, 0].fill_diagonal_(2)

    def forward(self, x: Tensor, blur_map: Tensor) -> Tensor:
        """Features that know the blur."""
        checks.expect_floating("BlurMapFusion", x=x, blur_map=blur_map)
        batch = checks.expect_shape("BlurMapFusion", "x", x, "(B, C, H, W)", (None, self.channels, None, None))[0]
        sizes = (batch, self.map_channels, None, None)
        checks.expect_shape("BlurMapFusion", "blur_map", blur_map, "(B, M, h, w)", sizes)
        if blur_map.shape[2:] != x.shape[2:]:
            blur_map = nn.functional.interpolate(blur_map, size=x.shape[2:], mode="bilinear")
        return self.adjust(self.gate(torch.cat((x, blur_map), 1)))

    def extra_repr(self) -> str:
        """Show what the layer was built with."""
        return f"{self.channels}, {self.map_channels}"
