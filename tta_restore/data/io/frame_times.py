"""Times of decoded frames: increasing, also where a file lacks them or starts them again."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from tta_restore.data.io.codecs import CLOCK

__all__ = ["timed", "with_early_times"]

_MOST_EARLY = 32  # frames without a time at the start


def timed(frames: Iterator[Any], offset: Fraction, step: int) -> Iterator[tuple[Any, int]]:
    """Yield frames with their increasing times, without a jump back where times start again, as in joined files.

    Args:
        frames: decoded.
        offset: seconds that are subtracted from the times of the file.
        step: time between frames, in 1/90000 s like the result.
    """
    last: int | None = None
    has_times, shift = True, 0
    for frame in frames:
        if last is None:
            has_times = frame.pts is not None
        if has_times and frame.pts is not None:
            ticks = round((frame.time_base * frame.pts - offset) * CLOCK) + shift
        else:  # AVI stores no times of reordered frames
            ticks = 0 if last is None else last + step
        if last is None and ticks < 0:
            shift, ticks = -ticks, 0
        elif last is not None and ticks < last - max(step, CLOCK // 2):
            shift += last + step - ticks
            ticks = last + step
        elif last is not None and ticks <= last:
            ticks = last + 1
        last = ticks
        yield frame, ticks


def with_early_times(frames: Iterator[Any], step: int) -> Iterator[Any]:
    """Yield frames of which the first ones get the times before those that follow; Matroska knows none below 0."""
    early: list[Any] = []
    for frame in frames:
        if frame.pts is None and len(early) < _MOST_EARLY:
            early.append(frame)
            continue
        for number, before in enumerate(early):
            if frame.pts is not None:
                behind = Fraction(step, CLOCK) / frame.time_base * (len(early) - number)
                before.pts, before.time_base = frame.pts - round(behind), frame.time_base
            yield before
        yield frame
        yield from frames
        return
    yield from early
