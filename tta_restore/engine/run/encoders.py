"""Semantic encoders by name, for the ``semantic`` setting of methods on the command line and in configuration files."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from tta_restore.adapters import Semantic
from tta_restore.engine.run.user_code import guarded, import_named, is_named
from tta_restore.nn import OpenClipEncoder, TimmEncoder

__all__ = ["create_encoder", "create_semantic"]

#: Encoder that CauSiam was published with.
DEFAULT = "open_clip/ViT-B-32/openai"
_ENCODER_KEYS = ("pretrained", "output")


def create_semantic(settings: str | Mapping[str, Any], *, variant: str = "official") -> Semantic:
    """Return a semantic prior from a name or settings.

    Args:
        settings: name of an encoder, see :func:`create_encoder`, or a mapping with ``encoder`` (default: CLIP ViT-B/32
            with OpenAI's weights), ``pretrained``, ``output`` and the arguments of
            :class:`tta_restore.adapters.Semantic`.
        variant: preprocessing of open_clip and timm encoders, unless the mapping has one.

    Raises:
        ValueError: the encoder is unknown, or a setting is not one of those.
    """
    own: dict[str, Any] = {"encoder": settings} if isinstance(settings, str) else dict(settings)
    encoder = own.pop("encoder", DEFAULT)
    keywords = {key: own.pop(key) for key in _ENCODER_KEYS if key in own}
    variant = own.pop("variant", variant)
    allowed = list(inspect.signature(Semantic).parameters)[1:]
    if unknown := [key for key in own if key not in allowed]:
        there = ", ".join(["encoder", *_ENCODER_KEYS, "variant", *allowed])
        raise ValueError(f"semantic: there is no setting {unknown[0]!r}; there are: {there}")
    if not own.keys() & {"at", "argument"}:
        own["at"] = "auto"
    return Semantic(create_encoder(str(encoder), variant=variant, **keywords), **own)


def create_encoder(name: str, *, variant: str = "ours", **keywords: Any) -> Any:
    """Return an encoder from images to context tokens by name.

    Args:
        name: ``open_clip/MODEL``, ``open_clip/MODEL/TAG``, ``timm/MODEL``, or ``module.path:callable``: a module or
            function of images (B, 3, H, W) in [0, 1], or a class or function without arguments that returns one.
        variant: preprocessing, see :class:`tta_restore.nn.OpenClipEncoder`.
        keywords: ``pretrained`` (tag or file, for open_clip and timm) and ``output``.

    Raises:
        ValueError: the name has another form, or user code raises or takes no such keywords.
    """
    family, _, rest = name.partition("/")
    if is_named(name):
        found = import_named(name)
        if isinstance(found, type):
            with guarded(name):
                found = found(**keywords)
        elif keywords:
            raise ValueError(f"semantic.encoder: {name} is no class and takes no {', '.join(keywords)}")
        if not callable(found):
            raise ValueError(f"semantic.encoder: {name} is no module or function")
        return found
    kinds: dict[str, type[nn.Module]] = {"open_clip": OpenClipEncoder, "timm": TimmEncoder}
    if family not in kinds or not rest:
        raise ValueError(
            f"semantic.encoder: expected open_clip/MODEL/TAG, timm/MODEL or module.path:callable, got {name!r}"
        )
    if family == "open_clip":
        rest, _, tag = rest.partition("/")
        keywords = {"pretrained": tag or "openai"} | keywords
    else:
        keywords = {"pretrained": True} | keywords
    return kinds[family](rest, variant=variant, **keywords)
