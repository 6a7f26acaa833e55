"""A small restorer for defocus: residual U-Net at half resolution, about half a million parameters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore.models.defocus.estimator import DefocusEstimate, DefocusEstimator
from tta_restore.models.defocus.spectra import WINDOW
from tta_restore.models.registry import register_model


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class _Block(nn.Module):
    """Two convolutions with a skip; `code` scales and shifts the hidden channels where the network is conditioned."""

    def __init__(self, channels: int, code_dim: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(code_dim, 2 * channels) if code_dim else None
        _zero(self.second)
        if self.modulation is not None:
            _zero(self.modulation)

    def forward(self, x: Tensor, code: Tensor | None = None) -> Tensor:
        hidden = self.first(x)
        if self.modulation is not None and code is not None:
            scale, shift = self.modulation(code)[..., None, None].chunk(2, dim=1)
            hidden = hidden * (1 + scale) + shift
        return x + self.second(F.gelu(hidden))


class DefocusUNet(nn.Module):
    """Restores a defocused picture as the picture plus a correction; sizes that are no multiple of 8 are padded inside.

    Shape:
        - input: (B, 3, H, W), RGB in [0, 1]
        - output: (B, 3, H, W), not clipped

    `planes` extra input planes and a `code_dim` vector condition it (:class:`ConditionedDefocusUNet`).
    """

    def __init__(
        self, *, widths: tuple[int, int, int] = (32, 48, 72), blocks: int = 2, planes: int = 0, code_dim: int = 0
    ) -> None:
        super().__init__()
        first, second, third = widths

        def stage(channels: int) -> nn.ModuleList:
            return nn.ModuleList(_Block(channels, code_dim) for _ in range(blocks))

        self.stem = nn.Conv2d(12 + planes, first, 3, padding=1)
        self.encoder1, self.down1 = stage(first), nn.Conv2d(first, second, 2, stride=2)
        self.encoder2, self.down2 = stage(second), nn.Conv2d(second, third, 2, stride=2)
        self.bottleneck = stage(third)
        self.up2, self.decoder2 = nn.ConvTranspose2d(third, second, 2, stride=2), stage(second)
        self.up1, self.decoder1 = nn.ConvTranspose2d(second, first, 2, stride=2), stage(first)
        self.head = nn.Conv2d(first, 12, 3, padding=1)
        _zero(self.head)

    def forward(self, x: Tensor, planes: Tensor | None = None, code: Tensor | None = None) -> Tensor:
        """Restore (B, 3, H, W); `planes` (B, P, h, w) and `code` (B, D) are what it is conditioned on."""
        height, width = x.shape[-2:]
        pad = (0, -width % 8, 0, -height % 8)
        padded = F.pad(x, pad, mode="replicate")
        features = F.pixel_unshuffle(padded, 2)
        if planes is not None:
            features = torch.cat([features, F.interpolate(planes, size=features.shape[-2:], mode="bilinear")], dim=1)

        def run(stage: nn.ModuleList, value: Tensor) -> Tensor:
            for block in stage:
                value = block(value, code)
            return value

        skip1 = run(self.encoder1, self.stem(features))
        skip2 = run(self.encoder2, self.down1(skip1))
        deep = run(self.bottleneck, self.down2(skip2))
        deep = run(self.decoder2, self.up2(deep) + skip2)
        deep = run(self.decoder1, self.up1(deep) + skip1)
        return x + F.pixel_shuffle(self.head(deep), 2)[..., :height, :width]


class ConditionedDefocusUNet(nn.Module):
    """A :class:`DefocusUNet` that is told the lens: blur radius as input planes, aperture code in every block.

    The lens comes from a :class:`DefocusEstimator` that it carries frozen, so it needs no training at test time:
    the strongest rival of adaptation.

    Shape:
        - input: (B, 3, H, W), RGB in [0, 1]
        - output: (B, 3, H, W), not clipped
    """

    def __init__(
        self, *, widths: tuple[int, int, int] = (32, 48, 72), blocks: int = 2, **estimator_config: Any
    ) -> None:
        super().__init__()
        self.estimator = DefocusEstimator(known=0, **estimator_config).requires_grad_(False)
        self.restorer = DefocusUNet(widths=widths, blocks=blocks, planes=2, code_dim=32)
        self.project = nn.Linear(self.estimator.code_dim, 32)

    def forward(self, x: Tensor, estimate: DefocusEstimate | None = None) -> Tensor:
        """Restore (B, 3, H, W) through the lens of `estimate`, by default the one read from `x`."""
        if estimate is None:
            with torch.no_grad():
                # smaller pictures are read with their border continued
                short = [max(WINDOW - side, 0) for side in x.shape[-2:]]
                estimate = self.estimator(F.pad(x, (0, short[1], 0, short[0]), mode="replicate"))
        planes = torch.stack([estimate.radius.clamp(max=8) / 4, estimate.confidence.clamp(max=8) / 4], dim=1)
        code = torch.tanh(self.project(self.estimator.code(estimate.statistics).log_softmax(dim=1) / 4))
        return self.restorer(x, planes, code)


@register_model("lens_unet", kind="restorer")
def lens_unet(**config: Any) -> DefocusUNet:
    """:class:`DefocusUNet`; shipped as "specialist" and "generalist"."""
    return DefocusUNet(**config)


@register_model("conditioned_lens_unet", kind="restorer")
def conditioned_lens_unet(**config: Any) -> ConditionedDefocusUNet:
    """:class:`ConditionedDefocusUNet`; shipped as "conditioned"."""
    return ConditionedDefocusUNet(**config)
