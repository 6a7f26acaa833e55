"""Encoder, decoder and initialisation of IFAN."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tta_restore.nn import IterativeFilterAdaptiveBlock, ResidualChain
from tta_restore.nn.residual import activated_conv, activated_upconv

REDUCTION = 8


def xavier_uniform(module: nn.Module, gain: float = 1.0) -> None:
    """Draw the weights of every convolution in ``module`` anew; their biases become zero."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, IterativeFilterAdaptiveBlock)):
            nn.init.xavier_uniform_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Encoder(nn.Module):
    """Four stages of three convolutions; every stage but the first halves the size."""

    def __init__(self, in_channels: int, width: int, **factory: Any) -> None:
        super().__init__()
        for stage, channels in enumerate((width, 2 * width, 4 * width, 4 * width), 1):
            first = activated_conv(in_channels, channels, stride=1 if stage == 1 else 2, **factory)
            rest = (activated_conv(channels, channels, **factory) for _ in range(2))
            self.add_module(f"stage{stage}", nn.Sequential(first, *rest))
            in_channels = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of every stage, the largest first."""
        features = []
        for stage in self.children():
            x = stage(x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """Three doublings, each refined with the encoder's features of its size, then a correction of the picture."""

    def __init__(self, width: int, **factory: Any) -> None:
        super().__init__()
        wide = 4 * width
        self.enter = nn.Sequential(
            activated_conv(wide, wide, **factory),
            ResidualChain(wide, num_units=3, **factory),
            activated_conv(wide, wide, **factory),
        )
        for stage, inside, outside in ((3, wide, wide), (2, wide, 2 * width), (1, 2 * width, width)):
            self.add_module(f"up{stage}", activated_upconv(inside, outside, **factory))
            chains = (ResidualChain(outside, num_units=1, **factory) for _ in range(2))
            self.add_module(f"stage{stage}", nn.Sequential(*chains))
        self.exit = activated_conv(width, 3, **factory)  # activated, too: as published

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """Take the skips off the list, so that each is freed when it has been used."""
        x = self.enter(x)
        stages = dict(self.named_children())
        for stage in (3, 2, 1):
            x = stages[f"up{stage}"](x)
            x = x + skips.pop()
            for chain in stages[f"stage{stage}"].children():
                x = chain(x)
        return self.exit(x)
