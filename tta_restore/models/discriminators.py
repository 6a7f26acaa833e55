"""Discriminators of real and generated images."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore.models.registry import register_model

__all__ = ["PatchDiscriminator", "VGG19Discriminator"]


@register_model("vgg19_critic", kind="discriminator")
class VGG19Discriminator(nn.Module):
    """torchvision's VGG19 with one output, the discriminator of Meta Transferring.

    It has 139.6 million parameters. With the weight clipping of the paper, random weights give a gradient of about
    1e-10: load torchvision's ImageNet weights (``checkpoint="vgg19-....pth"``, whose last layer of 1000 classes is
    dropped) or those of a trained discriminator. In train mode two dropout layers of rate 0.5 are active.

    Args:
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - x: (B, 3, H, W) in [0, 1], not normalized, H and W at least 32
        - output: (B, 1)

    Source: Simonyan and Zisserman, ICLR 2015; Liu et al., Meta transferring for deblurring, BMVC 2022.
    """

    def __init__(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        from torchvision.models import vgg19  # slow to import, and few programs need it

        # The constructor takes no device. init_weights=False keeps the default initialization of torch's layers.
        with nullcontext() if device is None else torch.device(device):
            network = vgg19(num_classes=1, init_weights=False)
        network = network if dtype is None else network.to(dtype)
        self.features, self.classifier = network.features, network.classifier

    def forward(self, x: Tensor) -> Tensor:
        """Return one score per image."""
        _check_picture("vgg19_critic", x, 32)
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 7).flatten(1))

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Replace the last layer of a classifier of many classes by the module's own."""
        last = {f"classifier.6.{name}": value.detach() for name, value in self.classifier[6].named_parameters()}
        weight = state_dict.get("classifier.6.weight")
        return dict(state_dict) | (last if weight is not None and weight.shape[0] > 1 else {})


@register_model("patch_critic", kind="discriminator")
class PatchDiscriminator(nn.Module):
    """Small discriminator of overlapping patches that can be trained from random weights.

    Args:
        base_channels: channels of the first of four convolutions.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - x: (B, 3, H, W) in [0, 1], H and W at least 8
        - output: (B, 1, ceil(H/8), ceil(W/8)); the receptive field of a score is 45 x 45 pixels

    Source: Isola et al., Image-to-image translation with conditional adversarial networks, CVPR 2017. Normalization
    layers are left out, since they remove the amount of blur.
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
        """Return the size of the weights' network; empty for weights of another network."""
        first = state_dict.get("layers.0.weight")
        return {} if first is None else {"base_channels": first.shape[0]}

    def forward(self, x: Tensor) -> Tensor:
        """Return one score per patch."""
        _check_picture("patch_critic", x, 8)
        *hidden, last = self.layers
        x = x - 0.5  # centers [0, 1]
        for layer in hidden:
            x = F.leaky_relu(layer(x), 0.2)
        return last(x)


def _check_picture(function: str, x: Tensor, smallest: int) -> None:
    checks.expect_floating(function, x=x)
    shape = checks.expect_shape(function, "x", x, "(B, 3, H, W)", (None, 3, None, None))
    if min(shape[-2:]) < smallest:
        raise ValueError(f"{function}: expected H and W of at least {smallest}, got {shape}")
