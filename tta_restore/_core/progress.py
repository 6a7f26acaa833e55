"""Progress of long work: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

__all__ = ["ProgressBar"]

_INTERVAL = 30.0  # seconds between lines, and before the first one
_LINE = "{desc}{n_fmt} of {total_fmt} after {elapsed}, about {remaining} left{postfix}"


class _Lines:
    """Stream that turns the states of a bar into lines."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if text.strip():  # else it only moves the cursor
            self.stream.write(text.strip() + "\n")

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
        if not sys.stderr.isatty():
            options |= {
                "file": _Lines(sys.stderr),
                "mininterval": _INTERVAL,
                "maxinterval": _INTERVAL,
                "delay": _INTERVAL,
                "leave": False,
                "bar_format": _LINE,
                "desc": f"{options['desc']}: " if options.get("desc") else None,
            }
        super().__init__(*arguments, **{"disable": not shown} | options)
