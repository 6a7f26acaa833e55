"""Deblurring network of IFAN, with the switches of its ablations."""

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

__all__ = ["IFAN", "IFANDual", "IFANTraining"]

REDUCTION = 8  # features are filtered at an eighth of the size


def xavier_uniform(module: nn.Module, gain: float = 1.0) -> None:
    """Draw Xavier-uniform weights for every convolution in ``module`` and set the biases to zero."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, IterativeFilterAdaptiveBlock)):
            nn.init.xavier_uniform_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Encoder(nn.Module):
    """Encoder of four stages of three convolutions; every stage but the first halves the size."""

    def __init__(self, in_channels: int, width: int, **factory: Any) -> None:
        super().__init__()
        for stage, channels in enumerate((width, 2 * width, 4 * width, 4 * width), 1):
            first = activated_conv(in_channels, channels, stride=1 if stage == 1 else 2, **factory)
            rest = (activated_conv(channels, channels, **factory) for _ in range(2))
            self.add_module(f"stage{stage}", nn.Sequential(first, *rest))
            in_channels = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of every stage, the largest first."""
        features = []
        for stage in self.children():
            x = stage(x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """Decoder of three doublings with skip connections, which ends in a correction of the image."""

    def __init__(self, width: int, *, in_channels: int, num_units: int, **factory: Any) -> None:
        super().__init__()
        wide = 4 * width
        self.enter = nn.Sequential(
            activated_conv(in_channels, wide, **factory),
            ResidualChain(wide, num_units=num_units, **factory),
            activated_conv(wide, wide, **factory),
        )
        for stage, inside, outside in ((3, wide, wide), (2, wide, 2 * width), (1, 2 * width, width)):
            self.add_module(f"up{stage}", activated_upconv(inside, outside, **factory))
            chains = (ResidualChain(outside, num_units=1, **factory) for _ in range(2))
            self.add_module(f"stage{stage}", nn.Sequential(*chains))
        self.exit = activated_conv(width, 3, **factory)  # with an activation, as published

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """Return the correction of the image; ``skips`` are popped, so that each is freed after its use."""
        x = self.enter(x)
        stages = dict(self.named_children())
        for stage in (3, 2, 1):
            x = stages[f"up{stage}"](x)
            x = x + skips.pop()
            for chain in stages[f"stage{stage}"].children():
                x = chain(x)
        return self.exit(x)


Variant = Literal["ours", "official"]

# Gain of the last layer's initialization: the output starts close to the input, and gradients still pass.
FIRST_CORRECTION = 0.02

# Steps of the reblurring network in the official configurations; others take as many as the deblurring network.
_REBLUR_STEPS = {26: 9, 35: 17, 44: 17}

# Residual units after the concatenation in the ablations without filters; with the other sizes it gives the 10.58 M
# parameters that the paper states for "D only".
_PLAIN_UNITS = 19


@dataclass(frozen=True)
class IFANTraining:
    """Outputs of ``forward_train``.

    Attributes:
        result: restored image (B, 3, H, W), not clamped.
        filters: predicted filters (B, N*C*(2K+1), H/8, W/8); None if they were not requested or the network has none.
        disparity: disparity map (B, 1, H/8, W/8) of the restored image, in pixels of an eighth of the size; None
            without a disparity estimator.
        warped_right: right view warped onto the left one (B, 3, H/8, W/8); None without views.
        left_small: left view (B, 3, H/8, W/8); None without views.
    """

    result: Tensor
    filters: Tensor | None = None
    disparity: Tensor | None = None
    warped_right: Tensor | None = None
    left_small: Tensor | None = None


class _Network(nn.Module):
    """Common part of IFAN and its dual-pixel version, which differ in the images that predict the filters."""

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
        filters: bool = True,
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
        guidance = 2 * wide if disparity else wide
        self.filter_trunk: nn.Module = nn.Identity()
        self.filter_features: nn.Module = nn.Identity()
        if filters:
            self.filter_trunk = nn.Sequential(
                activated_conv(guidance, wide, **factory),
                *(ResidualChain(wide, **chain) for _ in range(2)),
                activated_conv(wide, wide, **factory),
            )
            self.filter_features = nn.Sequential(
                activated_conv(wide, wide, **factory), *(ResidualChain(wide, **chain) for _ in range(2))
            )
        self.encoder = Encoder(3, base_channels, **factory)
        options: dict[str, Any] = {"num_steps": num_steps, "kernel_size": kernel_size, "horizontal": horizontal}
        self.adaptive = IterativeFilterAdaptiveBlock(wide, wide, **options, **factory) if filters else None
        enter = {"in_channels": wide, "num_units": 3} if filters else {"in_channels": guidance + wide}
        self.decoder = Decoder(base_channels, **{"num_units": _PLAIN_UNITS} | enter, **factory)
        self._horizontal: Horizontal = horizontal
        self._num_res_blocks = num_res_blocks
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights again, by the rule of ``variant``."""
        xavier_uniform(self)
        xavier_uniform(self.filter_features, 1.5)
        if self.variant == "official":
            if self.adaptive is not None:
                xavier_uniform(self.adaptive, 1.5)
        else:
            if self.adaptive is not None:
                self.adaptive.reset_parameters()
            xavier_uniform(self.decoder.exit, FIRST_CORRECTION)

    @property
    def horizontal(self) -> Horizontal:
        """Filters of the horizontal passes: separate ("own") or those of the vertical passes ("vertical")."""
        return self._horizontal

    @property
    def reblur_config(self) -> dict[str, Any] | None:
        """Arguments of the :class:`IFANReblur` that fits this network's filters; None without filters."""
        adaptive = self.adaptive
        if adaptive is None:
            return None
        config = {name: getattr(adaptive, name) for name in ("num_steps", "kernel_size", "horizontal")}
        config |= {"base_channels": adaptive.channels // 4, "num_res_blocks": self._num_res_blocks}
        config |= {"reblur_steps": _REBLUR_STEPS.get(adaptive.num_steps, adaptive.num_steps)}
        return config | {"variant": self.variant}

    def convert_state_dict(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename official keys; those of the reblurring network are dropped."""
        return ifan_checkpoint.network(weights, warn=not self._chosen)

    @classmethod
    def config_of_state_dict(cls, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the configuration of the weights' network; empty for weights of another one."""
        return ifan_checkpoint.network_config(weights)

    def _check(self, **views: Tensor) -> None:
        checks.expect_floating(self.name, **views)
        shape: tuple[int | None, ...] = (None, 3, None, None)
        for name, view in views.items():
            shape = checks.expect_shape(self.name, name, view, "(B, 3, H, W)", shape)
        height, width = shape[-2:]
        if not height or not width or height % REDUCTION or width % REDUCTION:
            raise ValueError(f"{self.name}: expected H and W to be multiples of {REDUCTION}, got {shape}")

    def _guidance(self, views: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the features from which filters are predicted, and the disparity map.

        Without filters, these are the features that are concatenated with those of the image.
        """
        features = self.filter_encoder(views)[-1]
        if self.disparity is None or self.disparity_features is None:
            return self.filter_features(self.filter_trunk(features)), None
        disparity = self.disparity(features)
        both = torch.cat((features, self.disparity_features(disparity)), 1)
        return self.filter_features(self.filter_trunk(both)), disparity

    def _restore(self, x: Tensor, views: Tensor) -> Tensor:
        features, _ = self._guidance(views)  # before the encoder, so that its intermediates are freed before the skips
        skips = self.encoder(x)
        restored = self.decoder(self._merge(skips.pop(), features), skips) + x
        return restored if self.training else restored.clamp(0, 1)

    def _merge(self, x: Tensor, features: Tensor) -> Tensor:
        return torch.cat((x, features), 1) if self.adaptive is None else self.adaptive(x, features)

    def _restore_for_training(
        self, x: Tensor, views: Tensor, right: Tensor | None, left: Tensor | None, *, keep_filters: bool
    ) -> IFANTraining:
        if (right is None) != (left is None):
            raise ValueError(f"{self.name}: expected both views, right and left, or neither")
        features, disparity = self._guidance(views)
        skips = self.encoder(x)
        filters = None
        if keep_filters and self.adaptive is not None:
            filters = self.adaptive.predict_filters(features)
            merged = self.adaptive.apply_filters(skips.pop(), filters)
        else:
            merged = self._merge(skips.pop(), features)
        result = self.decoder(merged, skips) + x
        if right is None or left is None or self.disparity is None or disparity is None:
            return IFANTraining(result, filters, disparity)
        between = disparity
        if views.shape[1] == 3:  # filters are predicted from the center view, but disparity is learned from the right
            between = self.disparity(self.filter_encoder(right)[-1])
        right_small, left_small = F.avg_pool2d(right, REDUCTION), F.avg_pool2d(left, REDUCTION)
        return IFANTraining(result, filters, disparity, ops.disparity_warp(right_small, between), left_small)


@register_model("ifan")
class IFAN(_Network):
    """Iterative filter adaptive network for defocus deblurring; official checkpoints load.

    A second encoder and a disparity map predict per-pixel filters for features at an eighth of the size. The filters
    are applied in N steps, and the result is decoded with the encoder's features to a correction of the image. At
    inference the filters are never stored (:func:`tta_restore.ops.iac_from_features`).

    Args:
        base_channels: channels at full size; four times as many at an eighth of the size.
        num_steps: number N of filtering steps; the paper has networks of 8, 17, 26, 35 and 44.
        kernel_size: odd length K of the filters.
        num_res_blocks: units of each residual chain in disparity estimator and filter predictor.
        horizontal: ``"own"`` uses separate horizontal filters, as published; ``"vertical"`` shares the vertical ones,
            as the official checkpoints do. :func:`tta_restore.models.create_model` infers it from official keys. None
            is ``"own"`` too, and warns when weights with official keys are loaded into the model afterwards.
        disparity: predict a disparity map and use it for the filters. Without it nothing is learned from views.
        filters: False replaces the adaptive convolution by a concatenation of both encoders' features and 19 residual
            units: the ablations "none" of the paper without ``disparity``, "D only" with it.
        variant: initialization. ``"ours"`` starts with filters near the identity, so that gradients reach every layer
            from the first step, and with a correction near zero, so that training starts at the input's quality.
            ``"official"`` draws both like other weights; the features then vanish within N steps.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - x: (B, 3, H, W), RGB in [0, 1], H and W multiples of 8
        - output: (B, 3, H, W), clamped to [0, 1] in eval mode only

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: A shape differs, or a setting is out of range.

    Source: Lee et al., Iterative filter adaptive network for single image defocus deblurring, CVPR 2021. The default
    network has 10 476 996 parameters and 362.9 GMAC at 1280 x 720.
    """

    name = "ifan"
    filter_inputs = 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the restored image."""
        self._check(x=x)
        return self._restore(x, x)

    def forward_train(
        self, x: Tensor, right: Tensor | None = None, left: Tensor | None = None, *, keep_filters: bool = True
    ) -> IFANTraining:
        """Return the restored image and the tensors that the training losses compare.

        Args:
            x: center view, which is restored.
            right: view from which the disparity is learned; None, with ``left``, if there are no views.
            left: view onto which the right one is warped.
            keep_filters: return the filters, which the reblurring network needs; False never stores them.

        Shape: x, right, left (B, 3, H, W), in [0, 1].
        """
        views = {"right": right, "left": left}
        self._check(x=x, **{key: view for key, view in views.items() if view is not None})
        return self._restore_for_training(x, x, right, left, keep_filters=keep_filters)


@register_model("ifan_dual")
class IFANDual(_Network):
    """IFAN that predicts its filters from the two views of a dual pixel; official checkpoints load.

    It takes the arguments of :class:`IFAN`.

    Shape:
        - x, right, left: (B, 3, H, W), RGB in [0, 1], H and W multiples of 8; ``x`` is the center view
        - output: (B, 3, H, W), clamped to [0, 1] in eval mode only

    Source: Lee et al., CVPR 2021. The default network has 10 477 860 parameters.
    """

    name = "ifan_dual"
    filter_inputs = 2

    def forward(self, x: Tensor, right: Tensor, left: Tensor) -> Tensor:
        """Return the restored center view."""
        self._check(x=x, right=right, left=left)
        return self._restore(x, torch.cat((right, left), 1))

    def forward_train(self, x: Tensor, right: Tensor, left: Tensor, *, keep_filters: bool = True) -> IFANTraining:
        """Return the tensors of the training losses, see :meth:`IFAN.forward_train`."""
        self._check(x=x, right=right, left=left)
        views = torch.cat((right, left), 1)
        return self._restore_for_training(x, views, right, left, keep_filters=keep_filters)
