"""The networks of reblurring-guided learning: a U-Net, the reblurring module, and a blur map for any restorer.

Source: JDRL (Li et al., AAAI 2023); Reblurring-guided defocus deblurring (Ren et al., IJCV 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore.models.registry import register_model
from tta_restore.models.restorer.spec import RestorerSpec, SizeRequirements
from tta_restore.nn import (
    BlurMapEstimator,
    BlurMapFusion,
    IsotropicKernelPredictor,
    IsotropicReblur,
)
from tta_restore.nn.reblur import KERNEL_SIZES, ChannelGate, seed_channels

_DROPOUT = 0.4


def _pair(in_channels: int, out_channels: int, **factory: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, **factory),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, **factory),
        nn.ReLU(),
    )


class _Up(nn.Sequential):
    def __init__(self, in_channels: int, out_channels: int, **factory: Any) -> None:
        super().__init__(nn.Upsample(scale_factor=2), nn.Conv2d(in_channels, out_channels, 2, **factory))

    def forward(self, x: Tensor) -> Tensor:
        # one row of zeros below and one column to the right keep the size
        return self[1](F.pad(self[0](x), (0, 1, 0, 1)))


class _Encoder(nn.Module):
    def __init__(self, in_channels: int, width: int, **factory: Any) -> None:
        super().__init__()
        self.block1 = _pair(in_channels, width, **factory)
        self.block2 = _pair(width, 2 * width, **factory)
        self.block3 = _pair(2 * width, 4 * width, **factory)
        self.block4 = _pair(4 * width, 8 * width, **factory)
        self.block5 = _pair(8 * width, 16 * width, **factory)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        first = self.block1(x)
        second = self.block2(F.max_pool2d(first, 2))
        third = self.block3(F.max_pool2d(second, 2))
        fourth = F.dropout(self.block4(F.max_pool2d(third, 2)), _DROPOUT, self.training)
        fifth = F.dropout(self.block5(F.max_pool2d(fourth, 2)), _DROPOUT, self.training)
        return first, second, third, fourth, fifth


@register_model("jdrl_unet")
class JDRLUNet(nn.Module):
    """Deblurs by a U-Net of five levels with dropout; official checkpoints load.

    Args:
        prior: takes a blur map beside the image, as the journal version does.
        width: channels of the first level, 64 as published.
        kernel_sizes: of the blur map.

    Shape:
        - x: (B, 3, H, W) in [0, 1], H and W multiples of 16
        - blur_map: (B, 35, H, W), with ``prior`` only
        - output: (B, 3, H, W) in (0, 1)

    The released conference weights were trained on BGR, those of the journal version on RGB.
    """

    checkpoint_wrappers = ("G_state_dict",)

    def __init__(
        self,
        *,
        prior: bool = False,
        width: int = 64,
        kernel_sizes: Sequence[int] = KERNEL_SIZES,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.spec = RestorerSpec(in_channels=3, out_channels=3, size=SizeRequirements(16, 16))
        self.prior = prior
        self.map_channels = seed_channels(kernel_sizes) if prior else 0
        channels = 3 + self.map_channels
        self.channel_attention = ChannelGate(channels, **factory) if prior else None
        self.encoder = _Encoder(channels, width, **factory)
        self.up6, self.block6 = _Up(16 * width, 8 * width, **factory), _pair(16 * width, 8 * width, **factory)
        self.up7, self.block7 = _Up(8 * width, 4 * width, **factory), _pair(8 * width, 4 * width, **factory)
        self.up8, self.block8 = _Up(4 * width, 2 * width, **factory), _pair(4 * width, 2 * width, **factory)
        self.up9, self.block9 = _Up(2 * width, width, **factory), _pair(2 * width, width, **factory)
        self.out = nn.Sequential(nn.Conv2d(width, 3, 3, padding=1, **factory), nn.Sigmoid())
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")

    def forward(self, x: Tensor, blur_map: Tensor | None = None) -> Tensor:
        """Deblur ``x``."""
        if (blur_map is None) == self.prior:
            raise ValueError(f"jdrl_unet: expected {'a' if self.prior else 'no'} blur map with prior={self.prior}")
        checks.expect_floating("jdrl_unet", x=x)
        b, _, h, w = checks.expect_shape("jdrl_unet", "x", x, "(B, 3, H, W)", (None, 3, None, None))
        if h % 16 or w % 16:
            raise ValueError(f"jdrl_unet: expected H and W to be multiples of 16, got {tuple(x.shape)}")
        if self.channel_attention is not None and blur_map is not None:
            checks.expect_floating("jdrl_unet", blur_map=blur_map)
            letters = "(B, sum((K+1)/2), H, W)"
            checks.expect_shape("jdrl_unet", "blur_map", blur_map, letters, (b, self.map_channels, h, w))
            x = self.channel_attention(torch.cat((x, blur_map), 1))
        first, second, third, fourth, x = self.encoder(x)
        x = self.block6(torch.cat((self.up6(x), fourth), 1))
        x = self.block7(torch.cat((self.up7(x), third), 1))
        x = self.block8(torch.cat((self.up8(x), second), 1))
        x = self.block9(torch.cat((self.up9(x), first), 1))
        return self.out(x)


@register_model("jdrl_reblur", kind="reblurrer")
class JDRLReblur(nn.Module):
    """Blurs a restored image so that it looks like an observation; official checkpoints load.

    Args:
        width: channels of the trunks, 64 as published.
        kernel_sizes: of the isotropic kernels.

    Shape:
        - restored, blurry: (B, 3, H, W), RGB in [0, 1]
        - output: (B, 3, H, W)
    """

    checkpoint_wrappers = ("Reblur_state_dict",)

    def __init__(
        self,
        *,
        width: int = 64,
        kernel_sizes: Sequence[int] = KERNEL_SIZES,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.predictor = IsotropicKernelPredictor(width=width, kernel_sizes=kernel_sizes, **factory)
        self.reblur = IsotropicReblur(kernel_sizes=kernel_sizes)

    def forward(self, restored: Tensor, blurry: Tensor) -> Tensor:
        """Blur ``restored`` towards ``blurry``."""
        return self.reblur(restored, *self.predictor(restored, blurry))

    def convert_state_dict(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official keys to ours."""
        names = {"kernel_map_gene.": "predictor.weight_trunk.", "kpn.": "predictor.seed_trunk."}
        return {
            next((own + name[len(old) :] for old, own in names.items() if name.startswith(old)), name): tensor
            for name, tensor in weights.items()
        }


class BlurConditioned(nn.Module):
    """A restorer that is told the blur: an estimated map enters its input, or a module inside it, through a fusion.

    With a new fusion it starts as the restorer itself. The wrapped module is not changed. An official checkpoint of a
    transformer with a fusion in front of its first layer loads with ``at`` that layer; its estimator is loaded by
    itself: ``load_checkpoint(model.estimator, file)``.

    Args:
        restorer: what restores.
        at: path of the module whose first argument takes the map, such as ``"decoder.0"``; None for the input. In front
            of the first layer and of the input differ where the restorer adds its input to its output.
        argument: name of the argument by which the restorer takes a map itself; there is no fusion then.
        channels: of the features that the map enters; 3 for the input.
        estimator: of the map; None for a new one.
        fusion: of map and features; None for a new one.

    Shape:
        - x: (B, 3, H, W)
        - output: that of the restorer

    Raises:
        ValueError: there is no module ``at``.
    """

    checkpoint_wrappers = ("G_state_dict",)

    def __init__(
        self,
        restorer: nn.Module,
        *,
        at: str | None = None,
        argument: str | None = None,
        channels: int = 3,
        estimator: nn.Module | None = None,
        fusion: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.restorer = restorer
        self.at, self.argument = at, argument
        self.estimator = BlurMapEstimator() if estimator is None else estimator
        self.fusion = fusion
        if fusion is None and argument is None:
            self.fusion = BlurMapFusion(channels)
        if at is not None and at not in dict(restorer.named_modules()):
            raise ValueError(f"BlurConditioned: the restorer has no module {at!r}")
        own = getattr(restorer, "spec", None)
        if isinstance(own, RestorerSpec):
            self.spec = own

    def convert_state_dict(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official keys to ours, with the estimator's weights, which are not among them, as they are."""
        if any(name.startswith("restorer.") for name in weights):
            return weights
        names = {"channel_attention_t.": "fusion.gate.", "adjust_channels.": "fusion.adjust."}
        converted = {f"estimator.{name}": tensor for name, tensor in self.estimator.state_dict().items()}
        for name, tensor in weights.items():
            old = next((old for old in names if name.startswith(old)), "")
            converted[names.get(old, "restorer.") + name[len(old) :]] = tensor
        return converted

    def forward(self, x: Tensor, *, strength: float = 1.0) -> Any:
        """Restore ``x``; ``strength`` scales the map (it grows from 0 to 1 at the start of training)."""
        return self.restore_with(x, self.estimator(x) * strength)

    def restore_with(self, x: Tensor, blur_map: Tensor) -> Any:
        """Restore ``x`` with a map that is known."""
        if self.fusion is None:
            return self.restorer(x, **{str(self.argument): blur_map})
        fuse = self.fusion
        if self.at is None:
            return self.restorer(fuse(x, blur_map))

        def enter(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            return fuse(arguments[0], blur_map), *arguments[1:]

        handle = self.restorer.get_submodule(self.at).register_forward_pre_hook(enter)
        try:
            return self.restorer(x)
        finally:
            handle.remove()


@register_model("jdrl_journal")
def jdrl_journal(**config: Any) -> BlurConditioned:
    """Build the conditioned restorer of the journal version: a "jdrl_unet" that takes its estimated blur map.

    Args:
        config: keywords of "jdrl_unet", ``prior`` excepted.

    Source: Reblurring-guided defocus deblurring (Ren et al., IJCV 2025).
    """
    return BlurConditioned(JDRLUNet(**config | {"prior": True}), argument="blur_map")
