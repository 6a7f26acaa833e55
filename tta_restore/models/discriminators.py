"""Discriminators: how much a picture looks like one of the real ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore.models.registry import register_model

_VGG19 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512, 0)  # 0 halves


@register_model("vgg19_critic", kind="discriminator")
class VGG19Discriminator(nn.Module):
    """VGG19 with one output, as Meta Transferring is published; torchvision's weights load.

    139.6 million parameters. Under the weight clipping of the published training a fresh one gives a gradient of
    about 1e-10 and is of no use: load ImageNet weights (``checkpoint="vgg19-....pth"``; their last layer, of 1000
    classes, is left out) or those of a trained critic. In train mode two dropouts of 0.5 are active.

    Args:
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - x: (B, 3, H, W) in [0, 1], not normalized, H and W at least 32
        - output: (B, 1)

    Source: Simonyan and Zisserman, ICLR 2015; Meta Transferring for Deblurring (Liu et al., BMVC 2022).
    """

    def __init__(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        layers: list[nn.Module] = []
        channels = 3
        for width in _VGG19:
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1, **factory), nn.ReLU(inplace=True)]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096, **factory),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096, **factory),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 1, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        """One score per picture."""
        _check_picture("vgg19_critic", x, 32)
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 7).flatten(1))

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave out the last layer of a classifier of many classes: the own one stays as it is."""
        last = {f"classifier.6.{name}": value.detach() for name, value in self.classifier[6].named_parameters()}
        weight = state_dict.get("classifier.6.weight")
        return dict(state_dict) | (last if weight is not None and weight.shape[0] > 1 else {})


@register_model("patch_critic", kind="discriminator")
class PatchDiscriminator(nn.Module):
    """A small critic that scores overlapping patches and can be trained from nothing.

    Args:
        base_channels: channels of the first of four convolutions.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - x: (B, 3, H, W) in [0, 1], H and W at least 8
        - output: (B, 1, H/8, W/8), rounded up; each score sees 47 x 47 pixels

    Source: after Isola et al., Image-to-image translation with conditional adversarial networks, CVPR 2017; without
    normalization, which would hide how blurred a patch is.
    """

    def __init__(
        self, *, base_channels: int = 32, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        checks.expect_int("patch_critic", "base_channels", base_channels, minimum=1)
        n = base_channels
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(3, n, 5, stride=2, padding=2, **factory),
                nn.Conv2d(n, 2 * n, 5, stride=2, padding=2, **factory),
                nn.Conv2d(2 * n, 4 * n, 5, stride=2, padding=2, **factory),
                nn.Conv2d(4 * n, 1, 3, padding=1, **factory),
            ]
        )

    @staticmethod
    def config_of_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """Sizes that weights were made with; nothing where they are another network's."""
        first = state_dict.get("layers.0.weight")
        return {} if first is None else {"base_channels": first.shape[0]}

    def forward(self, x: Tensor) -> Tensor:
        """A score per patch."""
        _check_picture("patch_critic", x, 8)
        *hidden, last = self.layers
        x = x - 0.5
        for layer in hidden:
            x = F.leaky_relu(layer(x), 0.2)
        return last(x)


def _check_picture(function: str, x: Tensor, smallest: int) -> None:
    checks.expect_floating(function, x=x)
    shape = checks.expect_shape(function, "x", x, "(B, 3, H, W)", (None, 3, None, None))
    if min(shape[-2:]) < smallest:
        raise ValueError(f"{function}: expected H and W of at least {smallest}, got {shape}")
