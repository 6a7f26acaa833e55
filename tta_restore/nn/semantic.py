"""Cross-attention from features to a description of what the picture shows."""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tta_restore._core import checks


class SemanticCrossAttention(nn.Module):
    """Adds to features what they read in a context: ``x + scale * attention(x, context)``.

    With one context vector per image the softmax has one entry and is 1, whatever the features are, so that the layer
    is a shift per channel: it is computed as one, without attention, at a cost that does not grow with the image beyond
    the addition. The query and key weights then get no gradient. From two tokens on, the shift differs from place to
    place.

    Args:
        dim: C of the features.
        context_dim: D of the context.
        num_heads: heads of the attention.
        head_dim: width of a head; by default ``dim / num_heads``, at least 1.
        scale: of what is added.
        zero_init: start as the identity, by an output projection of zeros.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - x: (B, C, H, W) or (B, L, C)
        - context: (B, D), or (B, S, D) with S tokens
        - output: as x

    Source: CauSiam (arXiv 2501.09052), fusion at the first decoder stage; zero_init is ours.

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
        scale: float = 0.05,
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
        self.scale, self.zero_init = scale, zero_init
        inner = num_heads * head_dim
        self.to_q = nn.Linear(dim, inner, bias=False, device=device, dtype=dtype)
        self.to_k = nn.Linear(context_dim, inner, bias=False, device=device, dtype=dtype)
        self.to_v = nn.Linear(context_dim, inner, bias=False, device=device, dtype=dtype)
        self.to_out = nn.Linear(inner, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start again, as the identity if so built."""
        for layer in (self.to_q, self.to_k, self.to_v, self.to_out):
            layer.reset_parameters()
        if self.zero_init:
            nn.init.zeros_(self.to_out.weight)
            nn.init.zeros_(self.to_out.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Features (B, C, H, W) or (B, L, C), changed as ``context`` (B, D) or (B, S, D) says."""
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
            shift = self.scale * self.to_out(self.to_v(context.flatten(1)))
            return x + (shift[:, :, None, None] if x.ndim == 4 else shift[:, None]).to(x.dtype)
        tokens = rearrange(x, "b c h w -> b (h w) c") if x.ndim == 4 else x
        q, k, v = (
            rearrange(part, "b s (heads d) -> b heads s d", heads=self.num_heads)
            for part in (self.to_q(tokens), self.to_k(context), self.to_v(context))
        )
        read = self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads s d -> b s (heads d)"))
        if x.ndim == 4:
            read = rearrange(read, "b (h w) c -> b c h w", h=x.shape[2])
        return x + (self.scale * read).to(x.dtype)

    def extra_repr(self) -> str:
        """Show what the layer was built with."""
        return (
            f"{self.dim}, {self.context_dim}, num_heads={self.num_heads}, head_dim={self.head_dim}, "
            f"scale={self.scale}, zero_init={self.zero_init}"
        )


Output = Literal["pooled", "patches"]
Preprocessing = Literal["standard", "release"]

_loading = threading.Lock()


class _Encoder(nn.Module, ABC):
    """Loads its tower on first use, keeps it out of ``parameters()`` and ``state_dict()``, and never trains it."""

    def __init__(
        self, name: str, pretrained: str | Path | None, *, output: Output, preprocessing: Preprocessing
    ) -> None:
        super().__init__()
        checks.expect_choice(type(self).__name__, "output", output, ("pooled", "patches"))
        checks.expect_choice(type(self).__name__, "preprocessing", preprocessing, ("standard", "release"))
        self.name, self.pretrained, self.output, self.preprocessing = name, pretrained, output, preprocessing
        self._tower: tuple[nn.Module, ...] = ()  # a tuple, so that it is no submodule

    def forward(self, image: Tensor) -> Tensor:
        """Context tokens of pictures.

        Shape:
            - image: (B, C, H, W) with C 1 or 3, RGB in [0, 1]
            - output: (B, S, D) float32 without gradient; S = 1 pooled, else one per patch of the tower

        Raises:
            ValueError: the tower is unknown, its weights cannot be had, or ``image`` has another shape.
            TypeError: ``image`` is no floating-point tensor.
        """
        name = type(self).__name__
        checks.expect_shape(name, "image", image, "(B, C, H, W)")
        checks.expect_floating(name, image=image)
        if image.shape[1] not in (1, 3):
            raise ValueError(f"{name}: expected image (B, C, H, W) with C 1 or 3, got {tuple(image.shape)}")
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            tower = self._loaded(image.device)
            picture = image.clone() if image.is_inference() else image.detach()
            picture = self._prepared(picture.float().expand(-1, 3, -1, -1), tower)
            tokens = self._pooled(tower, picture) if self.output == "pooled" else self._patches(tower, picture)
            return tokens.float()

    def extra_repr(self) -> str:
        """Show which tower, which weights and which preprocessing."""
        weights = None if self.pretrained is None else str(self.pretrained)
        return f"{self.name!r}, {weights!r}, output={self.output!r}, preprocessing={self.preprocessing!r}"

    def _loaded(self, device: torch.device) -> nn.Module:
        with _loading:
            if not self._tower:
                if self.pretrained is None:
                    warnings.warn(
                        f"{type(self).__name__}: {self.name!r} has random weights, and what it reads means nothing; "
                        "pass pretrained=<tag or file>",
                        stacklevel=4,
                    )
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    self._tower = (self._build().eval().requires_grad_(False),)
            (tower,) = self._tower
            if next(tower.parameters()).device != device:
                tower.to(device)
            return tower

    def _prepared(self, picture: Tensor, tower: nn.Module) -> Tensor:
        """In the size and range of the tower, or as CauSiam was released: squeezed, not antialiased, not normalized."""
        height, width, mean, std, mode = self._taken(tower)
        if self.preprocessing == "release":
            return F.interpolate(picture, (height, width), mode="bilinear")
        factor = max(height / picture.shape[-2], width / picture.shape[-1])
        sides = [max(side, round(factor * own)) for side, own in zip((height, width), picture.shape[-2:], strict=True)]
        picture = F.interpolate(picture, sides, mode=mode, antialias=True).clamp(0, 1)
        top, left = (sides[0] - height) // 2, (sides[1] - width) // 2
        picture = picture[..., top : top + height, left : left + width]
        return (picture - picture.new_tensor(mean)[:, None, None]) / picture.new_tensor(std)[:, None, None]

    @abstractmethod
    def _build(self) -> nn.Module:
        """The tower, with its weights."""

    @abstractmethod
    def _taken(self, tower: nn.Module) -> tuple[int, int, Any, Any, str]:
        """Height, width, mean, standard deviation and interpolation that the tower was trained with."""

    @abstractmethod
    def _pooled(self, tower: Any, picture: Tensor) -> Tensor:
        """One token of the whole picture: (B, 1, D)."""

    @abstractmethod
    def _patches(self, tower: Any, picture: Tensor) -> Tensor:
        """One token per patch: (B, S, D)."""


class OpenClipEncoder(_Encoder):
    """The image tower of an open_clip model, as a source of context.

    Args:
        name: model of ``open_clip.list_models()``, such as "ViT-B-32".
        pretrained: tag of ``open_clip.list_pretrained()`` (fetched by open_clip), a file, or None for random weights
            with a warning.
        output: "pooled", the embedding (B, 1, D), or "patches", the last layer's tokens (B, S, D).
        preprocessing: "standard", the tower's own: resized, center crop, normalized; or "release", as CauSiam was
            released: squeezed to the tower's size without antialiasing, values left in [0, 1].

    Source: Radford et al., Learning transferable visual models from natural language supervision, ICML 2021.
    """

    def __init__(
        self,
        name: str,
        pretrained: str | Path | None = None,
        *,
        output: Output = "pooled",
        preprocessing: Preprocessing = "standard",
    ) -> None:
        super().__init__(name, pretrained, output=output, preprocessing=preprocessing)

    def _build(self) -> nn.Module:
        import open_clip

        try:
            model: Any = open_clip.create_model(
                self.name, pretrained=None if self.pretrained is None else str(self.pretrained)
            )
        except Exception as error:  # unknown names, tags without network, files of another model
            raise ValueError(f"OpenClipEncoder: cannot load {self.name!r}, {self.pretrained!r}: {error}") from error
        return model.visual  # the text tower is let go

    def _taken(self, tower: nn.Module) -> tuple[int, int, Any, Any, str]:
        config: Any = tower.preprocess_cfg
        size = config["size"]
        height, width = (size, size) if isinstance(size, int) else size
        return height, width, config["mean"], config["std"], config["interpolation"]

    def _pooled(self, tower: Any, picture: Tensor) -> Tensor:
        found = tower(picture)
        return (found[0] if isinstance(found, tuple) else found)[:, None]

    def _patches(self, tower: Any, picture: Tensor) -> Tensor:
        found = tower.forward_intermediates(picture, indices=1, output_fmt="NCHW", intermediates_only=True)
        return found["image_intermediates"][-1].flatten(2).transpose(1, 2)


class TimmEncoder(_Encoder):
    """A timm backbone, as a source of context.

    Args:
        name: model of ``timm.list_models()``; a tag may follow a dot, as in "vit_small_patch14_dinov2.lvd142m".
        pretrained: True for the weights of the name's tag (fetched by timm), a file, or None for random weights with a
            warning.
        output: "pooled", what goes into the classifier (B, 1, D), or "patches", the last feature map (B, S, D).
        preprocessing: see :class:`OpenClipEncoder`.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool | str | Path | None = None,
        *,
        output: Output = "pooled",
        preprocessing: Preprocessing = "standard",
    ) -> None:
        weights = "default tag" if pretrained is True else pretrained or None
        super().__init__(name, weights, output=output, preprocessing=preprocessing)
        self._from_hub = pretrained is True

    def _build(self) -> nn.Module:
        import timm
        from timm.models import load_checkpoint

        try:
            model = timm.create_model(self.name, pretrained=self._from_hub)
            if self.pretrained is not None and not self._from_hub:
                load_checkpoint(model, str(self.pretrained), weights_only=True)
        except Exception as error:  # unknown names, weights without network, files of another model
            raise ValueError(f"TimmEncoder: cannot load {self.name!r}, {self.pretrained!r}: {error}") from error
        return model

    def _taken(self, tower: nn.Module) -> tuple[int, int, Any, Any, str]:
        config: Any = tower.pretrained_cfg
        mode = config["interpolation"] if config["interpolation"] in ("bilinear", "bicubic") else "bicubic"
        return *config["input_size"][-2:], config["mean"], config["std"], mode

    def _pooled(self, tower: Any, picture: Tensor) -> Tensor:
        return tower.forward_head(tower.forward_features(picture), pre_logits=True).flatten(1)[:, None]

    def _patches(self, tower: Any, picture: Tensor) -> Tensor:
        (found,) = tower.forward_intermediates(
            picture, indices=1, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        return found.flatten(2).transpose(1, 2)
