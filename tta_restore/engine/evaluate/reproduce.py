"""`tta-restore reproduce`: measure a published table row by row, published and measured values side by side."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tta_restore.engine.evaluate.command import named_folders, named_values
from tta_restore.engine.evaluate.published import TABLES
from tta_restore.engine.evaluate.tables import DECIMALS, INPUT, DataSet, Row, Table, chosen_rows
from tta_restore.engine.run.outputs import expect_folder, locked_output
from tta_restore.engine.run.settings import merge, nested, parse_setting
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.run.user_code import import_named, is_named

__all__ = ["Cost", "Entry", "Outcome", "describe_tables", "find_table", "reproduce"]


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
        failed: row -> why it could not be measured.
        measured: rows that were measured.
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


def reproduce(
    table: str | None = None,
    *,
    data: Mapping[str, str | Path] | Sequence[str] | None = None,
    weights: Mapping[str, str | Path] | Sequence[str] | None = None,
    models: Mapping[str, str] | Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    settings: Sequence[str] | None = None,
    limit: int | None = None,
    lpips_weights: str | Path | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    list_tables: bool = False,
    dry_run: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Outcome | None:
    """Measure a published table and write published and measured values side by side.

    Data and weights that are missing are listed first, with where each belongs; rows that have what they need are
    measured by the protocol of the publication. An interrupted run continues when it is started again with the same
    --out, and a later run with more data or weights measures only what is new. torchrun shares the images, or the rows
    of a continual table.

    Args:
        table: name of a table, see --list, or your own as module.path:TABLE.
        data: folders of data sets.
        weights: files of weights by the names that the list of what is missing gives.
        models: for networks of other projects: NAME=module.path:callable of your copy, or NAME=registered model; also
            in place of a built-in network.
        rows: these rows only.
        settings: settings of methods in place of the published ones, METHOD.KEY=VALUE, such as
            meta-transfer.num_patches=5.
        limit: first images, or frames of every video, of each data set only; published values are then not comparable.
        lpips_weights: file of AlexNet's weights as torchvision publishes them; without it LPIPS is left out.
        device: such as cpu or cuda (default: cuda where there is one)
        out: folder for report, tables and the state of the run (default: runs/TABLE)
        list_tables: list the tables and exit.
        dry_run: list what is missing and what would be measured.
        progress: show progress on stderr.
        say: receives the text for the user.

    Returns:
        The values; None with list_tables.

    Raises:
        UsageError: there is no such table, row or name, or there are neither data nor weights for any row.
    """
    if list_tables:
        say(describe_tables())
        return None
    chosen = chosen_rows(find_table(table or ""), rows)
    folders = _known(named_folders(data or ()), [d.name for d in chosen.data], "--data")
    files = _known(named_values(weights or (), "--weights", "FILE"), chosen.slots, "--weights")
    sources = _known(named_values(models or (), "--models", "MODEL"), _model_slots(chosen), "--models")
    chosen = _with_settings(chosen, settings or (), files)
    out = expect_folder(Path("runs") / chosen.name.replace(":", ".") if out is None else out)
    counts, missing = _examine(chosen, folders, files, limit)
    domains = {d.name: folders[d.name] for d in chosen.data if d.name in counts}
    runnable = [row for row in chosen.rows if row.measurable and not _lacks(row, files, sources)]
    missing += _missing_weights(chosen, files, sources)
    if lpips_weights is None and domains and any("lpips" in data.quantities for data in chosen.data):
        missing += _missing_lpips()
    if missing and os.environ.get("RANK", "0") == "0":  # of torchrun's processes one is enough
        say("\n".join(["Missing:", *(f"  {line}" for line in missing), ""]))
    if dry_run:
        measured = ", ".join(row.name for row in runnable) if domains else ""
        say(f"would be measured on {', '.join(domains) or 'no data set'}: {measured or 'no row'}")
        return Outcome(chosen, missing=tuple(missing))
    if not domains or not runnable:
        lacking = "data set" if not domains else "row"
        raise UsageError(f"{chosen.name}: nothing to measure, there is no {lacking} that has what it needs (see above)")
    from tta_restore.engine.evaluate.reproduction import Reproduction

    run = Reproduction(chosen, domains, counts, files, sources, out, limit=limit, device=device, progress=progress)
    with locked_output(out):
        found = run.measure(runnable, lpips_weights=lpips_weights, missing=missing, say=say)
    if found is not None:
        say(f"\nReport: {out / 'report.html'}   table: {out / 'table.csv'}   numbers: {out / 'results.json'}")
    return found


_PLAIN = ("source", "self-ensemble")  # methods that adapt nothing
_VISIBLE = 5e-4  # dB that a difference of two rows must have to be seen in a table


def find_table(name: str) -> Table:
    """Return a table by name, or the :class:`Table` that ``module.path:NAME`` names.

    Raises:
        UsageError: there is none.
    """
    if is_named(name):
        try:
            found = import_named(name)
        except ValueError as error:
            raise UsageError(f"table {error}") from error
        if not isinstance(found, Table):
            raise UsageError(f"{name}: expected a Table, got {type(found).__name__}")
        return found
    if name not in TABLES:
        got = f"no table {name!r}" if name else "a TABLE is required"
        raise UsageError(f"{got}; there are: {', '.join(TABLES)}, and your own by module.path:TABLE")
    return TABLES[name]


def describe_tables() -> str:
    """Return all tables with their data sets and the names of their weights as text."""
    lines = []
    for table in TABLES.values():
        lines += [
            f"{table.name}: {table.title}",
            f"    source   {table.source}",
            f"    data     {', '.join(d.name for d in table.data)}",
            f"    weights  {', '.join(table.slots)}",
            f"    rows     {', '.join(row.name for row in table.rows)}",
        ]
    return "\n".join(lines)


def identity_of(*content: Any) -> str:
    """Return a short name for settings, so that a run of other settings goes to a folder of its own."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:10]


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
            if adapted and reports[-1].get("drift") is not None:
                text += f", which moved the weights by {reports[-1]['drift']:.1g} of their length"
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
                (f"{title_of(quantity)} published", [_number(entry.published, digits) for entry in found]),
                ("measured", [_number(entry.measured, digits) for entry in found]),
                ("difference", ["-" if e.difference is None else f"{e.difference:+.{digits}f}" for e in found]),
            ]
        header, rows = _filled([row.name for row in outcome.table.rows], columns)
        count = max((e.images for e in outcome.entries if e.data == name), default=0)
        tables.append((f"{name}, {count} images measured" if count else name, header, rows))
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


def _printed(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _known(given: Mapping[str, Any], names: Sequence[str], flag: str) -> dict[str, Any]:
    """Return values under the table's spelling of their names."""
    spelled = {name.lower(): name for name in names}
    found = {}
    for name, value in given.items():
        if name.lower() not in spelled:
            raise UsageError(f"{flag}: the table has no {name!r}; there are: {', '.join(names) or 'none'}")
        found[spelled[name.lower()]] = value
    return found


def _model_slots(table: Table) -> list[str]:
    return list(dict.fromkeys(row.slot for row in table.rows if row.measurable and row.slot))


def _missing_lpips() -> list[str]:
    """Return a line where torchvision's file for LPIPS is not where torch keeps downloads."""
    import torch

    from tta_restore.metrics.lpips import WEIGHTS

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return (
        []
        if (folder / WEIGHTS).is_file()
        else [f"--lpips-weights FILE   {WEIGHTS} of torchvision, or put it in {folder}"]
    )


def _with_settings(table: Table, texts: Sequence[str], files: Mapping[str, str]) -> Table:
    """Return the table with settings, METHOD.KEY=VALUE, in place of those of the rows of these methods.

    Another semantic encoder needs no file of CLIP; its weights are the setting ``semantic.pretrained``, or that file.
    """
    given = nested(dict(parse_setting(text, "--settings") for text in texts))
    methods = {row.method.name for row in table.rows}
    for method, own in given.items():
        if method not in methods or not isinstance(own, Mapping):
            raise UsageError(f"--settings: expected METHOD.KEY=VALUE with a method of {', '.join(sorted(methods))}")
    rows = []
    for row in table.rows:
        method = replace(row.method, settings=merge(row.method.settings, given.get(row.method.name, {})))
        semantic = method.settings.get("semantic", {})
        semantic = semantic if isinstance(semantic, Mapping) else {"encoder": semantic}
        slot, networks = row.networks.get("semantic.pretrained"), dict(row.networks)
        if slot and ("pretrained" in semantic or ("encoder" in semantic and slot not in files)):
            del networks["semantic.pretrained"]
        rows.append(replace(row, method=method, networks=networks))
    return replace(table, rows=tuple(rows))


def _examine(
    table: Table, folders: Mapping[str, Path], files: Mapping[str, str], limit: int | None
) -> tuple[dict[str, int], list[str]]:
    """Return the number of images of every data set that can be used, and what is missing of the others."""
    from tta_restore.engine.evaluate.protocols import find_images

    counts: dict[str, int] = {}
    missing = []
    for data in table.data:
        if data.name not in folders:
            missing.append(f"--data {data.name}=DIR   {data.about}{_layout(data, table)}")
            continue
        try:
            counts[data.name] = find_images(data, folders[data.name], table.protocol, limit)
        except (ValueError, OSError) as error:
            missing.append(f"--data {data.name}={folders[data.name]}   {' '.join(str(error).split())}")
            continue
        if data.images and counts[data.name] != data.images and limit is None:
            missing.append(
                f"{data.name}: the published values are of {data.images} images, {folders[data.name]} has "
                f"{counts[data.name]}"
            )
    for name, file in files.items():
        if name != "CLIP" and not Path(file).is_file():  # a tag of open_clip is no file
            raise UsageError(f"--weights {name}={file}: there is no such file")
    return counts, missing


def _layout(data: DataSet, table: Table) -> str:
    """Return where files are looked for in the folder of a data set."""
    from tta_restore.data.datasets.layouts import CLIP_LAYOUTS, LAYOUTS

    clips, pairs = CLIP_LAYOUTS.get(data.layout), LAYOUTS.get(data.layout)
    if table.protocol == "meta" and clips is not None and not callable(clips):
        patterns = [" and ".join(part.format(split="test", video="VIDEO") for part in p) for p in clips]
    elif pairs is not None and not callable(pairs):
        folders = pairs.get("test", ())
        patterns = [" and ".join("the images" if p == "." else p for p in pair if p) for pair in folders]
    elif data.layout:
        return f"; DIR is what the layout {data.layout} takes"
    else:
        patterns = ["two folders, such as source and target, or input and ground_truth"]
    return f"; DIR holds {', or '.join(patterns)}"


def _lacks(row: Row, files: Mapping[str, str], sources: Mapping[str, str]) -> list[str]:
    """Return the names of weights without which a row cannot be measured."""
    lacking = [name for name in row.networks.values() if name not in files]
    if row.slot and row.model != INPUT and row.slot not in files and row.slot not in sources:
        lacking.insert(0, row.slot)
    return lacking


def _missing_weights(table: Table, files: Mapping[str, str], sources: Mapping[str, str]) -> list[str]:
    needed: dict[str, list[Row]] = {}
    for row in table.rows:
        if row.measurable:
            for name in _lacks(row, files, sources):
                needed.setdefault(name, []).append(row)
    lines: list[str] = []
    for name, rows in needed.items():
        first = rows[0]
        argument = next((key for key, slot in first.networks.items() if slot == name), None)
        if argument is not None:
            what = {"flow": "PWC-Net", "semantic.pretrained": "CLIP ViT-B-32: a file, or a tag of open_clip"}
            about = what.get(argument, f"the {argument} network")
        elif first.model:
            about = f"the model {first.model}"
        elif first.about:
            model = name.removesuffix("-meta")
            about = f"with --models {model}=module.path:callable, which returns {first.about}"
        else:
            about = "a network of another project; without a checkpoint that spandrel recognizes, also "
            about += f"--models {name}=module.path:callable"
        shown = ", ".join(row.name for row in rows[:4]) + (f" and {len(rows) - 4} more" if len(rows) > 4 else "")
        quoted = f'"{name}=FILE"' if " " in name else f"{name}=FILE"
        lines.append(f"--weights {quoted}   {about}; for {shown}")
    return lines
