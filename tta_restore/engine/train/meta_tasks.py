"""Tasks of meta-training: what a clip offers to adapt on, and what the adapted weights are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tta_restore.adapters.methods.inner_loop import InnerSample
from tta_restore.data.datasets.clips import Clip, stack_frames, window
from tta_restore.data.datasets.mining import mine_patches


@dataclass(frozen=True)
class MetaTask:
    """One clip, cut up.

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
        other_moments: of each place, as for :class:`tta_restore.adapters.MetaTransfer`.

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
        other_moments: int = 0,
    ) -> None:
        if len(clips) == 0:
            raise ValueError("TaskSource: expected at least one clip")
        self.clips = clips
        self.num_patches, self.patch_size = num_patches, patch_size
        self.query_frames, self.num_frames, self.other_moments = query_frames, num_frames, other_moments

    def __call__(self, count: int, generator: torch.Generator) -> list[MetaTask]:
        """The next batch."""
        return [self.task(clip, generator) for clip in draw_clips(self.clips, count, generator)]

    def task(self, clip: Clip, generator: torch.Generator) -> MetaTask:
        """One clip, cut up."""
        settings = {"generator": generator, "num_frames": self.num_frames, "other_moments": self.other_moments}
        mined = mine_patches(clip.blurry, self.num_patches, self.patch_size, **settings)
        items = tuple(InnerSample.of(mined))
        options = {"count": self.query_frames, "num_frames": self.num_frames}
        return MetaTask(clip.name, items, *query_windows(clip, self.patch_size, generator, **options))


def _draw(among: int, count: int, generator: torch.Generator) -> list[int]:
    return torch.randperm(among, generator=generator)[:count].tolist()
