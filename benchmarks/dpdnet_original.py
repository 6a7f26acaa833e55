"""DPDNet-S as it was published, written anew from its table of layers: doubled, padded, concatenated, convolved."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def convolutions(inside: int, outside: int) -> nn.Sequential:
    first, second = nn.Conv2d(inside, outside, 3, padding=1), nn.Conv2d(outside, outside, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


class ReleasedDpdnet(nn.Module):
    """One picture in, one picture out; dropout is off."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        for level, inside in enumerate([3, *widths[:-1]]):
            self.add_module(f"conv{level + 1}", convolutions(inside, widths[level]))
        for level in (3, 2, 1, 0):
            self.add_module(f"up{9 - level}", nn.Conv2d(widths[level + 1], widths[level], 2))
            self.add_module(f"conv{9 - level}", convolutions(widths[level + 1], widths[level]))
        self.conv10, self.conv11 = nn.Conv2d(width, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        modules, skips = dict(self.named_children()), []
        for stage in range(1, 6):
            x = modules[f"conv{stage}"](x if stage == 1 else functional.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for stage in range(6, 10):
            x = functional.pad(functional.interpolate(x, scale_factor=2), (0, 1, 0, 1))
            x = torch.cat([skips.pop(), functional.relu(modules[f"up{stage}"](x))], 1)
            x = modules[f"conv{stage}"](x)
        return torch.sigmoid(self.conv11(functional.relu(self.conv10(x))))
