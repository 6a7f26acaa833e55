"""DPDNet with a single picture as input: the U-Net that CauSiam adapts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore import _checks
from tta_restore.models.registry import register_model
from tta_restore.models.spec import RestorerSpec, SizeRequirements

_LEVELS = 4


@register_model("dpdnet_s")
class DPDNet(nn.Module):
    """U-Net of four halvings without normalisation; the sigmoid's output is the image itself.

    Args:
        in_channels: 3 for one picture, 6 for the two halves of a dual pixel.
        width: channels at full resolution; they double with every halving.
        dropout: rate in the two deepest encoder stages, in train mode.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - x: (B, C, H, W) in [0, 1], H and W multiples of 16
        - output: (B, 3, H, W) in (0, 1)

    Source: Abuolaim and Brown, Defocus deblurring using dual-pixel data, ECCV 2020; 31 033 423 parameters as published.
    """

    semantic_site = "conv6"
    """Where CauSiam injects: the first decoder stage."""

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
            self.add_module(f"conv{level + 1}", _convolutions(inside, widths[level], **factory))
        for level in reversed(range(_LEVELS)):
            stage = 2 * _LEVELS + 1 - level
            self.add_module(f"up{stage}", nn.Conv2d(widths[level + 1], widths[level], 2, **factory))
            self.add_module(f"conv{stage}", _convolutions(widths[level + 1], widths[level], **factory))
        self.conv10 = nn.Conv2d(width, 3, 3, padding=1, **factory)
        self.conv11 = nn.Conv2d(3, 3, 1, **factory)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Restored picture."""
        _checks.expect_floating("dpdnet_s", x=x)
        sizes = (None, self.spec.in_channels, None, None)
        height, width = _checks.expect_shape("dpdnet_s", "x", x, "(B, C, H, W)", sizes)[2:]
        if height % 16 or width % 16:
            raise ValueError(f"dpdnet_s: expected H and W to be multiples of 16, got {tuple(x.shape)}")
        stages = dict(self.named_children())
        skips: list[Tensor] = []
        for level in range(1, _LEVELS + 2):
            x = stages[f"conv{level}"](x)
            if level >= _LEVELS:
                x = self.dropout(x)
            if level <= _LEVELS:
                skips.append(x)
                x = F.max_pool2d(x, 2)
        for stage in range(_LEVELS + 2, 2 * _LEVELS + 2):
            x = F.pad(F.interpolate(x, scale_factor=2), (0, 1, 0, 1))  # "same" for a 2x2 kernel
            x = F.relu(stages[f"up{stage}"](x))
            x = stages[f"conv{stage}"](torch.cat([skips.pop(), x], 1))
        return torch.sigmoid(self.conv11(F.relu(self.conv10(x))))

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take over ports of the network under other names, if their tensors come in the network's order and shapes."""
        own = self.state_dict()
        if state_dict.keys() == own.keys() or len(state_dict) != len(own):
            return dict(state_dict)
        if any(a.shape != b.shape for a, b in zip(state_dict.values(), own.values(), strict=True)):
            return dict(state_dict)
        return dict(zip(own, state_dict.values(), strict=True))


def _convolutions(inside: int, outside: int, **factory: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, **factory),
        nn.ReLU(),
        nn.Conv2d(outside, outside, 3, padding=1, **factory),
        nn.ReLU(),
    )
