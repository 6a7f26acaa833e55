"""Layers of reblurring-guided learning: isotropic kernel prediction, reblurring, and blur maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tta_restore import ops
from tta_restore._core import checks
from tta_restore.ops.isotropic import symmetry

__all__ = ["KERNEL_SIZES", "BlurMapEstimator", "BlurMapFusion", "IsotropicKernelPredictor", "IsotropicReblur"]

KERNEL_SIZES = (3, 5, 7, 9, 11, 13, 15)


def seed_channels(kernel_sizes: Sequence[int]) -> int:
    """Return the number of radial kernel logits, sum((K+1)/2), of kernels of these sizes."""
    for size in kernel_sizes:
        checks.expect_int("seed_channels", "every kernel size", size, minimum=1, odd=True)
    return symmetry.seed_channels(tuple(kernel_sizes))


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, **factory: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, **factory)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x).relu())


class ResidualTrunk(nn.Module):
    """Convolution, three residual blocks and a convolution: predictor of kernel logits, weights and blur maps.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        width: channels in between.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - x: (B, in_channels, H, W)
        - output: (B, out_channels, H, W)

    Source: Li et al., JDRL, AAAI 2023.

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
        """Return predictions for every pixel. Shape: (B, in_channels, H, W) -> (B, out_channels, H, W)."""
        name = type(self).__name__
        checks.expect_floating(name, x=x)
        checks.expect_shape(name, "x", x, "(B, C, H, W)", (None, self.conv_first.in_channels, None, None))
        return self.out(self.block3(self.block2(self.block1(self.conv_first(x)))))


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


class IsotropicKernelPredictor(nn.Module):
    """Predictor of the per-pixel isotropic kernels that blur one image into another.

    It returns radial kernel logits (``seeds``) and the weights of the mixture of kernels and identity.

    Args:
        channels: channels C of both images.
        width: channels of the two trunks.
        kernel_sizes: odd sizes of the N kernels, see :func:`tta_restore.ops.isotropic_reblur`.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - image, blurry: (B, C, H, W), RGB in [0, 1]
        - output: seeds (B, sum((K+1)/2), H, W) and weights (B, 1+N, H, W), which sum to 1 over the channels

    Source: Li et al., JDRL, AAAI 2023, reblurring module.

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
        """Draw Xavier-normal weights and set biases to zero, as published."""
        for layer in _convolutions(self):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor, blurry: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and weights of the kernels that blur ``image`` into ``blurry``."""
        checks.expect_floating("IsotropicKernelPredictor", image=image, blurry=blurry)
        sizes = (None, self.channels, None, None)
        checks.expect_shape("IsotropicKernelPredictor", "image", image, "(B, C, H, W)", sizes)
        checks.expect_shape("IsotropicKernelPredictor", "blurry", blurry, "image.shape", tuple(image.shape))
        # The order of the images is that of the official weights.
        both = torch.cat((image, blurry), 1)
        return self.seed_trunk(both), self.weight_trunk(both).softmax(1)

    def extra_repr(self) -> str:
        """Return the arguments that ``repr`` shows."""
        return f"{self.channels}, width={self.width}, kernel_sizes={self.kernel_sizes}"


class IsotropicReblur(nn.Module):
    """Per-pixel blur with mixtures of isotropic kernels, see :func:`tta_restore.ops.isotropic_reblur`.

    Args:
        kernel_sizes: odd sizes of the N kernels.
        padding_mode: what lies outside the frame; ``"zeros"``, as published, darkens the border.

    Shape:
        - image: (B, C, H, W)
        - seeds: (B, sum((K+1)/2), H, W), radial kernel logits
        - weights: (B, 1+N, H, W)
        - output: (B, C, H, W)

    Source: Li et al., JDRL, AAAI 2023, reblurring module.

    >>> layer = IsotropicReblur(kernel_sizes=(3,))
    >>> layer(torch.rand(1, 3, 4, 4), torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 4)).shape
    torch.Size([1, 3, 4, 4])
    """

    def __init__(
        self,
        *,
        kernel_sizes: Sequence[int] = KERNEL_SIZES,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
    ) -> None:
        super().__init__()
        self.kernel_sizes = tuple(kernel_sizes)
        self.padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = padding_mode

    def forward(self, image: Tensor, seeds: Tensor, weights: Tensor) -> Tensor:
        """Return the blurred image."""
        options: dict[str, Any] = {"kernel_sizes": self.kernel_sizes, "padding_mode": self.padding_mode}
        return ops.isotropic_reblur(image, seeds, weights, **options)

    def extra_repr(self) -> str:
        """Return the arguments that ``repr`` shows."""
        return f"kernel_sizes={self.kernel_sizes}, padding_mode={self.padding_mode!r}"


class BlurMapEstimator(ResidualTrunk):
    """Estimator of radial kernel logits (a blur map) from the blurry image alone.

    Args:
        channels: channels C of the image.
        width: channels of the trunk.
        kernel_sizes: odd sizes of the kernels.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - blurry: (B, C, H, W), RGB in [0, 1]
        - output: (B, sum((K+1)/2), H, W)

    Source: Ren et al., Reblurring-guided defocus deblurring, IJCV 2025.

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
        """Draw Kaiming-normal weights (fan out) and set biases to 0.1, as published."""
        for layer in _convolutions(self):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            if layer.bias is not None:
                nn.init.constant_(layer.bias, 0.1)


class ChannelGate(nn.Module):
    """Squeeze-and-excitation without biases.

    timm's module computes the same with 1x1 convolutions; the linear layers here carry the keys of the official
    checkpoints, and importing timm takes seconds.

    Args:
        channels: channels C of input and output.
        reduction: ratio of C to the hidden width.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape: x (B, C, H, W) -> (B, C, H, W).

    Source: Hu et al., Squeeze-and-excitation networks, CVPR 2018.

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
        """Return ``x`` with every channel scaled by a factor in (0, 1)."""
        return x * self.fc(x.mean((2, 3)))[..., None, None]


class BlurMapFusion(nn.Module):
    """Fusion of features and a blur map by squeeze-and-excitation and a 1x1 convolution.

    It starts as the identity of the features, so that it can be placed in front of a trained network.

    Args:
        channels: channels C of the features, 3 for an image.
        map_channels: channels M of the blur map.
        reduction: reduction ratio of the squeeze-and-excitation.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - x: (B, C, H, W)
        - blur_map: (B, M, h, w), resized bilinearly to H x W if necessary
        - output: (B, C, H, W)

    Source: Ren et al., Reblurring-guided defocus deblurring, IJCV 2025. The initialization differs.

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
        """Start as the identity: a gate of one half, doubled by the convolution."""
        last = self.gate.fc[2]
        for parameter in (*last.parameters(), *self.adjust.parameters()):
            nn.init.zeros_(parameter)
        with torch.no_grad():
            # sigmoid(0) = 1/2 times 2: the first channels are those of the features.
            self.adjust.weight[:, : self.channels, 0, 0].fill_diagonal_(2)

    def forward(self, x: Tensor, blur_map: Tensor) -> Tensor:
        """Return the features fused with the blur map."""
        checks.expect_floating("BlurMapFusion", x=x, blur_map=blur_map)
        batch = checks.expect_shape("BlurMapFusion", "x", x, "(B, C, H, W)", (None, self.channels, None, None))[0]
        sizes = (batch, self.map_channels, None, None)
        checks.expect_shape("BlurMapFusion", "blur_map", blur_map, "(B, M, h, w)", sizes)
        if blur_map.shape[2:] != x.shape[2:]:
            blur_map = nn.functional.interpolate(blur_map, size=x.shape[2:], mode="bilinear")
        return self.adjust(self.gate(torch.cat((x, blur_map), 1)))

    def extra_repr(self) -> str:
        """Return the arguments that ``repr`` shows."""
        return f"{self.channels}, {self.map_channels}"
