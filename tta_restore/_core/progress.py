"""Progress of long work: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from tqdm import tqdm

__all__ = ["ProgressBar", "no_progress"]

_INTERVAL = 30.0  # seconds between lines, and before the first one
_LINE = "{{desc}}{{n_fmt}}{of} after {{elapsed}}{left}{{postfix}}"
_BASIS = 5  # items from which a time is estimated; of few items, a quarter
_LARGEST_ERROR = 1 / 3  # standard error of the time left, relative to it, above which none is shown
_UP = "\x1b[A"  # moves the cursor to the line of an outer bar

_silent: ContextVar[bool] = ContextVar("silent", default=False)


@contextmanager
def no_progress() -> Iterator[None]:
    """Show no bar that is made in a ``with`` block, whatever asks for it."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


class _Pace:
    """Mean time of the items of one kind, the later ones weighted more, and how sure it is.

    The first item is left out: start-up, the loading of models and a calibration fall into its time. The k-th one
    after it has the weight k^2, so that the latest third of the items has two thirds of the weight at any length.
    """

    def __init__(self) -> None:
        self.items = 0
        self._weight = self._squared_weight = 0.0  # sums over the items, as the next two
        self._seconds = self._squared_seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one more item."""
        weight = float(self.items) ** 2
        self.items += 1
        self._weight += weight
        self._squared_weight += weight**2
        self._seconds += weight * seconds
        self._squared_seconds += weight * seconds**2

    def left(self, items: int) -> tuple[float, float] | None:
        """Return seconds for so many more items and their standard error; None where too few have been counted."""
        counted = self.items - 1
        if counted < max(2, min(_BASIS, (self.items + items) // 4)):
            return None
        mean = self._seconds / self._weight
        effective = self._weight**2 / self._squared_weight  # number of items of equal weight that are as sure
        variance = max(0.0, self._squared_seconds / self._weight - mean**2) / (effective - 1)
        return items * mean, items * variance**0.5


class _Lines:
    """Stream that turns the states of a bar into lines."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        text = text.replace(_UP, "").strip()
        if text:
            self.stream.write(text + "\n")

    def flush(self) -> None:
        self.stream.flush()


class ProgressBar(tqdm):
    """Bar of tqdm on stderr that writes lines instead where stderr is no terminal.

    The time left is estimated from the latest items, without the first one, and not shown before they agree on it.

    Args:
        *arguments: those of tqdm.
        shown: False for no output at all.
        kinds: number of items of each kind, where kinds take different times; no time left is shown before all have
            begun.
        parallel: number of items that are worked on at the same time.
        **options: those of tqdm.
    """

    def __init__(
        self,
        *arguments: Any,
        shown: bool = True,
        kinds: Mapping[Any, int] | None = None,
        parallel: int = 1,
        **options: Any,
    ) -> None:
        self._kinds = None if kinds is None else dict(kinds)
        self._parallel = parallel
        self._paces: dict[str | None, _Pace] = {}
        self._latest = time.monotonic()
        self._next_line = None if sys.stderr.isatty() else time.monotonic() + _INTERVAL
        if self._next_line is not None:
            options |= {
                "file": _Lines(sys.stderr),
                "mininterval": _INTERVAL,
                "maxinterval": _INTERVAL,
                "delay": _INTERVAL,
                "leave": False,
                "desc": f"{options['desc']}: " if options.get("desc") else None,
            }
        super().__init__(*arguments, **{"disable": not shown or _silent.get()} | options)

    def __iter__(self) -> Iterator[Any]:
        """Yield the items, each counted once the caller is done with it."""
        try:
            for item in self.iterable:
                yield item
                self.update()
        finally:
            self.close()

    def update(self, n: float | None = 1, *, kind: str | None = None, seconds: float | None = None) -> bool | None:
        """Count items that are done.

        Args:
            n: number of items.
            kind: one of the bar's kinds.
            seconds: time that they took; None for the time since the update before.
        """
        now = time.monotonic()
        spent, self._latest = now - self._latest if seconds is None else seconds, now
        count = int(n or 0)
        pace = self._paces.setdefault(kind, _Pace())
        for _ in range(count):
            pace.add(spent / count)
        if self._kinds is not None and kind is not None:
            self._kinds[kind] -= count
        return super().update(n)

    def skip(self, *, kind: str | None = None) -> None:
        """Count an item that there was nothing to do for: its time is no measure of the others."""
        self._latest = time.monotonic()
        if self._kinds is not None and kind is not None:
            self._kinds[kind] -= 1
        super().update()

    @property
    def seconds_left(self) -> float | None:
        """Estimated time for the items left; None where the items so far do not suffice for an estimate."""
        kinds: Mapping[Any, int] = {None: self.total - self.n} if self._kinds is None else self._kinds
        found = [self._paces.get(kind, _Pace()).left(count) for kind, count in kinds.items() if count > 0]
        known = [each for each in found if each is not None]
        seconds, error = sum(mean for mean, _ in known), sum(error**2 for _, error in known) ** 0.5
        return None if len(known) < len(found) or error > _LARGEST_ERROR * seconds else seconds / self._parallel

    @property
    def format_dict(self) -> Any:
        """Values that a state of the bar is written from."""
        values = super().format_dict
        left = of = ""
        if self.total is not None:
            of = " of {total_fmt}"
            if self.n < self.total:
                seconds = self.seconds_left
                values["rate"] = (self.total - self.n) / seconds if seconds else 0.0  # 0: tqdm writes "?"
                if self.total > 1:
                    left = ", about {remaining} left" if seconds else ", estimating the time left"
        if self._next_line is not None:
            values["bar_format"] = _LINE.format(of=of, left=left)
        return values

    def refresh(self, *arguments: Any, **options: Any) -> Any:
        """Show the state now, or where lines are written, if the last one is old enough."""
        if self._next_line is not None:
            if time.monotonic() < self._next_line:
                return None
            self._next_line = time.monotonic() + _INTERVAL
        return super().refresh(*arguments, **options)
