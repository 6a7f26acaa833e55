"""The released IFAN at inference, written anew from its description, with its names of weights and nothing fused.

The filters of all steps are made by one convolution and lie in memory; every step unfolds, permutes, multiplies and
sums (`original.py`). Its mistake is kept: horizontal passes read the vertical taps; the others are made for nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import original


def conv(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1), nn.LeakyReLU(0.1, inplace=True))


def upconv(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(inside, outside, 4, 2, 1), nn.LeakyReLU(0.1, inplace=True))


class Residual(nn.Module):
    def __init__(self, channels: int, stems: int) -> None:
        super().__init__()
        self.stem = nn.ModuleList(
            nn.Sequential(*conv(channels, channels), nn.Conv2d(channels, channels, 3, 1, 1)) for _ in range(stems)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for stem in self.stem:
            y = functional.leaky_relu(y + stem(y), 0.1)
        return y + x if len(self.stem) > 1 else y


class ReleasedIfan(nn.Module):
    """One picture in, one picture out."""

    def __init__(self, width: int = 32, num_steps: int = 17, blocks: int = 2, *, horizontal: str = "vertical") -> None:
        super().__init__()
        self.num_steps, self.horizontal = num_steps, horizontal
        wide = 4 * width
        for branch in ("conv", "kconv"):
            inside = 3
            for stage, outside in enumerate((width, 2 * width, wide, wide), 1):
                for i in (1, 2, 3):
                    stride = 2 if stage > 1 and i == 1 else 1
                    self.add_module(f"{branch}{stage}_{i}", conv(inside, outside, stride))
                    inside = outside
        two = (Residual(wide, blocks), Residual(wide, blocks))
        self.DME = nn.Sequential(conv(wide, wide), *two, nn.Conv2d(wide, 1, 3, 1, 1))
        self.conv_DME = conv(1, wide)
        two = (Residual(wide, blocks), Residual(wide, blocks))
        self.conv4_4 = nn.Sequential(conv(2 * wide, wide), *two, conv(wide, wide))
        two = (Residual(wide, blocks), Residual(wide, blocks))
        self.F = nn.Sequential(conv(wide, wide), *two, nn.Conv2d(wide, num_steps * wide * 7, 1))
        self.conv_res = nn.Sequential(conv(wide, wide), Residual(wide, 3), conv(wide, wide))
        for stage, inside, outside in ((3, wide, wide), (2, wide, 2 * width), (1, 2 * width, width)):
            self.add_module(f"upconv{stage}_u", upconv(inside, outside))
            self.add_module(f"upconv{stage}_1", Residual(outside, 1))
            self.add_module(f"upconv{stage}_2", Residual(outside, 1))
        self.out_res = conv(width, 3)

    def encode(self, x: Tensor, branch: str) -> list[Tensor]:
        modules, found = dict(self.named_children()), []
        for stage in (1, 2, 3, 4):
            for i in (1, 2, 3):
                x = modules[f"{branch}{stage}_{i}"](x)
            found.append(x)
        return found

    def forward(self, image: Tensor) -> Tensor:
        f1, f2, f3, blurry = self.encode(image, "conv")
        features = self.encode(image, "kconv")[-1]
        disparity = self.conv_DME(self.DME(features))
        filters = self.F(self.conv4_4(torch.cat([features, disparity], 1)))
        x = original.iac(blurry, filters, num_steps=self.num_steps, horizontal=self.horizontal)
        x = self.conv_res(x)
        modules = dict(self.named_children())
        for stage, skip in ((3, f3), (2, f2), (1, f1)):
            x = modules[f"upconv{stage}_u"](x) + skip
            x = modules[f"upconv{stage}_2"](modules[f"upconv{stage}_1"](x))
        return (self.out_res(x) + image).clamp(0, 1)
