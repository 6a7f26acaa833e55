"""Restore an image in the middle of a clip by a model of frames or of clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from tta_restore.data.datasets.clips import window
from tta_restore.models import Restoration, Restorer
from tta_restore.models.restorer import outputs as structure


def restored_images(
    restorer: Restorer,
    restore: Callable[[Tensor], Restoration],
    image: Tensor,
    clip: Tensor,
    *,
    outputs: Literal["main", "all"] = "main",
) -> list[Tensor]:
    """Return what a restorer of frames or of clips makes of an image that replaces the middle frame of a clip.

    Args:
        restorer: the model, with its specification.
        restore: runs it, with any weights.
        image: image in the middle frame's place.
        clip: the frames around it.
        outputs: "main", the restored image, or "all" the model's images, of stages and of smaller scales; the target of
            one that is smaller is resized.

    Shape: image (1, C, h, w), clip (T, C, h, w) -> a list of (1, C, ., .), about [0, 1].

    Raises:
        ValueError: the model enlarges.
    """
    middle = len(clip) // 2
    spec = restorer.spec
    if spec is not None and spec.scale != 1:
        raise ValueError(f"MetaTransfer: expected a model of scale 1, got scale {spec.scale}")
    if spec is not None and spec.frames != 1:
        times = range(len(clip)) if spec.frames is None else window(middle, len(clip), spec.frames)
        frames = [image[0] if t == middle else clip[t] for t in times]
        place = list(times).index(middle)
        restoration = restore(torch.stack(frames)[None])
    else:
        place = 0
        restoration = restore(image)
    restored = _frame(restoration.image, place)
    if outputs == "main":
        return [restored]
    low, high = (0.0, 1.0) if spec is None else spec.value_range
    found = [restored]
    height, width = restored.shape[-2:]
    padded = (height, width) if spec is None else spec.padded(height, width)
    for path, leaf in structure.leaves(restoration.raw):
        if path == restoration.path or not leaf.is_floating_point() or leaf.ndim not in (4, restoration.image.ndim):
            continue
        other = _frame(leaf, place)
        if other.shape[-2:] != restored.shape[-2:]:  # a smaller scale still has what the image was extended by
            rows, columns = (
                round(s * o / p) for s, o, p in zip((height, width), other.shape[-2:], padded, strict=True)
            )
            other = other[..., :rows, :columns]
        if other.shape[:2] == restored.shape[:2] and min(other.shape[-2:]) > 1:
            found.append(((other - low) / (high - low)).to(restored.dtype))
    return found


def _frame(image: Tensor, place: int) -> Tensor:
    return image[:, place] if image.ndim == 5 else image
