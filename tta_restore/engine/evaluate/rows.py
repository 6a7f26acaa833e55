"""Rows of a comparison: a method by name, with settings in brackets."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tta_restore.engine.run.settings import Named, parse_setting
from tta_restore.engine.run.usage import UsageError

__all__ = ["Row", "row_of"]


@dataclass(frozen=True)
class Row:
    """Row of a comparison.

    Attributes:
        name: as it was given, shown in tables.
        method: name and settings.
    """

    name: str
    method: Named

    @property
    def file(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^\w.-]+", "_", self.name).strip("_")


def row_of(text: str | Row) -> Row:
    """Return the row that a text such as ``tent`` or ``tent[variant=official,steps=2]`` names.

    Raises:
        UsageError: the brackets hold something else than KEY=VALUE.
    """
    if isinstance(text, Row):
        return text
    match = re.fullmatch(r"(?P<name>[^\[\]]+)(\[(?P<settings>.*)\])?", text)
    if match is None:
        raise UsageError(f"--methods: expected NAME or NAME[KEY=VALUE,...], got {text!r}")
    settings = match["settings"]
    pairs = [] if not settings else re.split(r",(?=[\w.]+=)", settings)
    return Row(text, Named(match["name"], dict(parse_setting(pair, "--methods") for pair in pairs)))
