"""Windows of clips: cut from pairs, restored by single-frame or multi-frame restorers, and grouped into tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tta_restore import losses
from tta_restore.adapters.methods.clip_model import restored_images
from tta_restore.adapters.methods.inner_loop import InnerSample
from tta_restore.data.datasets.clips import Clip, stack_frames, window
from tta_restore.data.datasets.mining import mine_patches
from tta_restore.models import Restoration, Restorer

__all__ = [
    "Distance",
    "MetaTask",
    "Outputs",
    "TaskSource",
    "draw_clips",
    "query_windows",
    "restore_windows",
    "window_loss",
]

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
    """Return the images that a restorer makes, in groups of windows.

    See :func:`~tta_restore.adapters.methods.clip_model.restored_images`.

    Shape: windows (B, T, C, h, w); middle (B, C, h, w) stands in the place of their middle frames -> for frames one
    group of all windows, for clips a group each.
    """
    if middle is None:
        middle = windows[:, windows.shape[1] // 2]
    if restorer.spec is None:
        restorer.known_spec(middle[:1])
    if restorer.spec is not None and restorer.spec.frames == 1:
        return [restored_images(restorer, restore, middle, windows[0], outputs=outputs)]
    pairs = zip(middle.split(1), windows, strict=True)
    return [restored_images(restorer, restore, picture, window, outputs=outputs) for picture, window in pairs]


def window_loss(groups: Sequence[Sequence[Tensor]], target: Tensor, distance: Distance) -> Tensor:
    """Mean over windows of the distance of all their pictures from the targets. Shape: target (B, C, h, w)."""
    parts = [
        losses.multi_output_loss(group, own, distance=distance)
        for group, own in zip(groups, target.split(len(target) // len(groups)), strict=True)
    ]
    return sum(parts[1:], parts[0]) / len(parts)


@dataclass(frozen=True)
class MetaTask:
    """Patches of one clip for meta-training.

    Shape: query_blurry, query_sharp (N, T, 3, S, S), windows of true pairs, around frame T // 2.

    Args:
        name: of the clip.
        items: what was mined in its blurred frames.
        query_blurry: what the adapted weights are judged by.
        query_sharp: its originals.
    """

    name: str
    items: tuple[InnerSample, ...]
    query_blurry: Tensor
    query_sharp: Tensor

    @property
    def num_frames(self) -> int:
        """T."""
        return self.query_blurry.shape[1]


def query_windows(
    clip: Clip, size: int, generator: torch.Generator, *, count: int | None = None, num_frames: int = 5
) -> tuple[Tensor, Tensor]:
    """Pairs of a blurred and a sharp window at random places, one per frame or of ``count`` frames drawn at random.

    Shape:
        - output: blurred and sharp, (N, T, 3, size, size)

    Raises:
        ValueError: the clip has no originals, or its frames are smaller than ``size``.
    """
    sharp, length = clip.originals(), len(clip)
    times = range(length) if count is None or count >= length else sorted(_draw(length, count, generator))
    pairs: list[list[Tensor]] = [[], []]
    for time in times:
        around = window(time, length, num_frames)
        both = [stack_frames(frames, around) for frames in (clip.blurry, sharp)]
        height, width = both[0].shape[-2:]
        if both[1].shape != both[0].shape or min(height, width) < size:
            raise ValueError(
                f"query_windows: expected blurred and sharp frames of one size, at least {size} x {size}, in "
                f"{clip.name}, got {tuple(both[0].shape[1:])} and {tuple(both[1].shape[1:])}"
            )
        top, left = (int(torch.randint(0, n - size + 1, (), generator=generator)) for n in (height, width))
        for kept, frames in zip(pairs, both, strict=True):
            kept.append(frames[..., top : top + size, left : left + size])
    return torch.stack(pairs[0]), torch.stack(pairs[1])


def draw_clips(clips: Sequence[Clip], count: int, generator: torch.Generator) -> list[Clip]:
    """Clips at random; none twice as long as there are enough."""
    if count <= len(clips):
        return [clips[i] for i in _draw(len(clips), count, generator)]
    return [clips[int(torch.randint(0, len(clips), (), generator=generator))] for _ in range(count)]


class TaskSource:
    """Batches of tasks: random clips, what to adapt on mined in each, and pairs to judge the result by.

    Args:
        clips: with originals.
        num_patches: M, patches to adapt on per clip, at random places.
        patch_size: their side, and that of the query pairs, in pixels.
        query_frames: N, pairs per clip; None for one of every frame.
        num_frames: T.
        num_extra_times: further time steps of each patch, as for :class:`tta_restore.adapters.MetaTransfer`.

    Raises:
        ValueError: there are no clips.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        *,
        num_patches: int = 20,
        patch_size: int = 256,
        query_frames: int | None = None,
        num_frames: int = 5,
        num_extra_times: int = 0,
    ) -> None:
        if len(clips) == 0:
            raise ValueError("TaskSource: expected at least one clip")
        self.clips = clips
        self.num_patches, self.patch_size = num_patches, patch_size
        self.query_frames, self.num_frames, self.num_extra_times = query_frames, num_frames, num_extra_times

    def __call__(self, count: int, generator: torch.Generator) -> list[MetaTask]:
        """Return the next batch."""
        return [self.task(clip, generator) for clip in draw_clips(self.clips, count, generator)]

    def task(self, clip: Clip, generator: torch.Generator) -> MetaTask:
        """Cut one clip into patches for meta-training."""
        settings = {"generator": generator, "num_frames": self.num_frames, "other_moments": self.num_extra_times}
        mined = mine_patches(clip.blurry, self.num_patches, self.patch_size, **settings)
        items = tuple(InnerSample.of(mined))
        options = {"count": self.query_frames, "num_frames": self.num_frames}
        return MetaTask(clip.name, items, *query_windows(clip, self.patch_size, generator, **options))


def _draw(among: int, count: int, generator: torch.Generator) -> list[int]:
    return torch.randperm(among, generator=generator)[:count].tolist()
