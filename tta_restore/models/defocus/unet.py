"""Small residual U-Net at half resolution for defocus deblurring, optionally conditioned on the estimated PSF."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore.models.defocus.estimator import DefocusEstimate, DefocusEstimator
from tta_restore.models.defocus.spectra import WINDOW
from tta_restore.models.registry import register_model

__all__ = ["ConditionedDefocusUNet", "DefocusUNet", "conditioned_lens_unet", "lens_unet", "small_unet"]


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class _Block(nn.Module):
    """Residual block of two convolutions; a conditioning vector scales and shifts the hidden channels."""

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
    """Residual U-Net for defocus deblurring, about half a million parameters; any size is padded inside.

    Args:
        widths: channels at a half, a quarter and an eighth of the size.
        blocks: residual blocks per stage.
        planes: additional input planes of a conditioned network, see :class:`ConditionedDefocusUNet`.
        code_dim: width of the conditioning vector; 0 for none.

    Shape: x (B, 3, H, W), RGB in [0, 1] -> (B, 3, H, W), not clamped.
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
        """Return the restored image, conditioned on ``planes`` (B, P, h, w) and ``code`` (B, D) if given."""
        height, width = x.shape[-2:]
        pad = (0, -width % 8, 0, -height % 8)
        padded = F.pad(x, pad, mode="replicate")
        # Half resolution: four pixels become channels, so that nothing is lost.
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
    """:class:`DefocusUNet` conditioned on the estimated defocus map and pupil function.

    The map enters as input planes, the pupil function in every block. Both come from a frozen
    :class:`DefocusEstimator`, so that nothing is trained at test time: the strongest baseline of adaptation.

    Args:
        widths: see :class:`DefocusUNet`.
        blocks: see :class:`DefocusUNet`.
        estimator_config: arguments of the :class:`DefocusEstimator`.

    Shape: x (B, 3, H, W), RGB in [0, 1] -> (B, 3, H, W), not clamped.
    """

    def __init__(
        self, *, widths: tuple[int, int, int] = (32, 48, 72), blocks: int = 2, **estimator_config: Any
    ) -> None:
        super().__init__()
        self.estimator = DefocusEstimator(known=0, **estimator_config).requires_grad_(False)
        self.restorer = DefocusUNet(widths=widths, blocks=blocks, planes=2, code_dim=32)
        self.project = nn.Linear(self.estimator.code_dim, 32)

    def forward(self, x: Tensor, estimate: DefocusEstimate | None = None) -> Tensor:
        """Return the restored image, conditioned on ``estimate`` or, without one, on the estimate for ``x``."""
        if estimate is None:
            with torch.no_grad():
                # The estimator needs 32 x 32 pixels: smaller images are extended by their border.
                short = [max(WINDOW - side, 0) for side in x.shape[-2:]]
                estimate = self.estimator(F.pad(x, (0, short[1], 0, short[0]), mode="replicate"))
        # Clamped and scaled to about [0, 2].
        planes = torch.stack([estimate.radius.clamp(max=8) / 4, estimate.confidence.clamp(max=8) / 4], dim=1)
        code = torch.tanh(self.project(self.estimator.code(estimate.statistics).log_softmax(dim=1) / 4))
        return self.restorer(x, planes, code)


@register_model("lens_unet", kind="restorer")
def lens_unet(**config: Any) -> DefocusUNet:
    """Build a :class:`DefocusUNet`; weights are included as "specialist" and "generalist"."""
    return DefocusUNet(**config)


@register_model("conditioned_lens_unet", kind="restorer")
def conditioned_lens_unet(**config: Any) -> ConditionedDefocusUNet:
    """Build a :class:`ConditionedDefocusUNet`; weights are included as "conditioned"."""
    return ConditionedDefocusUNet(**config)


@register_model("small_unet", kind="restorer")
def small_unet(**config: Any) -> DefocusUNet:
    """Build a :class:`DefocusUNet` of 60,000 parameters; weights are included as "denoiser" and "jpeg_cleaner"."""
    config.setdefault("widths", (16, 24, 32))
    config.setdefault("blocks", 1)
    return DefocusUNet(**config)
