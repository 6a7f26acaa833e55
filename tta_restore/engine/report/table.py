"""The result of a stream as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, isnan

from tta_restore.engine.evaluate.results import Interval, StreamResult, written

__all__ = ["lay_out", "plural", "text_table"]


def text_table(result: StreamResult, baseline: str, *, group: str = "lens") -> str:
    """Return a text table: results per family, gains over the baseline, fraction of better frames, cost per frame.

    `±` is half the 95 % bootstrap interval of the mean over frames; brackets give the interval of the overall gain
    over whole families (blocks of stream x family), which are called ``group`` in the singular.
    """
    families = result.families
    parts = []
    for quantity in result.quantities:
        name, unit, digits, _ = written(quantity)
        title = f"{name} ({unit})" if unit else name
        columns = [*families, None]
        rows = [[m, *(_plain(result.value(m, quantity, f), digits) for f in columns)] for m in result.methods]
        parts.append(lay_out(f"{title}, mean over frames", ["", *families, "all"], rows))
    rows = []
    for method in result.methods:
        if method == baseline:
            continue
        gains = [_signed(result.gain(method, baseline, family=family)) for family in [*families, None]]
        blocks = result.gain(method, baseline, over="blocks")
        rows.append([method, *gains, _brackets(blocks), f"{result.share_above(method, baseline):.0%}"])
    header = ["", *families, "all", f"over {plural(group)}", "frames >"]
    parts.append(lay_out(f"PSNR gain over {baseline} (dB)", header, rows))
    costs = {method: result.cost(method) for method in result.methods}
    rows = [
        [m, f"{c['cpu_seconds']:.3f}", f"{c['wall_seconds']:.3f}", f"{c['longest_wall_seconds']:.3f}"]
        for m, c in costs.items()
    ]
    parts.append(lay_out("Seconds per frame", ["", "processor", "clock", "longest"], rows))
    count = len(result.of(baseline))
    called = plural(group) if len(families) > 1 else group
    note = (
        f"{count} frames, {len(families)} {called}. Intervals are 95 % bootstrap intervals of the mean:\n"
        f"± is half the interval over frames, brackets are the interval over whole {plural(group)} (stream x family)."
    )
    for method in result.methods:
        broken = sum(not isfinite(r.value(quantity)) for r in result.of(method) for quantity in result.quantities[:1])
        if broken:
            note += f"\n{method}: {broken} of {len(result.of(method))} results are NaN or infinite."
    return "\n\n".join([*parts, note])


def lay_out(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text: the first column to the left, the others to the right."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = []
    for row in table:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    rule = "-" * max(map(len, lines))
    return "\n".join([title, rule, lines[0], rule, *lines[1:]])


def plural(group: str) -> str:
    """Return a word for families in the plural."""
    return f"{group}es" if group.endswith("s") else f"{group}s"


def _plain(interval: Interval, digits: int) -> str:
    half = "" if isnan(interval.half_width) else f" ±{interval.half_width:.{digits}f}"
    return f"{interval.mean:.{digits}f}{half}"


def _signed(interval: Interval) -> str:
    half = "" if isnan(interval.half_width) else f" ±{interval.half_width:.2f}"
    return f"{_gain(interval.mean)}{half}"


def _brackets(interval: Interval) -> str:
    return "-" if isnan(interval.low) else f"[{_gain(interval.low)}, {_gain(interval.high)}]"


def _gain(value: float) -> str:
    return " 0.00" if round(value, 2) == 0 else f"{value:+.2f}"
