"""Videos as clips of blurred frames and, where they exist, sharp originals; frames are read when they are indexed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tta_restore.data.io.image import read_image
from tta_restore.degradations import Degradation

__all__ = ["Clip", "DegradedClips", "Frames", "ImageSequence", "sliding_windows", "stack_frames", "window"]

#: Frames in time: a tensor (T, 3, H, W), or anything that has a length and gives frame t as (3, H, W), in [0, 1].
Frames = Tensor | Sequence[Tensor]


class ImageSequence(Sequence[Tensor]):
    """Frames in image files, each read when it is indexed.

    Args:
        paths: in time.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int | slice) -> Any:
        """Return one frame, (3, H, W) in [0, 1], or the frames of a slice, unread."""
        if isinstance(index, slice):
            return ImageSequence(self.paths[index])
        return read_image(self.paths[index]).as_rgb()


@dataclass(frozen=True)
class Clip:
    """A video.

    Args:
        name: of the video, unique in its data set.
        blurry: its frames.
        sharp: their originals, as many; None for videos without.

    Raises:
        ValueError: there are no frames, or not as many originals.
    """

    name: str
    blurry: Frames
    sharp: Frames | None = None

    def __post_init__(self) -> None:
        if len(self.blurry) == 0:
            raise ValueError(f"Clip: {self.name} has no frames")
        if self.sharp is not None and len(self.sharp) != len(self.blurry):
            raise ValueError(
                f"Clip: {self.name} has {len(self.blurry)} blurred frames and {len(self.sharp)} originals; "
                "expected one for each"
            )

    def __len__(self) -> int:
        return len(self.blurry)

    def originals(self) -> Frames:
        """Return the sharp frames.

        Raises:
            ValueError: there are none.
        """
        if self.sharp is None:
            raise ValueError(f"Clip: {self.name} has no sharp originals")
        return self.sharp


class _DegradedFrames(Sequence[Tensor]):
    """Frames that carry a degradation of one strength; each is degraded when it is indexed, always the same way."""

    def __init__(self, frames: Frames, degradation: Degradation, seed: int) -> None:
        self.frames, self.degradation, self.seed = frames, degradation, seed
        self.parameters = degradation.sample(torch.Generator().manual_seed(seed), 1)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        number = range(len(self))[index]
        generator = torch.Generator().manual_seed(self.seed + 1 + number)
        return self.degradation.apply(self.frames[number][None], self.parameters, generator)[0].clamp(0, 1)


class DegradedClips(Sequence[Clip]):
    """Clips whose blurred frames carry a further degradation, one of one strength for each clip.

    Args:
        clips: with blurred frames.
        degradations: a clip carries one of them, drawn at random.
        seed: of the choice and of the strengths.
    """

    def __init__(self, clips: Sequence[Clip], degradations: Sequence[Degradation], *, seed: int = 0) -> None:
        self.clips, self.degradations, self.seed = clips, tuple(degradations), seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:  # type: ignore[override]
        """Return a clip, always the same."""
        number = range(len(self))[index]
        clip, seed = self.clips[number], (self.seed * 1_000_003 + number) * 1_000_003 % 2**62
        generator = torch.Generator().manual_seed(seed)
        chosen = self.degradations[int(torch.randint(0, len(self.degradations), (), generator=generator))]
        return Clip(clip.name, _DegradedFrames(clip.blurry, chosen, seed), clip.sharp)


def stack_frames(frames: Frames, times: Iterable[int] | None = None) -> Tensor:
    """Return frames, by default all of them, as one tensor (T, 3, H, W).

    Raises:
        ValueError: they differ in size.
    """
    if isinstance(frames, Tensor):
        return frames if times is None else frames[torch.as_tensor(list(times))]
    chosen = [frames[t] for t in (range(len(frames)) if times is None else times)]
    if sizes := {tuple(frame.shape) for frame in chosen} - {tuple(chosen[0].shape)}:
        raise ValueError(f"stack_frames: expected frames of one size, got {tuple(chosen[0].shape)} and {min(sizes)}")
    return torch.stack(chosen)


def window(time: int, length: int, num_frames: int) -> list[int]:
    """Return the indices of the ``num_frames`` frames around ``time``; the first and the last frame are repeated."""
    half = num_frames // 2
    return [min(max(t, 0), length - 1) for t in range(time - half, time - half + num_frames)]


def sliding_windows(frames: Iterable[Tensor], num_frames: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield the frames of :func:`window` around one frame after the other; every frame is read once."""
    held: deque[Tensor] = deque(maxlen=num_frames)
    for frame in frames:
        held.extend(repeat(frame, 1 if held else num_frames // 2 + 1))
        if len(held) == num_frames:
            yield tuple(held)
    for _ in range(num_frames - 1 - num_frames // 2 if held else 0):
        held.append(held[-1])
        if len(held) == num_frames:
            yield tuple(held)
