"""Degradations, metrics and data set layouts by name: registered, from entry points of plug-ins, or ``module:name``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tta_restore.data.datasets.clip_folders import CLIP_LAYOUTS
from tta_restore.data.datasets.layouts import LAYOUTS, register_layout
from tta_restore.degradations import (
    Blur,
    Clip,
    Compose,
    Degradation,
    Jpeg,
    MotionBlur,
    Noise,
    Quantize,
    create_degradation,
    list_degradations,
)
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.run.user_code import guarded, import_named, is_named, plugins, warn_of_namesake

__all__ = ["Metric", "find_degradations", "find_metrics", "is_further_metric", "parse_degradation", "use_layout"]

#: From a restored and a sharp image, (1, 3, H, W) in [0, 1], to one value.
Metric = Callable[[Tensor, Tensor], Tensor]

#: Degradations that take a number.
_BUILT_IN = ("noise", "jpeg", "blur", "motion", "lens")
#: What commands measure by themselves; also aligned, and of the input.
_QUANTITY = re.compile(r"((aligned|input)_)?(psnr|ssim|mae|lpips)")


def find_degradations(names: Any, flag: str) -> list[Degradation]:
    """Return degradations by name, see :func:`parse_degradation`; ``names`` is a text or a list of texts.

    Raises:
        UsageError: there is none, or one cannot be read.
    """
    texts = [names] if isinstance(names, str) else names
    if not (isinstance(texts, (list, tuple)) and texts and all(isinstance(text, str) for text in texts)):
        raise UsageError(f"{flag}: expected names of degradations, got {names!r}")
    return [parse_degradation(text, flag) for text in texts]


def parse_degradation(text: str, flag: str = "--degradations") -> Degradation:
    """Return the degradation that a text names; its values are clipped and rounded to 8 bits.

    Args:
        text: parts joined by "+", applied in order: ``noise:STD`` (in 1/255), ``jpeg:QUALITY``, ``lens:SHAPE`` or
            ``lens:SHAPE,RADIUS`` (pixels), ``blur:RADIUS`` (Gaussian), ``motion:LENGTH`` (pixels), a registered name,
            or ``module.path:name`` of a class or object.
        flag: for messages.

    Raises:
        UsageError: a part names nothing, or its number is out of range.
    """
    parts: list[Degradation] = []
    for part in text.split("+"):
        try:
            parts.append(_part(part))
        except (ValueError, TypeError) as error:
            raise UsageError(f"{flag} {text}: {error}") from error
    if any(isinstance(part, Jpeg) for part in parts):
        return Compose(tuple(parts))
    return Compose((*parts, Clip(), Quantize()))


def _part(text: str) -> Degradation:
    name, _, value = text.partition(":")
    if name in _BUILT_IN:
        warn_of_namesake(name, "tta_restore.degradations")
    if name == "noise":
        return Noise(read_std=_number(value, 25.0) / 255)
    if name == "jpeg":
        return Jpeg(quality=_number(value, 20.0))
    if name == "blur":
        return Blur(radius=_number(value, 2.0), lens="gaussian")
    if name == "motion":
        return MotionBlur(length=_number(value, 9.0))
    if name == "lens":
        shape, _, radius = (value or "disk").partition(",")
        return Blur(radius=_number(radius, 2.5), lens=shape)
    if not value and (text in list_degradations() or text in plugins("tta_restore.degradations")):
        return create_degradation(text)
    if not is_named(text):
        names = ", ".join(dict.fromkeys((*_BUILT_IN, *list_degradations())))
        raise ValueError(f"no degradation {text!r}; there are: {names}, and your own by module.path:Class")
    found = import_named(text)
    with guarded(text):
        made = found() if callable(found) and not isinstance(found, Degradation) else found
    if not isinstance(made, Degradation):
        raise TypeError(f"expected a Degradation, got {type(made).__name__}")
    return made


def _number(text: str, default: float) -> float:
    try:
        return float(text) if text else default
    except ValueError:
        raise ValueError(f"expected a number, got {text!r}") from None


def find_metrics(names: Sequence[str] | None, flag: str = "--metrics") -> dict[str, Metric]:
    """Return further metrics by name: functions of a restored and a sharp image, (1, 3, H, W) in [0, 1], to a value.

    Args:
        names: entry points of the group ``tta_restore.metrics``, or ``module.path:function``; a class without
            arguments is made once.
        flag: for messages.

    Raises:
        UsageError: there is no such metric, or it cannot be called.
    """
    found: dict[str, Metric] = {}
    own = plugins("tta_restore.metrics")
    for name in names or ():
        try:
            if is_named(name):
                metric = import_named(name)
            elif _QUANTITY.fullmatch(name):
                raise UsageError(
                    f"{flag}: {name} is measured anyway; name the plug-in of that name as module.path:name"
                )
            elif name in own:
                metric = own[name]()
            else:
                there = ", ".join(own) or "no plug-in"
                raise UsageError(f"{flag}: no metric {name!r}; there are: {there}, and your own by module.path:name")
            if isinstance(metric, type):
                with guarded(name):
                    metric = metric()
        except ValueError as error:
            raise error if isinstance(error, UsageError) else UsageError(f"{flag}: {error}") from error
        if not callable(metric):
            raise UsageError(f"{flag}: {name} is no function")
        found[name] = partial(_measured, name, metric)
    return found


def is_further_metric(quantity: str) -> bool:
    """Return whether a quantity of a table is a metric of a plug-in or of a module, and none that is built in."""
    return is_named(quantity) or (quantity in plugins("tta_restore.metrics") and not _QUANTITY.fullmatch(quantity))


def _measured(name: str, metric: Metric, restored: Tensor, sharp: Tensor) -> Tensor:
    """Return the value of user code as a tensor of one element."""
    with torch.no_grad(), guarded(name):
        value = torch.as_tensor(metric(restored, sharp)).float()
    if value.numel() != 1:
        raise ValueError(f"{name}: expected one value for an image, got {tuple(value.shape)}")
    return value.reshape(())


_used: set[str] = set()  # layouts that were registered here


def use_layout(name: Any) -> Any:
    """Register the layout that ``module:name`` or an entry point of ``tta_restore.layouts`` names; return the name.

    What is named is a function of a root folder and a split that returns pairs of paths, or clips, or a mapping with
    the arguments of :func:`tta_restore.data.datasets.layouts.register_layout`. Any other name is returned as it is.

    Raises:
        ValueError: it cannot be imported, or is neither.
    """
    if not isinstance(name, str) or name in _used:
        return name
    if name in LAYOUTS or name in CLIP_LAYOUTS:
        warn_of_namesake(name, "tta_restore.layouts")
        return name
    own = plugins("tta_restore.layouts")
    if is_named(name):
        found = import_named(name)
    elif name in own:
        found = own[name]()
    else:
        return name
    if isinstance(found, Mapping):
        with guarded(name):
            register_layout(name, **found)
    elif callable(found):
        register_layout(name, pairs=found, clips=found)
    else:
        raise ValueError(f"{name}: expected a function of root and split, or a mapping, got {type(found).__name__}")
    _used.add(name)
    return name
