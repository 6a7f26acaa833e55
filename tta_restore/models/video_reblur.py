"""Reblurring network of Meta Transferring: blurs the center frame of a clip like the frames around it.

Source: Liu et al., Meta transferring for deblurring, BMVC 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore.models.registry import register_model
from tta_restore.models.restorer.spec import SizeRequirements, pad
from tta_restore.nn import CrossFrameFusionBlock
from tta_restore.nn.cross_frame import Variant

__all__ = ["VideoReblur"]

Fusion = Literal["attention", "conv3d", "channels"]

_WINDOW, _HEADS, _DEPTH = 8, 4, 4
_DROP_PATH = 0.1  # rate of the last fusion block in train mode; grows linearly from 0


class _Residual(nn.Module):
    def __init__(self, channels: int, **factory: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, **factory)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv1(x), 0.2)
        return F.leaky_relu(self.conv2(y) + x, 0.2)


class _Embedding(nn.Module):
    """Tokens of windows of r x r pixels, channels fastest within a window: (N, C, H, W) -> (N, windows, D)."""

    def __init__(self, channels: int, dim: int, window: int, **factory: Any) -> None:
        super().__init__()
        self.window = window
        projection = nn.Linear(channels * window**2, dim, **factory)
        nn.init.trunc_normal_(projection.weight, std=0.02)
        nn.init.zeros_(projection.bias)
        self.proj = nn.ModuleDict({"1": projection})
        self.norm = nn.LayerNorm(dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        r = self.window
        pixels = rearrange(x, "n c (rows y) (columns x) -> n (rows columns) (y x c)", y=r, x=r)
        return self.norm(self.proj["1"](pixels))


class _AttentionFusion(nn.Module):
    """Fusion of the frames' features into those of the center frame: (B*T, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, num_frames: int, variant: Variant, **factory: Any) -> None:
        super().__init__()
        dim = 2 * channels
        self.patch_embed = _Embedding(channels, dim, 1, **factory)
        self.regional_embed = _Embedding(channels, dim, _WINDOW, **factory)
        blocks = [
            CrossFrameFusionBlock(
                dim,
                _HEADS,
                window_size=_WINDOW,
                num_frames=num_frames,
                variant=variant,
                drop_path=_DROP_PATH * i / (_DEPTH - 1),
                **factory,
            )
            for i in range(_DEPTH)
        ]
        self.layers = nn.ModuleList([nn.ModuleDict({"blocks": nn.ModuleList(blocks)})])
        self.head = nn.Conv2d(dim, channels, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        local, regional = self.patch_embed(x), self.regional_embed(x)
        *blocks, last_but_one, last = self.layers[0]["blocks"]  # type: ignore[index]
        for block in blocks:
            regional, local = block(regional, local, size)
        regional, local = last_but_one.last_but_one(regional, local, size)
        local = last.middle_frame(regional, local, size)
        return self.head(local.transpose(1, 2).unflatten(2, size))


@register_model("video_reblur", kind="reblurrer")
class VideoReblur(nn.Module):
    """U-Net that blurs the center frame of a clip like the clip around it; official weights load.

    The features at a quarter of the size are fused across frames. The defaults are those of the paper. Any height and
    width are accepted and padded by reflection inside.

    Args:
        num_frames: odd number T of frames.
        num_layers: residual units of each stage.
        base_channels: channels of the first stage.
        fusion: "attention" across windows, frames and pixels; "conv3d" along time; "channels" concatenates the frames
            at the input and fuses nothing else ("mtrnn" in the official code).
        variant: order of the regional tokens, see :class:`tta_restore.nn.CrossFrameFusionBlock`.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - clip: (B, T, 3, H, W) in [0, 1]
        - output: (B, 3, H, W), about [0, 1], not clamped

    Raises:
        ValueError: The clip has another shape.

    >>> VideoReblur(num_layers=1, base_channels=2)(torch.rand(1, 5, 3, 20, 33)).shape
    torch.Size([1, 3, 20, 33])
    """

    def __init__(
        self,
        *,
        num_frames: int = 5,
        num_layers: int = 3,
        base_channels: int = 32,
        fusion: Fusion = "attention",
        variant: Variant = "ours",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.expect_int("video_reblur", "num_frames", num_frames, minimum=1, odd=True)
        checks.expect_int("video_reblur", "num_layers", num_layers, minimum=1)
        checks.expect_int("video_reblur", "base_channels", base_channels, minimum=1)
        checks.expect_choice("video_reblur", "fusion", fusion, ("attention", "conv3d", "channels"))
        if fusion == "conv3d" and num_frames != 5:
            raise ValueError(f"video_reblur: expected num_frames = 5 with fusion='conv3d', got {num_frames}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_frames, self.fusion = num_frames, fusion
        n = base_channels

        def units(channels: int) -> nn.Sequential:
            return nn.Sequential(*(_Residual(channels, **factory) for _ in range(num_layers)))

        # Names of the official checkpoints: e enters a stage, d doubles the size, c merges with the skip connection.
        frames_at_once = num_frames if fusion == "channels" else 1
        self.conv1_e, self.conv1 = nn.Conv2d(3 * frames_at_once, n, 5, padding=2, **factory), units(n)
        self.conv2_e, self.conv2 = nn.Conv2d(n, 2 * n, 5, stride=2, padding=2, **factory), units(2 * n)
        self.conv3_e, self.conv3 = nn.Conv2d(2 * n, 4 * n, 5, stride=2, padding=2, **factory), units(4 * n)
        if fusion == "attention":
            self.attn3 = _AttentionFusion(4 * n, num_frames, variant, **factory)
        elif fusion == "conv3d":
            self.threed_embed = nn.Conv2d(4 * n, 8 * n, 3, padding=1, **factory)
            self.threed_conv = nn.ModuleList([nn.Conv3d(8 * n, 8 * n, (5, 3, 3), **factory) for _ in range(3)])
            self.threed_decode = nn.Conv2d(8 * n, 4 * n, 3, padding=1, **factory)
        self.conv4 = units(4 * n)
        self.conv5_d = nn.ConvTranspose2d(4 * n, 2 * n, 4, stride=2, padding=1, **factory)
        self.conv5_c, self.conv5 = nn.Conv2d(4 * n, 2 * n, 5, padding=2, **factory), units(2 * n)
        self.conv6_d = nn.ConvTranspose2d(2 * n, n, 4, stride=2, padding=1, **factory)
        self.conv6_c, self.conv6 = nn.Conv2d(2 * n, n, 5, padding=2, **factory), units(n)
        self.decode = nn.Conv2d(n, 3, 3, padding=1, **factory)

    def forward(self, clip: Tensor) -> Tensor:
        """Return the reblurred center frame."""
        frames = self.num_frames
        checks.expect_floating("video_reblur", clip=clip)
        checks.expect_shape("video_reblur", "clip", clip, "(B, T, 3, H, W)", (None, frames, 3, None, None))
        height, width = clip.shape[-2:]
        clip = pad(clip, SizeRequirements(multiple_of=4 * _WINDOW if self.fusion == "attention" else 4))
        x = self._laid_out(clip.flatten(1, 2) if self.fusion == "channels" else clip.flatten(0, 1))
        first = self.conv1(self.conv1_e(x))
        second = self.conv2(self.conv2_e(first))
        x = self._fused(self.conv3(self.conv3_e(second)))
        x = self.conv5_d(self.conv4(x))
        x = self.conv5(self.conv5_c(torch.cat((x, self._middle(second)), 1)))
        x = self.conv6_d(x)
        x = self.conv6(self.conv6_c(torch.cat((x, self._middle(first)), 1)))
        # The network predicts a correction of the center frame.
        return (self.decode(x) + clip[:, frames // 2])[..., :height, :width]

    @staticmethod
    def config_of_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return sizes and fusion of official or own weights; empty for those of another network."""
        first = state_dict.get("conv1_e.weight")
        if first is None:
            return {}
        layers = {name.split(".")[1] for name in state_dict if name.startswith("conv1.")}
        config: dict[str, Any] = {"base_channels": first.shape[0], "num_layers": len(layers)}
        fused = state_dict.get("attn3.layers.0.blocks.0.cross_attn.proj.weight")
        if "threed_embed.weight" in state_dict:
            return config | {"fusion": "conv3d"}
        if fused is not None:
            return config | {"fusion": "attention", "num_frames": fused.shape[1] // fused.shape[0]}
        return config | {"fusion": "channels", "num_frames": first.shape[1] // 3}

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Drop the attention weights that official checkpoints of the other fusions carry unused."""
        keep = self.fusion == "attention"
        return {name: value for name, value in state_dict.items() if keep or not name.startswith("attn3.")}

    @staticmethod
    def _laid_out(x: Tensor) -> Tensor:
        # Gradients of convolutions with few channels take a quarter of the time in this layout on CPUs.
        return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x

    def _middle(self, x: Tensor) -> Tensor:
        return x if self.fusion == "channels" else x.unflatten(0, (-1, self.num_frames))[:, self.num_frames // 2]

    def _fused(self, x: Tensor) -> Tensor:
        if self.fusion == "channels":
            return x
        if self.fusion == "attention":
            return self.attn3(x)
        every = self.threed_embed(x).unflatten(0, (-1, self.num_frames)).transpose(1, 2)  # (B, C, T, H, W)
        # Five frames, three convolutions of length 5 in time without padding: each yields the center frame.
        first, *others = self.threed_conv
        middle = first(F.pad(every, (1, 1, 1, 1, 0, 0), mode="reflect"))
        for layer in others:
            every = every + F.pad(middle, (0, 0, 0, 0, 2, 2))
            middle = layer(F.pad(every, (1, 1, 1, 1, 0, 0), mode="reflect"))
        return self.threed_decode(middle[:, :, 0])
