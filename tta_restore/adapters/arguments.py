"""Further inputs of a model: by name, and cut, turned or refused where the image that they belong to is another one."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tta_restore.adapters.frame import FrameContext
from tta_restore.models.restorer.tiles import is_map

__all__ = ["fit_arguments", "name_inputs", "view_arguments"]


def name_inputs(name: str, module: Any, inputs: Sequence[Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords of a call with its positional inputs, those after the frame, under their names.

    Raises:
        TypeError: the model has no names for them, or one is given twice.
    """
    if not inputs:
        return keywords
    called = module.forward if isinstance(module, nn.Module) else module
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
    names = [p.name for p in inspect.signature(called).parameters.values() if p.kind in kinds][1:]
    if len(inputs) > len(names):
        raise TypeError(
            f"{name}: expected at most {len(names)} inputs after the frame, as the model names them, got {len(inputs)}"
        )
    given = dict(zip(names, inputs, strict=False))
    twice = [key for key in given if key in keywords]
    if twice:
        raise TypeError(f"{name}: got {twice[0]} by position and by keyword")
    return given | keywords


def fit_arguments(name: str, arguments: dict[str, Any], frame: FrameContext, image: Tensor) -> dict[str, Any]:
    """Return the keywords of a frame for another image: maps are cut to the region, or refused.

    Raises:
        ValueError: there is a value for each pixel or for each image of the frame, and the image is neither part of it.
    """
    whole, sides = frame.image.shape[-2:], image.shape[-2:]
    if image is frame.image or (sides == whole and len(image) == len(frame.image)):
        return arguments
    fitted = {}
    for key, value in arguments.items():
        if isinstance(value, Tensor) and value.ndim and len(value) == len(frame.image) > 1 and len(image) != len(value):
            raise ValueError(
                f"{name}: {key} has a value for each image of the batch ({len(value)}), and this method runs the model "
                f"on {len(image)} images; pass one value, or one image at a time"
            )
        if sides == whole or not is_map(value, whole):
            fitted[key] = value
        elif sides == frame.region.shape[-2:]:
            top, left = ((side - part) // 2 for side, part in zip(whole, sides, strict=True))
            fitted[key] = value[..., top : top + sides[0], left : left + sides[1]]
        else:
            raise ValueError(
                f"{name}: {key} has a value for each pixel of the frame ({whole[0]}x{whole[1]}), and this method runs "
                f"the model on images of {sides[0]}x{sides[1]}; pass one value for the frame"
            )
    return fitted


def view_arguments(arguments: dict[str, Any], there: Any, image: Tensor) -> dict[str, Any]:
    """Return the keywords for a view of an image: maps are transformed as the image is."""
    sides = image.shape[-2:]
    if not any(is_map(value, sides) for value in arguments.values()):
        return arguments
    return {key: there(value) if is_map(value, sides) else value for key, value in arguments.items()}
