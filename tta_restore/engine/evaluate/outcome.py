"""Printed values of a published table beside measured ones: entries, costs, and how they are shown and written."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tta_restore.engine.evaluate.tables import DECIMALS, Printed, Table

__all__ = ["Cost", "Entry", "Outcome"]


_PLAIN = ("source", "self-ensemble")  # methods that adapt nothing
_VISIBLE = 5e-4  # dB that a difference of two rows must have to be seen in a table


@dataclass(frozen=True)
class Entry:
    """A value of a table: published, measured, or both.

    Attributes:
        row: name of the row.
        data: data set, or the name of the table's average.
        quantity: what was measured, such as "psnr".
        published: printed value; None where there is none.
        measured: mean over images; None where it was not measured.
        images: number of images that it is the mean of.
    """

    row: str
    data: str
    quantity: str
    published: float | None = None
    measured: float | None = None
    images: int = 0

    @property
    def difference(self) -> float | None:
        """Measured minus published value; None where one is missing."""
        return None if self.published is None or self.measured is None else self.measured - self.published


@dataclass(frozen=True)
class Cost:
    """Size and work of the network of a row; None where it is not known.

    Attributes:
        parameters: number of parameters, in millions.
        gmacs: multiply-accumulate operations with biases and activations, in billions.
        seconds: seconds per image, on the clock.
    """

    parameters: float | None = None
    gmacs: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Outcome:
    """Result of a reproduction.

    Attributes:
        table: the table, with the chosen rows.
        entries: every value.
        costs: published and measured cost by row.
        missing: what data and weights are missing, a line each.
        failed: row, or "ROW on DATA" where other data sets were measured -> why it could not be measured.
        measured: rows that were measured, on one data set at least.
    """

    table: Table
    entries: tuple[Entry, ...] = ()
    costs: Mapping[str, tuple[Cost, Cost]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    measured: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """1 where a row failed, else 0."""
        return 1 if self.failed else 0

    def __str__(self) -> str:
        rows = [row for row in self.table.rows if row.measurable]
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"{self.table.name}: {len(self.measured)} of {len(rows)} rows measured{failed}"

    def entry(self, row: str, data: str, quantity: str) -> Entry:
        """Return a value; an empty one where there is none."""
        found = (e for e in self.entries if (e.row, e.data, e.quantity) == (row, data, quantity))
        return next(found, Entry(row, data, quantity))


def entries_of(table: Table, records: Mapping[str, Sequence[Any]]) -> tuple[Entry, ...]:
    """Return all values of a table, from the records of each row; those of the average come last."""
    found = []
    for row in table.rows:
        own = records.get(row.name, ())
        for data in table.data:
            of_data = [record for record in own if record.family == data.name]
            for quantity in data.quantities:
                printed = row.published.get(data.name, {}).get(quantity)
                found.append(_entry(row.name, data.name, quantity, printed, of_data))
        if table.average:
            for quantity in dict.fromkeys(q for data in table.data for q in data.quantities):
                printed = table.average_published.get(row.name, {}).get(quantity)
                found.append(_entry(row.name, table.average, quantity, printed, own))
    return tuple(entry for entry in found if entry.published is not None or entry.measured is not None)


def unchanged_rows(table: Table, records: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Return a remark on every row whose method gave, image by image, what the network gives without adaptation."""
    plain = [row for row in table.rows if row.method.name in _PLAIN and row.name in records]
    found: dict[str, str] = {}
    for row in table.rows:
        own = records.get(row.name, ())
        for other in plain if own and row not in plain else ():
            pairs = list(zip(own, records[other.name], strict=False))
            same_network = (row.model, row.slot, row.config) == (other.model, other.slot, other.config)
            if not same_network or any(a.psnr != b.psnr and abs(a.psnr - b.psnr) >= _VISIBLE for a, b in pairs):
                continue
            reports = [record.report for record in own]
            adapted = sum(bool(report.get("updated")) for report in reports)
            text = f"as {other.name} on every image: adapted on {adapted} of {len(own)}"
            drift = float(reports[-1].get("drift", math.nan))  # text where it was kept and is not finite
            if adapted and math.isfinite(drift):
                text += f", which moved the weights by {drift:.1g} of their length"
            if why := next((report["skipped_because"] for report in reports if report.get("skipped_because")), None):
                text += f" ({why})"
            found[row.name] = text
            break
    return found


def side_by_side(outcome: Outcome) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return a title, a header and rows of text for every data set, and for parameters and MACs."""
    tables = []
    places = [(data.name, data.quantities) for data in outcome.table.data]
    if outcome.table.average:
        places.append((outcome.table.average, outcome.table.data[0].quantities))
    for name, quantities in places:
        shown = [q for q in quantities if any(e.quantity == q and e.data == name for e in outcome.entries)]
        if not shown:
            continue
        columns: list[tuple[str, list[str]]] = []
        for quantity in shown:
            digits = _digits(outcome, quantity)
            found = [outcome.entry(row.name, name, quantity) for row in outcome.table.rows]
            columns += [
                (f"{title_of(quantity)} published", [_printed(entry.published, digits) for entry in found]),
                ("measured", [_number(entry.measured, digits) for entry in found]),
                ("difference", ["-" if e.difference is None else f"{e.difference:+.{digits}f}" for e in found]),
            ]
        header, rows = _filled([row.name for row in outcome.table.rows], columns)
        count = max((e.images for e in outcome.entries if e.data == name), default=0)
        tables.append((f"{name}, {count_of(count)} measured" if count else name, header, rows))
    columns = []
    for name, title, digits in (
        ("parameters", "parameters (M)", 3),
        ("gmacs", "MACs (G)", 1),
        ("seconds", "seconds", 3),
    ):
        columns += [
            (f"{title} published", [_printed(getattr(printed, name)) for printed, _ in outcome.costs.values()]),
            ("measured", [_number(getattr(own, name), digits) for _, own in outcome.costs.values()]),
        ]
    header, rows = _filled(list(outcome.costs), columns)
    if rows:
        tables.append(("Parameters, multiply-adds and time", header, rows))
    return tables


def _filled(names: Sequence[str], columns: Sequence[tuple[str, list[str]]]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows without the columns and rows that hold nothing; a group of columns keeps its title."""
    header, kept, title = [""], [], ""
    for head, cells in columns:
        group, _, word = head.rpartition(" ")
        title = group or title
        if any(cell != "-" for cell in cells):
            header.append(f"{title} {word}".strip())
            kept.append(cells)
            title = ""
    rows = [[name, *cells] for name, cells in zip(names, zip(*kept, strict=True), strict=True)] if kept else []
    return header, [row for row in rows if any(cell != "-" for cell in row[1:])]


def title_of(quantity: str) -> str:
    """Return a quantity as it is written in a header."""
    aligned = quantity.startswith("aligned_")
    name = quantity.removeprefix("aligned_")
    return f"{name.upper()}{', aligned' if aligned else ''}{' (dB)' if name == 'psnr' else ''}"


def count_of(images: int) -> str:
    """Return a number of images in words."""
    return f"{images} {'image' if images == 1 else 'images'}"


def write_values(path: Path, outcome: Outcome) -> None:
    """Write all values as CSV, a row each."""
    from tta_restore.data.io.atomic import atomic_file

    sources = {row.name: row.source or outcome.table.source for row in outcome.table.rows}
    with atomic_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["row", "data set", "quantity", "published", "measured", "difference", "images", "source of the published"]
        )
        for e in outcome.entries:
            own = ["" if value is None else repr(value) for value in (e.published, e.measured, e.difference)]
            writer.writerow([e.row, e.data, e.quantity, *own, e.images, sources[e.row] if e.published else ""])


def _entry(row: str, data: str, quantity: str, printed: float | None, records: Sequence[Any]) -> Entry:
    values = [record.metrics.get(quantity, getattr(record, quantity, None)) for record in records]
    if not values or None in values:
        return Entry(row, data, quantity, printed)
    return Entry(row, data, quantity, printed, sum(values) / len(values), len(values))


def _digits(outcome: Outcome, quantity: str) -> int:
    """Return the digits of a column after the point: as many as are printed, and at least the usual ones."""
    printed = [e.published for e in outcome.entries if e.quantity == quantity and e.published]
    return max([DECIMALS.get(quantity, 4), *(len(repr(value).partition(".")[2]) for value in printed)])


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _printed(value: float | None, digits: int | None = None) -> str:
    """Return a published number, with the digits of its column unless it brings its own."""
    if isinstance(value, Printed):
        return value.text
    return f"{value:g}" if value is not None and digits is None else _number(value, digits or 0)
