"""Reblurring network of IFAN, used in training only.

Source: Lee et al., Iterative filter adaptive network for single image defocus deblurring, CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore.models.ifan import checkpoint
from tta_restore.models.ifan.network import FIRST_CORRECTION, REDUCTION, Variant, xavier_uniform
from tta_restore.models.registry import register_model
from tta_restore.nn import IterativeAdaptiveConv2d
from tta_restore.nn.residual import ResidualChain, activated_conv
from tta_restore.ops.adaptive_conv import Horizontal

__all__ = ["IFANReblur"]

_LAST_TAP = 0.1  # center taps of the last step: a correction of 1 % at first, whose taps have gradients


@register_model("ifan_reblur", kind="reblurrer")
class IFANReblur(nn.Module):
    """Network that turns deblurring filters into filters that blur the sharp image, for a training loss.

    Args:
        base_channels: base channels of the deblurring network.
        num_steps: number N of steps of the deblurring network.
        kernel_size: filter length K of the deblurring network.
        num_res_blocks: units of each residual chain.
        horizontal: filters of the horizontal passes, see :class:`tta_restore.models.ifan.network.IFAN`.
        reblur_steps: number of steps of the reblurring filters; None for N. The official configuration of 26 steps has
            9, those of 35 and 44 have 17.
        reblur_kernel_size: odd length of the reblurring filters; None for K.
        variant: initialization. ``"ours"`` starts at the reduced sharp image. ``"official"`` draws the last layer like
            the others; on filters near the identity, with which :class:`~tta_restore.models.ifan.network.IFAN` starts
            unless its variant is official, the output then grows in every step, to 1e9 and more.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - sharp: (B, 3, H, W), RGB in [0, 1], H and W multiples of 8
        - filters: (B, N*C*(2K+1), H/8, W/8), C = 4 * base_channels
        - output: (B, 3, H/8, W/8)

    Source: Lee et al., CVPR 2021. As published, the sharp image is reduced to the first pixel of every 8 x 8 block,
    while the loss reduces the observation by averaging. The default network has 19 139 685 parameters.
    """

    name = "ifan_reblur"

    def __init__(
        self,
        *,
        base_channels: int = 32,
        num_steps: int = 17,
        kernel_size: int = 3,
        num_res_blocks: int = 2,
        horizontal: Horizontal | None = None,
        reblur_steps: int | None = None,
        reblur_kernel_size: int | None = None,
        variant: Variant = "ours",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.expect_choice(self.name, "variant", variant, ("ours", "official"))
        self.variant: Variant = variant
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        wide = 4 * base_channels
        self._chosen = horizontal is not None
        self.reblur = IterativeAdaptiveConv2d(
            3,
            num_steps=num_steps if reblur_steps is None else reblur_steps,
            kernel_size=kernel_size if reblur_kernel_size is None else reblur_kernel_size,
            activate_last=False,
            horizontal=horizontal or "own",
        )
        self.filter_channels = num_steps * wide * (2 * kernel_size + 1)
        self.predictor = nn.Sequential(
            activated_conv(self.filter_channels, wide, **factory),
            *(ResidualChain(wide, num_units=num_res_blocks, **factory) for _ in range(2)),
            nn.Conv2d(wide, self.reblur.filter_channels, 3, padding=1, **factory),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights again, by the rule of ``variant``."""
        xavier_uniform(self)
        if self.variant == "official":
            return
        last: Any = self.predictor[-1]
        xavier_uniform(last, FIRST_CORRECTION)
        taps = self.reblur.num_steps * 2 * 3 * self.reblur.kernel_size
        with torch.no_grad():  # center taps by step, direction and channel
            centers = last.bias[:taps].view(self.reblur.num_steps, -1, self.reblur.kernel_size)
            centers = centers[..., self.reblur.kernel_size // 2]
            centers[:-1] = 1
            centers[-1] = _LAST_TAP

    @property
    def horizontal(self) -> Horizontal:
        """Filters of the horizontal passes, separate ("own") or those of the vertical passes ("vertical")."""
        return self.reblur.horizontal

    def convert_state_dict(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename official keys; those of the deblurring network are dropped."""
        return checkpoint.reblurring(weights, warn=not self._chosen)

    @classmethod
    def config_of_state_dict(cls, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the configuration of the weights' network; empty for weights of another one."""
        return checkpoint.reblurring_config(weights)

    def forward(self, sharp: Tensor, filters: Tensor) -> Tensor:
        """Return ``sharp`` at an eighth of its size, blurred by filters predicted from ``filters``."""
        checks.expect_floating(self.name, sharp=sharp, filters=filters)
        b, _, h, w = checks.expect_shape(self.name, "sharp", sharp, "(B, 3, H, W)", (None, 3, None, None))
        if h % REDUCTION or w % REDUCTION:
            raise ValueError(f"{self.name}: expected H and W to be multiples of {REDUCTION}, got {tuple(sharp.shape)}")
        size = (b, self.filter_channels, h // REDUCTION, w // REDUCTION)
        checks.expect_shape(self.name, "filters", filters, "(B, N*C*(2K+1), H/8, W/8)", size)
        # Nearest-neighbor reduction, as published; the loss averages.
        small = sharp[..., ::REDUCTION, ::REDUCTION]
        return self.reblur(small, self.predictor(filters)) + small
