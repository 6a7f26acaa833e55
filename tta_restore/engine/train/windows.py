"""What restorers of frames and of clips make of the middle frames of windows: one call for both kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from tta_restore import losses
from tta_restore.adapters.methods.clip_model import pictures
from tta_restore.models import Restoration, Restorer

Outputs = Literal["main", "all"]
Distance = Callable[[Tensor, Tensor], Tensor]


def restore_windows(
    restorer: Restorer,
    restore: Callable[[Tensor], Restoration],
    windows: Tensor,
    middle: Tensor | None = None,
    *,
    outputs: Outputs = "main",
) -> list[Sequence[Tensor]]:
    """The pictures that a restorer makes, see :func:`~.clip_model.pictures`, in groups of windows.

    Shape: windows (B, T, C, h, w); middle (B, C, h, w) stands in the place of their middle frames -> for frames one
    group of all windows, for clips a group each.
    """
    if middle is None:
        middle = windows[:, windows.shape[1] // 2]
    if restorer.spec is None:
        restorer.known_spec(middle[:1])
    if restorer.spec is not None and restorer.spec.frames == 1:
        return [pictures(restorer, restore, middle, windows[0], outputs=outputs)]
    pairs = zip(middle.split(1), windows, strict=True)
    return [pictures(restorer, restore, picture, window, outputs=outputs) for picture, window in pairs]


def window_loss(groups: Sequence[Sequence[Tensor]], target: Tensor, distance: Distance) -> Tensor:
    """Mean over windows of the distance of all their pictures from the targets. Shape: target (B, C, h, w)."""
    parts = [
        losses.multi_output_loss(group, own, distance=distance)
        for group, own in zip(groups, target.split(len(target) // len(groups)), strict=True)
    ]
    return sum(parts[1:], parts[0]) / len(parts)
