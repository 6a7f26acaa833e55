"""Random patches of a stack of images."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tta_restore import ops
from tta_restore._core import checks
from tta_restore.data.datasets.clips import Frames, window

__all__ = ["MinedPatch", "Places", "ShiftTables", "mine_patches", "place_patches", "random_patches"]


def random_patches(images: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Return crops from random places of random images, rotated by multiples of 90 degrees and flipped at random.

    Shape:
        - images: (N, C, S, S), uint8, or floating point in [0, 1]
        - output: (count, C, size, size) in [0, 1]

    Raises:
        ValueError: the images are smaller than a patch, or there are none.
    """
    room = images.shape[-1] - size + 1
    if images.ndim != 4 or min(images.shape[-2:]) < size or len(images) == 0:
        raise ValueError(f"random_patches: expected images (N, C, S, S) with S >= {size}, got {tuple(images.shape)}")
    rows = images.shape[-2] - size + 1
    patches = []
    for index in torch.randint(0, len(images), (count,), generator=generator).tolist():
        top, left, turns, flip = (int(torch.randint(0, n, (), generator=generator)) for n in (rows, room, 4, 2))
        patch = images[index, :, top : top + size, left : left + size].rot90(turns, (1, 2))
        patches.append(patch.flip(2) if flip else patch)
    stack = torch.stack(patches)
    return stack.float() / 255 if stack.dtype == torch.uint8 else stack.float()


Places = Literal["random", "tile"]

_DENSE = 16  # crops that together cover a frame more often than that are faster by integral images
_LEVELS = 65535  # frames are read as whole numbers, which 8 and 16 bit images are: sums are then exact


@dataclass(frozen=True)
class MinedPatch:
    """A location in a video with its sharpest and its most blurred frame; low scores are sharp.

    Attributes:
        top: first row of the location, in pixels.
        left: first column of the location, in pixels.
        sharp_time: frame in which it is sharpest, the first of equals.
        blurred_time: frame in which it is most blurred, the first of equals.
        sharp_score: at ``sharp_time``, see :func:`tta_restore.ops.self_shift_score`.
        blurred_score: at ``blurred_time``.
        clip: (T, C, h, w), the place around ``sharp_time``, frames beyond the ends repeated.
        blurred: (C, h, w), the place at ``blurred_time``.
        others: as ``clip``, its middle frame among the neighbors of another moment, drawn at random, each.
    """

    top: int
    left: int
    sharp_time: int
    blurred_time: int
    sharp_score: float
    blurred_score: float
    clip: Tensor
    blurred: Tensor
    others: tuple[Tensor, ...] = ()


class ShiftTables:
    """Self-shift scores of any crops of a frame, from integral images of its squared differences.

    The score of a crop costs 16 look-ups, whatever its size, and is that of
    :func:`tta_restore.ops.self_shift_score` on the crop alone: pixels outside do not count. Sums are exact for frames
    of up to 16 bit.

    Args:
        frame: (C, H, W) in [0, 1].

    Raises:
        TypeError: the frame is no floating-point tensor.
        ValueError: it is not (C, H, W).
    """

    def __init__(self, frame: Tensor) -> None:
        checks.expect_floating("ShiftTables", frame=frame)
        self.channels, self.height, self.width = checks.expect_shape("ShiftTables", "frame", frame, "(C, H, W)")
        levels = (frame.detach().float() * _LEVELS).round().to(torch.int32)
        pairs = (
            (levels[:, :-1, 1:], levels[:, 1:, :-1]),  # anti-diagonal
            (levels[:, :-1], levels[:, 1:]),  # vertical
            (levels[:, :-1, :-1], levels[:, 1:, 1:]),  # main diagonal
            (levels[:, :, :-1], levels[:, :, 1:]),  # horizontal
        )
        self._sums = torch.zeros(4, self.height + 1, self.width + 1, dtype=torch.int64, device=frame.device)
        for sums, (one, other) in zip(self._sums, pairs, strict=True):
            rows, columns = one.shape[1:]
            squares = (one - other).to(torch.int64).square_().sum(0)
            torch.cumsum(squares, 1, out=sums[1 : rows + 1, 1 : columns + 1])
        torch.cumsum(self._sums, 1, out=self._sums)

    def scores(self, tops: Tensor, lefts: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the scores of crops of one size. Shape: tops, lefts (M,), whole numbers -> (M,), float64, in decibels.

        Raises:
            ValueError: a crop leaves the frame, or is smaller than 2 x 2.
        """
        height, width = size
        inside = (tops >= 0) & (lefts >= 0) & (tops + height <= self.height) & (lefts + width <= self.width)
        if min(size) < 2 or not inside.all():
            raise ValueError(
                f"ShiftTables: expected crops of at least 2 x 2 inside {self.height} x {self.width}, got {size} at "
                f"rows {tops.tolist()} and columns {lefts.tolist()}"
            )
        total = tops.new_zeros(len(tops), dtype=torch.float64)
        for sums, (less_rows, less_columns) in zip(self._sums, ((1, 1), (1, 0), (1, 1), (0, 1)), strict=True):
            rows, columns = height - less_rows, width - less_columns
            bottoms, rights = tops + rows, lefts + columns
            area = sums[bottoms, rights] - sums[tops, rights] - sums[bottoms, lefts] + sums[tops, lefts]
            errors = area.double() / (_LEVELS**2 * self.channels * rows * columns)
            equal = area == 0
            total += torch.where(equal, 100.0, -10 * torch.log10(torch.where(equal, 1.0, errors)))
        return total


def place_patches(
    height: int, width: int, count: int, size: int, *, places: Places, generator: torch.Generator
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Return tops, lefts and the size of patches within a frame: (count,), (count,), (h, w).

    "random" draws them evenly; "tile" goes row by row over tiles, the last ones moved inward, and starts again.
    """
    checks.expect_int("place_patches", "count", count, minimum=1)
    checks.expect_int("place_patches", "size", size, minimum=2)
    checks.expect_choice("place_patches", "places", places, ("random", "tile"))
    sides = min(size, height), min(size, width)
    if min(sides) < 2:
        raise ValueError(f"place_patches: expected frames of at least 2 x 2 pixels, got {height} x {width}")
    if places == "random":
        rooms = zip((height, width), sides, strict=True)
        tops, lefts = (torch.randint(side - taken + 1, (count,), generator=generator) for side, taken in rooms)
        return tops, lefts, sides
    starts = [[min(i * s, n - s) for i in range(-(-n // s))] for n, s in zip((height, width), sides, strict=True)]
    tiles = [(top, left) for top in starts[0] for left in starts[1]]
    chosen = torch.tensor([tiles[i % len(tiles)] for i in range(count)])
    return chosen[:, 0], chosen[:, 1], sides


def mine_patches(
    frames: Frames,
    count: int,
    size: int,
    *,
    generator: torch.Generator,
    places: Places = "random",
    num_frames: int = 5,
    other_moments: int = 0,
) -> list[MinedPatch]:
    """Return, for several locations of a video, the frames in which they are sharpest and most blurred.

    Each frame is asked for once, in order; no more than ``num_frames`` of them are held. Moments are looked for where
    all frames around exist; in a video shorter than ``num_frames`` everywhere, and the frames at the ends stand in
    for those that are missing.

    Args:
        frames: in time; of one size.
        count: of places.
        size: of their sides in pixels; where the frame is shorter, its side.
        generator: of random places.
        places: see :func:`place_patches`.
        num_frames: T of the clips around a moment, odd.
        other_moments: to draw for each place, besides the two that are looked for.

    Shape: frames T' of (C, H, W), or (T', C, H, W), in [0, 1].

    Raises:
        ValueError: there is no frame, a frame is not (C, H, W), frames differ in size, or a setting is out of range.
    """
    checks.expect_int("mine_patches", "num_frames", num_frames, minimum=1, odd=True)
    checks.expect_int("mine_patches", "other_moments", other_moments, minimum=0)
    length, half = len(frames), num_frames // 2
    if length == 0:
        raise ValueError("mine_patches: expected at least one frame, got none")
    short = length < num_frames
    recent: deque[Tensor] = deque(maxlen=num_frames)
    search: _Search | None = None
    for time in range(length):
        frame = frames[time]
        if search is None:
            _, height, width = checks.expect_shape("mine_patches", "a frame", frame, "(C, H, W)")
            chosen = place_patches(height, width, count, size, places=places, generator=generator)
            search = _Search(*chosen, frame, other_moments, generator, borrowed=isinstance(frames, Tensor))
        search.expect_like(frame, time)
        recent.append(frame)
        if not short and time >= 2 * half:
            search.look(time - half, list(recent), half)
    if search is None:
        return []
    if short:
        for time in range(length):
            around = [recent[t] for t in window(time, length, num_frames)]
            search.look(time, around, half)
    return search.found()


class _Search:
    """The sharpest and the most blurred frames so far of several locations."""

    def __init__(
        self,
        tops: Tensor,
        lefts: Tensor,
        size: tuple[int, int],
        frame: Tensor,
        others: int,
        generator: torch.Generator,
        *,
        borrowed: bool,
    ) -> None:
        self.tops, self.lefts, self.size, self.shape = tops, lefts, size, frame.shape
        self.borrowed = borrowed  # crops of a tensor that lives on anyway need no memory of their own
        count = len(tops)
        self.sharp: list[tuple[float, int]] = [(float("inf"), 0)] * count
        self.blurred: list[tuple[float, int]] = [(float("-inf"), 0)] * count
        self.clips: list[Tensor] = [frame[:0]] * count
        self.crops: list[Tensor] = [frame[:0]] * count
        self.others = [[frame[:0]] * others for _ in range(count)]
        self.generator, self.looked = generator, 0

    def expect_like(self, frame: Tensor, time: int) -> None:
        if frame.shape != self.shape:
            raise ValueError(
                f"mine_patches: expected frames of one size, got {tuple(self.shape)} and, at {time}, "
                f"{tuple(frame.shape)}"
            )

    def look(self, time: int, around: list[Tensor], half: int) -> None:
        for i, score in enumerate(self._scores(around[half]).tolist()):
            if score < self.sharp[i][0]:
                self.sharp[i] = score, time
                self.clips[i] = torch.stack([self._crop(frame, i) for frame in around])
            if score > self.blurred[i][0]:
                self.blurred[i] = score, time
                crop = self._crop(around[half], i)
                self.crops[i] = crop if self.borrowed else crop.clone()
        self.looked += 1
        for i, others in enumerate(self.others):  # the n-th moment takes the place of one before with a chance of 1 / n
            for j, drawn in enumerate(torch.rand(len(others), generator=self.generator).tolist()):
                if drawn < 1 / self.looked:
                    others[j] = torch.stack([self._crop(frame, i) for frame in around])

    def found(self) -> list[MinedPatch]:
        return [
            MinedPatch(
                int(self.tops[i]),
                int(self.lefts[i]),
                self.sharp[i][1],
                self.blurred[i][1],
                self.sharp[i][0],
                self.blurred[i][0],
                self.clips[i],
                self.crops[i],
                tuple(_among(self.clips[i], other) for other in self.others[i]),
            )
            for i in range(len(self.tops))
        ]

    def _scores(self, frame: Tensor) -> Tensor:
        area = len(self.tops) * self.size[0] * self.size[1]
        if area > _DENSE * frame[0].numel():
            return ShiftTables(frame).scores(self.tops.to(frame.device), self.lefts.to(frame.device), self.size)
        return ops.self_shift_score(torch.stack([self._crop(frame, i) for i in range(len(self.tops))]))

    def _crop(self, frame: Tensor, i: int) -> Tensor:
        top, left = int(self.tops[i]), int(self.lefts[i])
        return frame[:, top : top + self.size[0], left : left + self.size[1]]


def _among(clip: Tensor, other: Tensor) -> Tensor:
    """Return the middle frame of one clip among the neighbors of another's."""
    middle = len(clip) // 2
    return torch.cat([other[:middle], clip[middle : middle + 1], other[middle + 1 :]])
