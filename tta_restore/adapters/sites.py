"""Find a place in a model where features can be changed: what its modules put out, found by running it once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore.models import Restorer
from tta_restore.models.probe import example_frame
from tta_restore.models.unchanged import left_unchanged

_WIDE = 128


@dataclass(frozen=True)
class Site:
    """A module of a model, and how to read what it puts out.

    Attributes:
        path: dotted name of the module.
        channels: width of the features.
        axis: which axis of the output holds the channels: 1 for (B, C, H, W), -1 for (B, L, C) and (B, H, W, C).
        pixels: places per image that the features had on the frame tried.
        dtype: of the features.
        device: of the features.
        restored: the model's restoration of the frame tried, (B, C, H, W).
    """

    path: str
    channels: int
    axis: int
    pixels: int
    dtype: torch.dtype
    device: torch.device
    restored: Tensor


@contextmanager
def hooked(root: nn.Module, path: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """For the time of the block, what the module at ``path`` puts out is changed; of several tensors the first."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return change(output)
        if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
            return type(output)([change(output[0]), *output[1:]])
        raise TypeError(f"expected {path} to put out a tensor or a list that starts with one")

    handle = root.get_submodule(path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def find_site(restorer: Restorer, path: str, *, asker: str = "Semantic") -> Site:
    """The site at ``path``, or for "auto" the deepest: fewest pixels, then widest, then last.

    "auto" takes what the model names in an attribute ``semantic_site``, if it has one; else it looks among modules that
    are called once and are at least 128 channels wide (or as wide as the model gets). Errors begin with ``asker``.

    Raises:
        ValueError: there is no such module, or it puts out nothing that features could be read from.
        TypeError: the model is a function, or was compiled.
    """
    root = restorer.module
    if not isinstance(root, nn.Module):
        raise TypeError(f"{asker}: expected a module to inject into, got a function")
    if hasattr(root, "_orig_mod"):
        raise TypeError(f"{asker}: hooks do not reach into a compiled module; wrap the module that was compiled")
    path = getattr(root, "semantic_site", path) if path == "auto" else path
    names = [name for name, _ in root.named_modules() if name]
    if path != "auto" and path not in names:
        near = ", ".join(get_close_matches(path, names, n=3, cutoff=0.4) or names[:6])
        hint = f"did you mean {near}?" if near else "it has no modules inside"
        raise ValueError(f"{asker}: {type(root).__name__} has no module {path!r}; {hint}")
    found = _observe(restorer, root, names if path == "auto" else [path])
    if not found:
        where = "any of its modules" if path == "auto" else repr(path)
        raise ValueError(
            f"{asker}: {where} of {type(root).__name__} puts out no features (B, C, H, W) or (B, L, C) exactly once"
        )
    enough = min(_WIDE, max(site.channels for site in found))
    return min(
        (site for site in reversed(found) if site.channels >= enough), key=lambda site: (site.pixels, -site.channels)
    )


def _observe(restorer: Restorer, root: nn.Module, paths: list[str]) -> list[Site]:
    """Sites among the modules at ``paths``, in the order in which they finish."""
    outputs: dict[str, list[Any]] = {}
    handles = []
    frame = example_frame(restorer)
    frame = frame if frame.ndim == 5 else torch.cat([frame, frame[..., : frame.shape[-1] // 2]], -1)  # not square
    with torch.inference_mode(False), torch.no_grad(), left_unchanged(root, training=False):
        spec = restorer.known_spec(frame)

        def note(path: str, output: Any) -> None:
            outputs.setdefault(path, []).append(output)

        try:
            for path in paths:
                hook = partial(lambda path, _module, _inputs, output: note(path, output), path)
                handles.append(root.get_submodule(path).register_forward_hook(hook))
            restored = restorer(frame)
        finally:
            for handle in handles:
                handle.remove()
    height, width = spec.size.fit(frame.shape[-2], frame.shape[-1])
    sites = []
    for path, seen in outputs.items():
        features: Any = seen[0][0] if isinstance(seen[0], (tuple, list)) and seen[0] else seen[0]
        strict = len(paths) > 1  # nobody chose these
        axis = _channel_axis(features, height, width, strict) if len(seen) == 1 or not strict else None
        if axis is not None:
            channels = features.shape[axis]
            sites.append(
                Site(
                    path, channels, axis, features[0].numel() // channels, features.dtype, features.device,
                    restored if restored.ndim == 4 else restored[:, 0],
                )
            )  # fmt: skip
    return sites


def _channel_axis(features: Any, height: int, width: int, strict: bool) -> int | None:
    """Where the channels are, from the shape alone; None for what are no features.

    ``strict`` wants the frame's proportions, which weights, windows and tables of attention do not have.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point() or features.ndim not in (3, 4, 5):
        return None
    if features.ndim == 3:
        batch, length, _ = features.shape
        return -1 if length > 1 and not (strict and (batch != 1 or height * width % length)) else None
    a, b, c = features.shape[-3:]
    if min(b, c) > 1 and b * width == c * height:
        return features.ndim - 3
    if features.ndim == 4 and a * width == b * height and a > 1:
        return -1
    return features.ndim - 3 if min(b, c) > 1 and not strict else None
