"""Self-contained HTML page of a reproduced table: published and measured values side by side, images, notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tta_restore.data.io.atomic import atomic_file
from tta_restore.engine.report.page import Sample, environment, require_packages, sample_context

__all__ = ["Comparison", "group_rows", "render_comparison", "write_comparison"]

_COLUMNS = 10  # from which the print is smaller, so that the page shows them all
_DASH = "–"  # noqa: RUF001 (an en dash, for people)


@dataclass(frozen=True)
class Comparison:
    """Everything the page shows.

    Args:
        title: of the page.
        lead: sentence below it.
        source: of the published values.
        tables: title, header and rows of text; after the first column the header has groups of columns, such
            as "PSNR published", "measured", "difference"; the first of a group has its title.
        row_notes: row -> remark: a word next to its name, a sentence below the first table of the row.
        samples: images that are displayed.
        plot: SVG of PSNR over time; empty for none.
        missing: what data and weights are missing, a line each.
        failed: row -> why it was not measured.
        notes: sentences on how the numbers must be read.
        facts: what was run.
    """

    title: str
    lead: str
    source: str
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]]
    row_notes: Mapping[str, str] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    plot: str = ""
    missing: Sequence[str] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def write_comparison(path: str | Path, comparison: Comparison) -> None:
    """Write the page: completely, or not at all. It refers to nothing outside itself.

    Raises:
        UsageError: jinja2 or matplotlib is not installed.
    """
    html = render_comparison(comparison)
    with atomic_file(path) as partial:
        partial.write_text(html, encoding="utf-8")


def render_comparison(comparison: Comparison) -> str:
    """Return the page as text; the arguments and errors are those of :func:`write_comparison`."""
    require_packages("jinja2")
    template = environment().get_template("comparison.html.jinja")
    tables, told = [], set()
    for title, header, rows in comparison.tables:
        words = {row: note for row, note in comparison.row_notes.items() if " " not in note}
        sentences = {row: note for row, note in comparison.row_notes.items() if row not in words}
        new = {name: sentences[name] for name, *_ in rows if name in sentences and name not in told}
        tables.append(_table(title, header, rows, words) | {"remarks": group_rows(new)})
        told |= set(new)
    missing = [line.partition("   ")[::2] if "   " in line else ("", line) for line in comparison.missing]
    names = ("title", "lead", "source", "plot", "notes", "facts")
    shown = {name: getattr(comparison, name) for name in names}
    return template.render(
        tables=tables,
        missing=missing,
        failed=group_rows(comparison.failed),
        quoted="quoted" in comparison.row_notes.values(),
        samples=[sample_context(s) for s in comparison.samples],
        **shown,
    )


def group_rows(reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return names of rows, joined by commas, and the sentence that they share."""
    rows: dict[str, list[str]] = {}
    for row, why in reasons.items():
        rows.setdefault(why, []).append(row)
    return [(", ".join(names), why) for why, names in rows.items()]


def _table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: Mapping[str, str]
) -> dict[str, Any]:
    groups: list[dict[str, Any]] = []
    for name in header[1:]:
        group, _, column = name.rpartition(" ")
        if group or not groups:
            groups.append({"title": group, "columns": []})
        groups[-1]["columns"].append(column)
    kinds = [
        f"{column}{' first' if place == 0 else ''}" for group in groups for place, column in enumerate(group["columns"])
    ]
    return {
        "title": title,
        "many": len(header) > _COLUMNS,
        "groups": groups,
        "rows": [
            {
                "name": name,
                "note": notes.get(name, ""),
                "cells": [
                    {"text": _DASH if text == "-" else _signed(text), "kind": kind}
                    for kind, text in zip(kinds, cells, strict=True)
                ],
            }
            for name, *cells in rows
        ],
    }


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
