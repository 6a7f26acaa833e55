"""Encoder, decoder and initialization of IFAN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore import ops
from tta_restore._core import checks
from tta_restore.models.ifan import checkpoint as ifan_checkpoint
from tta_restore.models.registry import register_model
from tta_restore.models.restorer.spec import RestorerSpec, SizeRequirements
from tta_restore.nn import DisparityEstimator, IterativeFilterAdaptiveBlock
from tta_restore.nn.residual import ResidualChain, activated_conv, activated_upconv
from tta_restore.ops.adaptive_conv import Horizontal

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


Variant = Literal["ours", "official"]

_FIRST_CORRECTION = 0.02
"""Gain of the last layer at the start: the picture stays what it is, and gradients pass all the same."""


@dataclass(frozen=True)
class IFANTraining:
    """What ``forward_train`` gives.

    Attributes:
        result: (B, 3, H, W), not clipped.
        filters: (B, N*C*(2K+1), H/8, W/8), for the reblurring network; None where they were not asked for.
        warped_right: (B, 3, H/8, W/8), the right view moved onto the left one; None without views.
        left_small: (B, 3, H/8, W/8), the left view; None without views.
    """

    result: Tensor
    filters: Tensor | None = None
    warped_right: Tensor | None = None
    left_small: Tensor | None = None


class _Network(nn.Module):
    """What both variants share: everything but the pictures that the filters are predicted from."""

    name: str
    filter_inputs: int

    def __init__(
        self,
        *,
        base_channels: int = 32,
        num_steps: int = 17,
        kernel_size: int = 3,
        num_res_blocks: int = 2,
        horizontal: Horizontal | None = None,
        disparity: bool = True,
        variant: Variant = "ours",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for key, value in (("base_channels", base_channels), ("num_steps", num_steps), ("kernel_size", kernel_size)):
            checks.expect_int(self.name, key, value, minimum=1, odd=key == "kernel_size")
        self._chosen = horizontal is not None
        horizontal = horizontal or "own"
        checks.expect_choice(self.name, "horizontal", horizontal, ("own", "vertical"))
        checks.expect_choice(self.name, "variant", variant, ("ours", "official"))
        self.spec = RestorerSpec(in_channels=3, out_channels=3, size=SizeRequirements(REDUCTION, REDUCTION))
        self.variant: Variant = variant
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        wide = 4 * base_channels
        chain: dict[str, Any] = {"num_units": num_res_blocks, **factory}
        self.filter_encoder = Encoder(3 * self.filter_inputs, base_channels, **factory)
        self.disparity = DisparityEstimator(wide, num_res_blocks=num_res_blocks, **factory) if disparity else None
        self.disparity_features = activated_conv(1, wide, **factory) if disparity else None
        self.filter_trunk = nn.Sequential(
            activated_conv(2 * wide if disparity else wide, wide, **factory),
            *(ResidualChain(wide, **chain) for _ in range(2)),
            activated_conv(wide, wide, **factory),
        )
        self.filter_features = nn.Sequential(
            activated_conv(wide, wide, **factory), *(ResidualChain(wide, **chain) for _ in range(2))
        )
        self.encoder = Encoder(3, base_channels, **factory)
        options: dict[str, Any] = {"num_steps": num_steps, "kernel_size": kernel_size, "horizontal": horizontal}
        self.adaptive = IterativeFilterAdaptiveBlock(wide, wide, **options, **factory)
        self.decoder = Decoder(base_channels, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew, by the rule of ``init``."""
        xavier_uniform(self)
        xavier_uniform(self.filter_features, 1.5)
        if self.variant == "official":
            xavier_uniform(self.adaptive, 1.5)
        else:
            self.adaptive.reset_parameters()
            xavier_uniform(self.decoder.exit, _FIRST_CORRECTION)

    @property
    def horizontal(self) -> Horizontal:
        """Which taps the horizontal passes read."""
        return self.adaptive.horizontal

    def convert_state_dict(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names to ours; what belongs to the reblurring network is left out."""
        return ifan_checkpoint.network(weights, warn=not self._chosen)

    @classmethod
    def config_of_state_dict(cls, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """The configuration that these weights belong to."""
        return ifan_checkpoint.network_config(weights)

    def _check(self, **views: Tensor) -> None:
        checks.expect_floating(self.name, **views)
        shape: tuple[int | None, ...] = (None, 3, None, None)
        for name, view in views.items():
            shape = checks.expect_shape(self.name, name, view, "(B, 3, H, W)", shape)
        height, width = shape[-2:]
        if not height or not width or height % REDUCTION or width % REDUCTION:
            raise ValueError(f"{self.name}: expected H and W to be multiples of {REDUCTION}, got {shape}")

    def _filter_features(self, views: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features that filters are predicted from, and the disparity map."""
        features = self.filter_encoder(views)[-1]
        if self.disparity is None or self.disparity_features is None:
            return self.filter_features(self.filter_trunk(features)), None
        disparity = self.disparity(features)
        both = torch.cat((features, self.disparity_features(disparity)), 1)
        return self.filter_features(self.filter_trunk(both)), disparity

    def _restore(self, x: Tensor, views: Tensor) -> Tensor:
        features, _ = self._filter_features(views)  # first: its large intermediates are gone before the skips come
        skips = self.encoder(x)
        restored = self.decoder(self.adaptive(skips.pop(), features), skips) + x
        return restored if self.training else restored.clamp(0, 1)

    def _restore_for_training(
        self, x: Tensor, views: Tensor, right: Tensor | None, left: Tensor | None, *, keep_filters: bool
    ) -> IFANTraining:
        if (right is None) != (left is None):
            raise ValueError(f"{self.name}: expected both views, right and left, or neither")
        features, disparity = self._filter_features(views)
        skips = self.encoder(x)
        filters = self.adaptive.predict_filters(features) if keep_filters else None
        filtered = (
            self.adaptive(skips.pop(), features)
            if filters is None
            else self.adaptive.apply_filters(skips.pop(), filters)
        )
        result = self.decoder(filtered, skips) + x
        if right is None or left is None or self.disparity is None or disparity is None:
            return IFANTraining(result, filters)
        if views.shape[1] == 3:  # one view: what predicts filters from the center has to find disparity from the right
            disparity = self.disparity(self.filter_encoder(right)[-1])
        right_small, left_small = F.avg_pool2d(right, REDUCTION), F.avg_pool2d(left, REDUCTION)
        return IFANTraining(result, filters, ops.disparity_warp(right_small, disparity), left_small)


@register_model("ifan")
class IFAN(_Network):
    """Deblurs one picture by filters predicted for every pixel; official checkpoints load.

    Filters for features at an eighth of the size are predicted by an encoder of their own and from a disparity map,
    applied in N steps, and decoded with the encoder's features to a correction of the picture. At inference the filters
    never exist in memory (:func:`tta_restore.ops.iac_from_features`).

    Args:
        base_channels: channels at full size; four times as many at an eighth.
        num_steps: N, how often filters are applied.
        kernel_size: K of the filters, odd.
        num_res_blocks: units of each residual chain in disparity estimator and filter predictor.
        horizontal: ``"own"`` as published; ``"vertical"`` runs the released checkpoints, whose horizontal passes read
            the vertical taps. Official names in a checkpoint set it, see :func:`tta_restore.models.create_model`.
            None is ``"own"`` too, and warns when weights with official names are loaded into the model afterwards.
        disparity: predict the filters from a disparity map, too. Without it there is nothing to learn from views.
        init: ``"identity"`` starts with filters near the identity, so that gradients reach every layer from the first
            step, and with a correction near zero, so that training starts at the input's quality (ours);
            ``"published"`` draws both like other weights, and nothing of the features passes N steps.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - x: (B, 3, H, W), RGB in [0, 1], H and W multiples of 8
        - output: (B, 3, H, W), clipped to [0, 1] in eval mode only

    10 476 996 parameters and 362.9 GMAC at 1280x720 by default.
    """

    name = "ifan"
    filter_inputs = 1

    def forward(self, x: Tensor) -> Tensor:
        """Deblur ``x``."""
        self._check(x=x)
        return self._restore(x, x)

    def forward_train(
        self, x: Tensor, right: Tensor | None = None, left: Tensor | None = None, *, keep_filters: bool = True
    ) -> IFANTraining:
        """Deblur ``x`` and give what the losses compare.

        Args:
            x: the center view, all that is restored.
            right: view that the disparity is estimated from; None, with ``left``, where there are no views.
            left: view that the right one has to meet.
            keep_filters: give the filters, as the reblurring network needs them; False never holds them.

        Shape: x, right, left (B, 3, H, W) in [0, 1].
        """
        views = {"right": right, "left": left}
        self._check(x=x, **{key: view for key, view in views.items() if view is not None})
        return self._restore_for_training(x, x, right, left, keep_filters=keep_filters)


@register_model("ifan_dual")
class IFANDual(_Network):
    """IFAN whose filters are predicted from the two views of a dual pixel; official checkpoints load.

    Arguments are those of :class:`IFAN`.

    Shape:
        - x, right, left: (B, 3, H, W), RGB in [0, 1], H and W multiples of 8; ``x`` is the center view
        - output: (B, 3, H, W), clipped to [0, 1] in eval mode only

    10 477 860 parameters by default.
    """

    name = "ifan_dual"
    filter_inputs = 2

    def forward(self, x: Tensor, right: Tensor, left: Tensor) -> Tensor:
        """Deblur ``x`` by what ``right`` and ``left`` show."""
        self._check(x=x, right=right, left=left)
        return self._restore(x, torch.cat((right, left), 1))

    def forward_train(self, x: Tensor, right: Tensor, left: Tensor, *, keep_filters: bool = True) -> IFANTraining:
        """Deblur ``x`` and give what the losses compare; see :meth:`IFAN.forward_train`."""
        self._check(x=x, right=right, left=left)
        views = torch.cat((right, left), 1)
        return self._restore_for_training(x, views, right, left, keep_filters=keep_filters)
