"""What a picture shows, as a few vectors: frozen image towers of open_clip and timm."""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _checks

Output = Literal["pooled", "patches"]
Preprocessing = Literal["standard", "release"]

_loading = threading.Lock()


class _Encoder(nn.Module, ABC):
    """Loads its tower on first use, keeps it out of ``parameters()`` and ``state_dict()``, and never trains it."""

    def __init__(
        self, name: str, pretrained: str | Path | None, *, output: Output, preprocessing: Preprocessing
    ) -> None:
        super().__init__()
        _checks.expect_choice(type(self).__name__, "output", output, ("pooled", "patches"))
        _checks.expect_choice(type(self).__name__, "preprocessing", preprocessing, ("standard", "release"))
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
        _checks.expect_shape(name, "image", image, "(B, C, H, W)")
        _checks.expect_floating(name, image=image)
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
        """In the size and range of the tower, or as CauSiam was released: squeezed, not antialiased, not normalised."""
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
        preprocessing: "standard", the tower's own: resized, centre crop, normalised; or "release", as CauSiam was
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
