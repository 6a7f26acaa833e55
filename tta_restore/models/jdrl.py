"""Networks of reblurring-guided learning: U-Net, reblurring network, and blur-map conditioning of any restorer.

Source: Li et al., JDRL, AAAI 2023; Ren et al., Reblurring-guided defocus deblurring, IJCV 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore import ops
from tta_restore._core import checks
from tta_restore.models.registry import create_model, register_model
from tta_restore.models.restorer.spec import RestorerSpec, SizeRequirements
from tta_restore.nn import (
    BlurMapEstimator,
    BlurMapFusion,
    IsotropicKernelPredictor,
    IsotropicReblur,
)
from tta_restore.nn.reblur import KERNEL_SIZES, ChannelGate, ResidualTrunk, seed_channels

__all__ = ["BlurConditioned", "JDRLReblur", "JDRLUNet", "blur_conditioned", "jdrl_journal"]

_DROPOUT = 0.4
_FREE_SIZE = 15  # side of the kernels of the one-branch ablation


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
        # A row of zeros below and a column to the right keep the size under the 2 x 2 kernel.
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
    """Deblurring U-Net of five levels with dropout; official checkpoints load.

    Args:
        prior: take a blur map in addition to the image, as in the journal version.
        width: channels of the first level, 64 in the papers.
        kernel_sizes: kernel sizes of the blur map.
        bgr: reverse the color channels before and after the network. The official conference weights were trained on
            BGR and need True; those of the journal version were trained on RGB.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - x: (B, 3, H, W), RGB in [0, 1], H and W multiples of 16
        - blur_map: (B, 35, H, W), with ``prior`` only
        - output: (B, 3, H, W), RGB in (0, 1)

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: A shape differs, or a blur map is missing or not expected.

    Source: Li et al., JDRL, AAAI 2023; with ``prior`` Ren et al., IJCV 2025.
    """

    checkpoint_wrappers = ("G_state_dict",)

    def __init__(
        self,
        *,
        prior: bool = False,
        width: int = 64,
        kernel_sizes: Sequence[int] = KERNEL_SIZES,
        bgr: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.bgr = bgr
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

    @staticmethod
    def config_of_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return width and ``prior`` of official or own weights; empty for those of another network."""
        first = state_dict.get("encoder.block1.0.weight")
        return {} if first is None else {"width": first.shape[0], "prior": first.shape[1] > 3}

    def forward(self, x: Tensor, blur_map: Tensor | None = None) -> Tensor:
        """Return the restored image."""
        if (blur_map is None) == self.prior:
            raise ValueError(f"jdrl_unet: expected {'a' if self.prior else 'no'} blur map with prior={self.prior}")
        checks.expect_floating("jdrl_unet", x=x)
        b, _, h, w = checks.expect_shape("jdrl_unet", "x", x, "(B, 3, H, W)", (None, 3, None, None))
        if h % 16 or w % 16:
            raise ValueError(f"jdrl_unet: expected H and W to be multiples of 16, got {tuple(x.shape)}")
        x = x.flip(1) if self.bgr else x  # the blur map has no color channels
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
        x = self.out(x)
        return x.flip(1) if self.bgr else x


class _FreeKernelPredictor(nn.Module):
    """Predictor of one free kernel per pixel, and of weights that keep nothing of the image as it is."""

    def __init__(self, width: int, **factory: Any) -> None:
        super().__init__()
        self.seed_trunk = ResidualTrunk(6, _FREE_SIZE**2, width=width, **factory)

    def forward(self, image: Tensor, blurry: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.seed_trunk(torch.cat((image, blurry), 1))
        return logits, torch.zeros_like(logits[:, :1])


class _FreeReblur(nn.Module):
    """Per-pixel blur by the softmax of absolute logits, with zeros outside the image."""

    def forward(self, image: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
        return ops.adaptive_conv2d(
            image, logits.abs(), kernel_size=_FREE_SIZE, groups=1, padding_mode="zeros", normalize="softmax"
        )


@register_model("jdrl_reblur", kind="reblurrer")
class JDRLReblur(nn.Module):
    """Reblurring network: blurs a restored image like an observation; official checkpoints load.

    Args:
        width: channels of the trunks, 64 in the papers.
        kernel_sizes: odd sizes of the isotropic kernels.
        bgr: reverse the color channels of the inputs, as the official conference weights need.
        one_branch: ablation that predicts one free 15 x 15 kernel per pixel instead of a mixture of isotropic ones. In
            the official code it returns the unblurred image; here it blurs. It yields no blur map.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - restored, blurry: (B, 3, H, W), RGB in [0, 1]
        - output: (B, 3, H, W)

    Source: Li et al., JDRL, AAAI 2023.
    """

    checkpoint_wrappers = ("Reblur_state_dict",)

    def __init__(
        self,
        *,
        width: int = 64,
        kernel_sizes: Sequence[int] = KERNEL_SIZES,
        bgr: bool = False,
        one_branch: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.bgr, self.one_branch = bgr, one_branch
        self.predictor: nn.Module = (
            _FreeKernelPredictor(width, **factory)
            if one_branch
            else IsotropicKernelPredictor(width=width, kernel_sizes=kernel_sizes, **factory)
        )
        self.reblur: nn.Module = _FreeReblur() if one_branch else IsotropicReblur(kernel_sizes=kernel_sizes)

    def forward(self, restored: Tensor, blurry: Tensor) -> Tensor:
        """Return ``restored``, blurred towards ``blurry``."""
        return self.reblur(restored, *self.predict(restored, blurry))

    def predict(self, restored: Tensor, blurry: Tensor) -> tuple[Tensor, Tensor]:
        """Return kernel logits and mixture weights: (B, sum((K+1)/2) or 225, H, W) and (B, 1+N or 1, H, W)."""
        if self.bgr:
            restored, blurry = restored.flip(1), blurry.flip(1)
        return self.predictor(restored, blurry)

    @staticmethod
    def config_of_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return width and branches of official or own weights; empty for those of another network."""
        for trunk in ("kpn.", "predictor.seed_trunk."):
            last = state_dict.get(f"{trunk}out.weight")
            if last is not None:
                return {"width": last.shape[1], "one_branch": last.shape[0] == _FREE_SIZE**2}
        return {}

    def convert_state_dict(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename official keys; the one-branch ablation drops the weights of the mixture, which it does not use."""
        names = {"kernel_map_gene.": "predictor.weight_trunk.", "kpn.": "predictor.seed_trunk."}
        if self.one_branch:
            weights = {name: tensor for name, tensor in weights.items() if not name.startswith("kernel_map_gene.")}
        return {
            next((own + name[len(old) :] for old, own in names.items() if name.startswith(old)), name): tensor
            for name, tensor in weights.items()
        }


class BlurConditioned(nn.Module):
    """Restorer conditioned on an estimated blur map, which a fusion adds to its input or to a module inside it.

    With a new fusion the output equals that of the restorer. The wrapped module is not modified. An official checkpoint
    of a transformer with a fusion in front of its first layer loads with ``at`` set to that layer.

    Args:
        restorer: module to be conditioned.
        at: path of the module whose first argument is fused with the map, such as ``"decoder.0"``; None for the input
            of the restorer. The first layer's input and the restorer's input differ if the restorer adds its input to
            its output.
        argument: name of the argument by which the restorer takes a map itself; no fusion is used then.
        channels: channels of the features that are fused with the map; 3 for the input.
        estimator: blur map estimator; None for a new :class:`tta_restore.nn.BlurMapEstimator`.
        fusion: module of features and map; None for a new :class:`tta_restore.nn.BlurMapFusion`.

    Shape: x (B, 3, H, W) -> output of the restorer.

    Raises:
        ValueError: There is no module ``at``.

    Source: Ren et al., Reblurring-guided defocus deblurring, IJCV 2025.
    """

    #: Official journal files keep the restorer and the estimator in two state dicts.
    checkpoint_wrappers: ClassVar[dict[str, str]] = {"": "G_state_dict", "estimator.": "Pred_state_dict"}

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
        """Rename official keys; the estimator keeps its weights if the file holds none."""
        if any(name.startswith("restorer.") for name in weights):
            return weights
        names = {
            "channel_attention_t.": "fusion.gate.",
            "adjust_channels.": "fusion.adjust.",
            "estimator.": "estimator.",
        }
        converted = {f"estimator.{name}": tensor for name, tensor in self.estimator.state_dict().items()}
        for name, tensor in weights.items():
            old = next((old for old in names if name.startswith(old)), "")
            converted[names.get(old, "restorer.") + name[len(old) :]] = tensor
        return converted

    def forward(self, x: Tensor, *, strength: float = 1.0) -> Any:
        """Return the restorer's output; ``strength`` scales the map, which training ramps from 0 to 1."""
        return self.restore_with(x, self.estimator(x) * strength)

    def restore_with(self, x: Tensor, blur_map: Tensor) -> Any:
        """Return the restorer's output for a given blur map (B, M, H, W)."""
        if self.fusion is None:
            return self.restorer(x, **{str(self.argument): blur_map})
        fuse = self.fusion
        if self.at is None:
            return self.restorer(fuse(x, blur_map))

        def enter(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            return fuse(arguments[0], blur_map), *arguments[1:]

        # A hook that exists during this call only leaves the wrapped module as it is.
        handle = self.restorer.get_submodule(self.at).register_forward_pre_hook(enter)
        try:
            return self.restorer(x)
        finally:
            handle.remove()


@register_model("jdrl_journal")
def jdrl_journal(
    *,
    width: int = 64,
    map_width: int = 32,
    bgr: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> BlurConditioned:
    """Build the U-Net of the journal version with its blur map estimator; official checkpoints load.

    Args:
        width: channels of the first level of the U-Net.
        map_width: channels of the estimator.
        bgr: see :class:`JDRLUNet`.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Source: Ren et al., Reblurring-guided defocus deblurring, IJCV 2025.
    """
    factory: dict[str, Any] = {"device": device, "dtype": dtype}
    restorer = JDRLUNet(prior=True, width=width, bgr=bgr, **factory)
    return BlurConditioned(restorer, argument="blur_map", estimator=BlurMapEstimator(width=map_width, **factory))


def _journal_config(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the widths of official or own weights of the journal version; empty for those of another network."""
    first = state_dict.get("restorer.encoder.block1.0.weight", state_dict.get("encoder.block1.0.weight"))
    last = state_dict.get("estimator.out.weight")
    config = {} if first is None else {"width": first.shape[0]}
    return config if last is None else config | {"map_width": last.shape[1]}


jdrl_journal.checkpoint_wrappers = BlurConditioned.checkpoint_wrappers  # type: ignore[attr-defined]
jdrl_journal.config_of_state_dict = _journal_config  # type: ignore[attr-defined]


@register_model("blur_conditioned")
def blur_conditioned(
    *, restorer: str, config: Mapping[str, Any] | None = None, at: str | None = None, channels: int = 3
) -> BlurConditioned:
    """Build a registered restorer conditioned on its own blur map.

    Args:
        restorer: registered name of the restorer.
        config: keywords of its builder.
        at: see :class:`BlurConditioned`.
        channels: see :class:`BlurConditioned`.
    """
    return BlurConditioned(create_model(restorer, **(config or {})), at=at, channels=channels)
