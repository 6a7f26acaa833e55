"""DPDNet for a single image, the U-Net that CauSiam adapts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore.models.registry import register_model
from tta_restore.models.restorer.spec import RestorerSpec, SizeRequirements

__all__ = ["DPDNet"]

_LEVELS = 4
_MERGE_PIXELS = 32 * 32  # from this size on, fewer multiplications outweigh merging the taps in every pass


@register_model("dpdnet_s")
class DPDNet(nn.Module):
    """U-Net of four halvings without normalization, which predicts the image through a sigmoid.

    Args:
        in_channels: 3 for one image, 6 for the two views of a dual pixel.
        width: channels at full resolution; they double with every halving.
        dropout: dropout rate of the two deepest encoder stages in train mode.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - x: (B, C, H, W) in [0, 1], H and W multiples of 16
        - output: (B, 3, H, W) in (0, 1)

    Source: Abuolaim and Brown, Defocus deblurring using dual-pixel data, ECCV 2020; 31 033 423 parameters.
    """

    #: Module after which CauSiam injects its cross-attention, the first decoder stage.
    semantic_site = "conv6"

    @staticmethod
    def config_of_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return channels and width of weights of this network; empty for those of another one."""
        first = state_dict.get("conv1.0.weight")
        return {} if first is None else {"in_channels": first.shape[1], "width": first.shape[0]}

    def __init__(
        self,
        in_channels: int = 3,
        width: int = 64,
        dropout: float = 0.4,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.spec = RestorerSpec(in_channels=in_channels, size=SizeRequirements(16, 16))
        widths = [width * 2**level for level in range(_LEVELS + 1)]
        for level, inside in enumerate([in_channels, *widths[:-1]]):
            self.add_module(f"conv{level + 1}", _Encoder(inside, widths[level], pooled=level > 0, **factory))
        for level in reversed(range(_LEVELS)):
            stage = 2 * _LEVELS + 1 - level
            self.add_module(f"up{stage}", _UpsampledConv2d(widths[level + 1], widths[level], 2, **factory))
            self.add_module(f"conv{stage}", _Decoder(widths[level], **factory))
        self.conv10 = nn.Conv2d(width, 3, 3, padding=1, **factory)
        self.conv11 = nn.Conv2d(3, 3, 1, **factory)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the restored image."""
        checks.expect_floating("dpdnet_s", x=x)
        sizes = (None, self.spec.in_channels, None, None)
        height, width = checks.expect_shape("dpdnet_s", "x", x, "(B, C, H, W)", sizes)[2:]
        if height % 16 or width % 16:
            raise ValueError(f"dpdnet_s: expected H and W to be multiples of 16, got {tuple(x.shape)}")
        stages = dict(self.named_children())
        skips: list[Tensor] = []
        for level in range(1, _LEVELS + 2):
            x = stages[f"conv{level}"](x)
            if level >= _LEVELS:  # before the skip is stored, as published
                x = self.dropout(x)
            if level <= _LEVELS:
                skips.append(x)
        for stage in range(_LEVELS + 2, 2 * _LEVELS + 2):
            x = F.relu(stages[f"up{stage}"](x))
            x = stages[f"conv{stage}"](skips.pop(), x)
        return torch.sigmoid(self.conv11(F.relu(self.conv10(x))))

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of ports whose tensors have the order and the shapes of this network."""
        own = self.state_dict()
        if state_dict.keys() == own.keys() or len(state_dict) != len(own):
            return dict(state_dict)
        if any(a.shape != b.shape for a, b in zip(state_dict.values(), own.values(), strict=True)):
            return dict(state_dict)
        return dict(zip(own, state_dict.values(), strict=True))


class _Encoder(nn.Sequential):
    """Encoder stage of two convolutions, after a pooling in all stages but the first."""

    def __init__(self, inside: int, outside: int, *, pooled: bool, **factory: Any) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, 3, padding=1, **factory),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, padding=1, **factory),
            nn.ReLU(),
        )
        self.pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.max_pool2d(x, 2) if self.pooled else x)


class _Decoder(nn.Sequential):
    """Decoder stage of two convolutions over the skip connection and the upsampled features."""

    def __init__(self, width: int, **factory: Any) -> None:
        super().__init__(
            _ConcatenatedConv2d(2 * width, width, 3, padding=1, **factory),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, **factory),
            nn.ReLU(),
        )

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        first, *others = self
        x = first(skip, x)
        for layer in others:
            x = layer(x)
        return x


class _ConcatenatedConv2d(nn.Conv2d):
    """Convolution of the concatenation of two tensors, computed as the sum of two convolutions.

    The part of the first tensor is a module, so that its output can be cached, and needs no gradient if only the second
    tensor requires one.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.first_part = _Convolved()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        weight, channels = self.weight, first.shape[1]
        part = self.first_part(first, weight[:, :channels], self.bias)
        return part + F.conv2d(second, weight[:, channels:], padding=self.padding)


class _Convolved(nn.Module):
    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, padding=1)


class _UpsampledConv2d(nn.Conv2d):
    """2 x 2 convolution, padded below and to the right, of the input upsampled by pixel repetition.

    On CPUs it runs as one transposed convolution with the equivalent 3 x 3 kernel: 9 multiplications instead of 16, and
    no intermediate of the doubled size.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or x[:, 0].numel() < _MERGE_PIXELS:
            return super().forward(F.pad(F.interpolate(x, scale_factor=2), (0, 1, 0, 1)))
        # Repetition and a 2 x 2 kernel, written as a 3 x 3 kernel of a transposed convolution of stride 2.
        upper, lower = self.weight.unbind(2)
        left, right = torch.stack([lower, upper + lower, upper], 2).unbind(3)
        merged = torch.stack([right, left + right, left], 3).transpose(0, 1)
        return F.conv_transpose2d(x, merged, self.bias, stride=2, padding=1, output_padding=1)
