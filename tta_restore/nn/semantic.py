"""Semantic conditioning: frozen image encoders and cross-attention from features to their tokens."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import urllib.parse
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tta_restore._core import checks

__all__ = ["OpenClipEncoder", "SemanticCrossAttention", "TimmEncoder"]


class SemanticCrossAttention(nn.Module):
    """Residual cross-attention ``x + res_scale * attention(x, context)`` from features to context tokens.

    With one context token per image the softmax has a single entry, equal to 1, so that the layer adds one shift per
    channel. It is then computed without attention, at the cost of an addition, and the query and key weights get no
    gradient. With two or more tokens the shift depends on the position.

    Args:
        dim: channels C of the features.
        context_dim: width D of the context tokens.
        num_heads: number of attention heads.
        head_dim: width of a head; None for ``dim / num_heads``, at least 1.
        res_scale: factor of the attention output.
        zero_init: initialize the output projection with zeros, so that the layer starts as the identity.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - x: (B, C, H, W) or (B, L, C)
        - context: (B, D), or (B, S, D) with S tokens
        - output: as x

    Source: CauSiam, arXiv 2501.09052, fusion at the first decoder stage. ``zero_init`` is an addition.

    >>> layer = SemanticCrossAttention(16, 12, num_heads=2)
    >>> layer(torch.rand(1, 16, 4, 5), torch.rand(1, 12)).shape
    torch.Size([1, 16, 4, 5])
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        *,
        num_heads: int = 8,
        head_dim: int | None = None,
        res_scale: float = 0.05,
        zero_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        head_dim = max(1, dim // num_heads) if head_dim is None else head_dim
        for name, value in (("dim", dim), ("context_dim", context_dim), ("num_heads", num_heads)):
            checks.expect_int("SemanticCrossAttention", name, value, minimum=1)
        checks.expect_int("SemanticCrossAttention", "head_dim", head_dim, minimum=1)
        self.dim, self.context_dim, self.num_heads, self.head_dim = dim, context_dim, num_heads, head_dim
        self.res_scale, self.zero_init = res_scale, zero_init
        inner = num_heads * head_dim
        self.to_q = nn.Linear(dim, inner, bias=False, device=device, dtype=dtype)
        self.to_k = nn.Linear(context_dim, inner, bias=False, device=device, dtype=dtype)
        self.to_v = nn.Linear(context_dim, inner, bias=False, device=device, dtype=dtype)
        self.to_out = nn.Linear(inner, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights again; with ``zero_init`` the layer is the identity."""
        for layer in (self.to_q, self.to_k, self.to_v, self.to_out):
            layer.reset_parameters()
        if self.zero_init:
            nn.init.zeros_(self.to_out.weight)
            nn.init.zeros_(self.to_out.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return features conditioned on ``context``, in the shape of ``x``."""
        checks.expect_floating("SemanticCrossAttention", x=x, context=context)
        channels = 1 if x.ndim == 4 else -1
        if x.ndim not in (3, 4) or x.shape[channels] != self.dim:
            raise ValueError(
                f"SemanticCrossAttention: expected x (B, C, H, W) or (B, L, C) with C = {self.dim}, "
                f"got {tuple(x.shape)}"
            )
        if context.ndim not in (2, 3) or context.shape[-1] != self.context_dim or context.shape[0] != x.shape[0]:
            raise ValueError(
                f"SemanticCrossAttention: expected context (B, D) or (B, S, D) with B = {x.shape[0]}, "
                f"D = {self.context_dim}, got {tuple(context.shape)}"
            )
        context = context.to(x.dtype)
        if context.ndim == 2 or context.shape[1] == 1:
            # The softmax over a single token is 1: attention reduces to the value projection.
            shift = self.res_scale * self.to_out(self.to_v(context.flatten(1)))
            return x + (shift[:, :, None, None] if x.ndim == 4 else shift[:, None]).to(x.dtype)
        tokens = rearrange(x, "b c h w -> b (h w) c") if x.ndim == 4 else x
        q, k, v = (
            rearrange(part, "b s (heads d) -> b heads s d", heads=self.num_heads)
            for part in (self.to_q(tokens), self.to_k(context), self.to_v(context))
        )
        read = self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads s d -> b s (heads d)"))
        if x.ndim == 4:
            read = rearrange(read, "b (h w) c -> b c h w", h=x.shape[2])
        return x + (self.res_scale * read).to(x.dtype)

    def extra_repr(self) -> str:
        """Return the arguments that ``repr`` shows."""
        return (
            f"{self.dim}, {self.context_dim}, num_heads={self.num_heads}, head_dim={self.head_dim}, "
            f"res_scale={self.res_scale}, zero_init={self.zero_init}"
        )


Output = Literal["pooled", "patches"]
Variant = Literal["ours", "official"]

_loading = threading.Lock()


class _Encoder(nn.Module, ABC):
    """Frozen image tower, loaded on first use and kept out of ``parameters()`` and ``state_dict()``."""

    def __init__(self, name: str, pretrained: str | Path | None, *, output: Output, variant: Variant) -> None:
        super().__init__()
        checks.expect_choice(type(self).__name__, "output", output, ("pooled", "patches"))
        checks.expect_choice(type(self).__name__, "variant", variant, ("ours", "official"))
        self.name, self.pretrained, self.output, self.variant = name, pretrained, output, variant
        self._tower: tuple[nn.Module, ...] = ()  # a tuple, so that it is no submodule

    def forward(self, image: Tensor) -> Tensor:
        """Return context tokens of images.

        Shape:
            - image: (B, C, H, W) with C 1 or 3, RGB in [0, 1]
            - output: (B, S, D) float32 without gradient; S = 1 for "pooled", else the number of patches

        Raises:
            ValueError: The tower is unknown, its weights cannot be loaded, or ``image`` has another shape.
            TypeError: ``image`` is not a floating-point tensor.
        """
        name = type(self).__name__
        checks.expect_shape(name, "image", image, "(B, C, H, W)")
        checks.expect_floating(name, image=image)
        if image.shape[1] not in (1, 3):
            raise ValueError(f"{name}: expected image (B, C, H, W) with C 1 or 3, got {tuple(image.shape)}")
        # Independent of the caller's modes: inference tensors and half precision would stay in the cached tower.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            tower = self._loaded(image.device)
            image = image.clone() if image.is_inference() else image.detach()
            image = self._prepared(image.float().expand(-1, 3, -1, -1), tower)
            tokens = self._pooled(tower, image) if self.output == "pooled" else self._patches(tower, image)
            return tokens.float()

    def extra_repr(self) -> str:
        """Return the arguments that ``repr`` shows."""
        weights = None if self.pretrained is None else str(self.pretrained)
        return f"{self.name!r}, {weights!r}, output={self.output!r}, variant={self.variant!r}"

    def _loaded(self, device: torch.device) -> nn.Module:
        with _loading:
            if not self._tower:
                if self.pretrained is None:
                    warnings.warn(
                        f"{type(self).__name__}: {self.name!r} has random weights, its tokens carry no meaning; "
                        "pass pretrained=<tag or file>",
                        stacklevel=4,
                    )
                # Fixed initial weights without touching the global generator.
                local = self.pretrained is None or Path(self.pretrained).is_file()
                with torch.random.fork_rng(devices=[]), contextlib.nullcontext() if local else _without_retries():
                    torch.manual_seed(0)
                    self._tower = (self._build().eval().requires_grad_(False),)
            (tower,) = self._tower
            if next(tower.parameters()).device != device:
                tower.to(device)
            return tower

    def _prepared(self, image: Tensor, tower: nn.Module) -> Tensor:
        """Return images at the size and in the value range of the tower, by ``variant``."""
        height, width, mean, std, mode = self._taken(tower)
        if self.variant == "official":
            return F.interpolate(image, (height, width), mode="bilinear")
        factor = max(height / image.shape[-2], width / image.shape[-1])
        sides = [max(side, round(factor * own)) for side, own in zip((height, width), image.shape[-2:], strict=True)]
        image = F.interpolate(image, sides, mode=mode, antialias=True).clamp(0, 1)
        top, left = (sides[0] - height) // 2, (sides[1] - width) // 2
        image = image[..., top : top + height, left : left + width]
        return (image - image.new_tensor(mean)[:, None, None]) / image.new_tensor(std)[:, None, None]

    @abstractmethod
    def _build(self) -> nn.Module:
        """Return the tower with its weights."""

    @abstractmethod
    def _taken(self, tower: nn.Module) -> tuple[int, int, Any, Any, str]:
        """Return height, width, mean, standard deviation and interpolation of the tower's training."""

    @abstractmethod
    def _pooled(self, tower: Any, image: Tensor) -> Tensor:
        """Return one token per image: (B, 1, D)."""

    @abstractmethod
    def _patches(self, tower: Any, image: Tensor) -> Tensor:
        """Return one token per patch: (B, S, D)."""


class OpenClipEncoder(_Encoder):
    """Image tower of an open_clip model as an encoder of context tokens.

    Args:
        name: model name of ``open_clip.list_models()``, such as "ViT-B-32".
        pretrained: tag of ``open_clip.list_pretrained()`` (downloaded by open_clip), a file, or None for random weights
            with a warning.
        output: "pooled" for the embedding (B, 1, D), "patches" for the tokens of the last layer (B, S, D).
        variant: preprocessing. "ours" resizes, crops the center and normalizes as the tower was trained; "official"
            follows the CauSiam code: resize to the tower's size without antialiasing or aspect ratio, no normalization.

    Source: Radford et al., Learning transferable visual models from natural language supervision, ICML 2021.
    """

    def __init__(
        self,
        name: str,
        pretrained: str | Path | None = None,
        *,
        output: Output = "pooled",
        variant: Variant = "ours",
    ) -> None:
        super().__init__(name, pretrained, output=output, variant=variant)

    def _build(self) -> nn.Module:
        import open_clip

        try:
            model: Any = open_clip.create_model(
                self.name, pretrained=None if self.pretrained is None else str(self.pretrained)
            )
        except Exception as error:  # unknown names, tags without network, files of another model
            raise ValueError(
                f"OpenClipEncoder: cannot load {self.name!r}, {self.pretrained!r}: {_reason(error)}"
            ) from error
        return model.visual  # the text tower is not needed

    def _taken(self, tower: nn.Module) -> tuple[int, int, Any, Any, str]:
        config: Any = tower.preprocess_cfg
        size = config["size"]
        height, width = (size, size) if isinstance(size, int) else size
        return height, width, config["mean"], config["std"], config["interpolation"]

    def _pooled(self, tower: Any, image: Tensor) -> Tensor:
        found = tower(image)
        return (found[0] if isinstance(found, tuple) else found)[:, None]

    def _patches(self, tower: Any, image: Tensor) -> Tensor:
        found = tower.forward_intermediates(image, indices=1, output_fmt="NCHW", intermediates_only=True)
        return found["image_intermediates"][-1].flatten(2).transpose(1, 2)


class TimmEncoder(_Encoder):
    """timm backbone as an encoder of context tokens.

    Args:
        name: model name of ``timm.list_models()``; a tag may follow a dot, as in "vit_small_patch14_dinov2.lvd142m".
        pretrained: True for the weights of the name's tag (downloaded by timm), a file, or None for random weights with
            a warning.
        output: "pooled" for the classifier's input (B, 1, D), "patches" for the last feature map (B, S, D).
        variant: preprocessing, "ours" or "official", see :class:`OpenClipEncoder`.

    Source: Wightman, PyTorch image models, 2019.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool | str | Path | None = None,
        *,
        output: Output = "pooled",
        variant: Variant = "ours",
    ) -> None:
        weights = "default tag" if pretrained is True else pretrained or None
        super().__init__(name, weights, output=output, variant=variant)
        self._from_hub = pretrained is True

    def _build(self) -> nn.Module:
        import timm
        from timm.models import load_checkpoint

        try:
            model = timm.create_model(self.name, pretrained=self._from_hub)
            if self.pretrained is not None and not self._from_hub:
                load_checkpoint(model, str(self.pretrained), weights_only=True)
        except Exception as error:  # unknown names, weights without network, files of another model
            raise ValueError(
                f"TimmEncoder: cannot load {self.name!r}, {self.pretrained!r}: {_reason(error)}"
            ) from error
        return model

    def _taken(self, tower: nn.Module) -> tuple[int, int, Any, Any, str]:
        config: Any = tower.pretrained_cfg
        mode = config["interpolation"] if config["interpolation"] in ("bilinear", "bicubic") else "bicubic"
        return *config["input_size"][-2:], config["mean"], config["std"], mode

    def _pooled(self, tower: Any, image: Tensor) -> Tensor:
        return tower.forward_head(tower.forward_features(image), pre_logits=True).flatten(1)[:, None]

    def _patches(self, tower: Any, image: Tensor) -> Tensor:
        (found,) = tower.forward_intermediates(image, indices=1, norm=False, output_fmt="NCHW", intermediates_only=True)
        return found.flatten(2).transpose(1, 2)


def _reason(error: Exception) -> str:
    """Return an error on one line, without the list of all names that a package has."""
    return " ".join(str(error).split()).partition(" Available: [")[0]


@contextlib.contextmanager
def _without_retries() -> Iterator[None]:
    """Make Hugging Face's client fail at once, without retries, if its server cannot be reached."""
    try:
        from huggingface_hub import constants
    except ImportError:
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    root = logging.getLogger()
    disabled, root.disabled = root.disabled, True  # open_clip logs the error that it also raises
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, root.disabled = before, disabled


def _reachable(endpoint: str, *, seconds: float = 3.0) -> bool:
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy decides
    parts = urllib.parse.urlsplit(endpoint)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=seconds):
            return True
    except OSError:
        return False
