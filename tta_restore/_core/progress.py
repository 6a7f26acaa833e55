"""Progress of long work: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from tqdm import tqdm

__all__ = ["ProgressBar", "no_progress"]

_INTERVAL = 30.0  # seconds between lines, and before the first one
_LINE = "{desc}{n_fmt} of {total_fmt} after {elapsed}, about {remaining} left{postfix}"
_LINE_WITHOUT_TOTAL = "{desc}{n_fmt} after {elapsed}{postfix}"
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

    Args:
        *arguments: those of tqdm.
        shown: False for no output at all.
        **options: those of tqdm.
    """

    def __init__(self, *arguments: Any, shown: bool = True, **options: Any) -> None:
        self._next_line = None if sys.stderr.isatty() else time.monotonic() + _INTERVAL
        if self._next_line is not None:
            options |= {
                "file": _Lines(sys.stderr),
                "mininterval": _INTERVAL,
                "maxinterval": _INTERVAL,
                "delay": _INTERVAL,
                "leave": False,
                "bar_format": _LINE,
                "desc": f"{options['desc']}: " if options.get("desc") else None,
            }
        super().__init__(*arguments, **{"disable": not shown or _silent.get()} | options)
        if self._next_line is not None and self.total is None:
            self.bar_format = _LINE_WITHOUT_TOTAL

    def refresh(self, *arguments: Any, **options: Any) -> Any:
        """Show the state now, or where lines are written, if the last one is old enough."""
        if self._next_line is not None:
            if time.monotonic() < self._next_line:
                return None
            self._next_line = time.monotonic() + _INTERVAL
        return super().refresh(*arguments, **options)
