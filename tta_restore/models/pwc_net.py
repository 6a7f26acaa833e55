"""PWC-Net for existing flow weights, with the parameter names of the weights in circulation.

The aligned scores that JDRL publishes depend on this flow. Its weights are CC BY-NC-SA 4.0 and not included.

Source: Sun et al., PWC-Net: CNNs for optical flow using pyramid, warping and cost volume, CVPR 2018.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PWCNet", "cost_volume"]

_LEVELS = ("One", "Two", "Thr", "Fou", "Fiv", "Six")
_FEATURES = (16, 32, 64, 96, 128, 196)
_DENSE = (128, 128, 96, 64, 32)
_VOLUME = 81
_REACH = 4
# Flow in units of 20 pixels of the image, as pixels of each level: 20 / 2^level.
_WARP_SCALE = {5: 0.625, 4: 1.25, 3: 2.5, 2: 5.0}


def cost_volume(first: Tensor, second: Tensor) -> Tensor:
    """Return mean products of features at offsets up to 4 pixels, zero outside: (B, C, H, W) x 2 -> (B, 81, H, W)."""
    height, width = first.shape[2:]
    padded = F.pad(second, (_REACH,) * 4)
    steps = range(2 * _REACH + 1)
    return torch.stack([(first * padded[:, :, y : y + height, x : x + width]).mean(1) for y in steps for x in steps], 1)


def _leaky_pairs(*channels: int, strides: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after, stride in zip(channels, channels[1:], strides, strict=False):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


def _warp(features: Tensor, flow: Tensor) -> Tensor:
    """Return features at p + flow in the convention of the trained weights, zero outside the image."""
    height, width = flow.shape[2:]
    # A half-pixel grid, but displacements divided by (N - 1) / 2: the weights were trained with this mismatch.
    x = torch.linspace(-1, 1, width, device=flow.device, dtype=flow.dtype) * (1 - 1 / width)
    y = torch.linspace(-1, 1, height, device=flow.device, dtype=flow.dtype) * (1 - 1 / height)
    moved = flow * 2 / flow.new_tensor([max(width - 1, 1), max(height - 1, 1)])[:, None, None]
    grid = torch.stack((x + moved[:, 0], y[:, None] + moved[:, 1]), -1)
    padded = torch.cat((features, torch.ones_like(features[:, :1])), 1)
    sampled = F.grid_sample(padded, grid, padding_mode="zeros", align_corners=False)
    return sampled[:, :-1] * (sampled[:, -1:] > 0.999)


class _Extractor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        before = 3
        for name, width in zip(_LEVELS, _FEATURES, strict=True):
            self.add_module(f"net{name}", _leaky_pairs(before, width, width, width, strides=(2, 1, 1)))
            before = width

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for name in _LEVELS:
            x = self.get_submodule(f"net{name}")(x)
            features.append(x)
        return features


class _Decoder(nn.Module):
    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level
        width = _VOLUME
        if level < 6:
            coarser = _VOLUME + (_FEATURES[level] + 4 if level < 5 else 0) + sum(_DENSE)
            self.netUpflow = nn.ConvTranspose2d(2, 2, 4, 2, 1)
            self.netUpfeat = nn.ConvTranspose2d(coarser, 2, 4, 2, 1)
            width += _FEATURES[level - 1] + 4
        for name, dense in zip(_LEVELS, _DENSE, strict=False):
            self.add_module(f"net{name}", nn.Sequential(nn.Conv2d(width, dense, 3, 1, 1), nn.LeakyReLU(0.1)))
            width += dense
        self.netSix = nn.Sequential(nn.Conv2d(width, 2, 3, 1, 1))

    def forward(self, first: Tensor, second: Tensor, coarser: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        if coarser is None:
            x = F.leaky_relu(cost_volume(first, second), 0.1)
        else:
            flow, features = self.netUpflow(coarser[0]), self.netUpfeat(coarser[1])
            volume = F.leaky_relu(cost_volume(first, _warp(second, flow * _WARP_SCALE[self.level])), 0.1)
            x = torch.cat((volume, first, flow, features), 1)
        for name in _LEVELS[:-1]:
            # New features precede old ones in the trained weights.
            x = torch.cat((self.get_submodule(f"net{name}")(x), x), 1)
        return self.netSix(x), x


class _Refiner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = _VOLUME + _FEATURES[1] + 4 + sum(_DENSE)
        layers: list[nn.Module] = []
        widths = (128, 128, 128, 96, 64, 32, 2)
        for after, dilation in zip(widths, (1, 2, 4, 8, 16, 1, 1), strict=True):
            layers += [nn.Conv2d(width, after, 3, 1, dilation, dilation), nn.LeakyReLU(0.1)]
            width = after
        self.netMain = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.netMain(x)


class PWCNet(nn.Module):
    """PWC-Net: flow at a quarter of the resolution, in units of 20 pixels of the input.

    Shape:
        - first, second: (B, 3, H, W) in [0, 1], H and W multiples of 64
        - output: (B, 2, H/4, W/4)
    """

    def __init__(self) -> None:
        super().__init__()
        self.netExtractor = _Extractor()
        for level in range(2, 7):
            self.add_module(f"net{_LEVELS[level - 1]}", _Decoder(level))
        self.netRefiner = _Refiner()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the flow from ``first`` to ``second``."""
        a, b = self.netExtractor(first), self.netExtractor(second)
        estimate = self.get_submodule("netSix")(a[5], b[5], None)
        for level in range(5, 1, -1):
            estimate = self.get_submodule(f"net{_LEVELS[level - 1]}")(a[level - 1], b[level - 1], estimate)
        flow, features = estimate
        return flow + self.netRefiner(features)

    def convert_state_dict(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of older files: ``moduleExtractor.moduleOne`` is now ``netExtractor.netOne``."""
        return {name.replace("module", "net"): tensor for name, tensor in weights.items()}
