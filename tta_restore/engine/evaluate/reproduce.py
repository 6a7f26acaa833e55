"""`tta-restore reproduce`: measure a published table row by row, published and measured values side by side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tta_restore.engine.evaluate.command import named_folders, named_values
from tta_restore.engine.evaluate.outcome import Outcome
from tta_restore.engine.evaluate.published import TABLES
from tta_restore.engine.evaluate.tables import INPUT, DataSet, Row, Table, chosen_rows
from tta_restore.engine.run.outputs import expect_folder, is_first_process, locked_output
from tta_restore.engine.run.settings import merge, nested, parse_setting
from tta_restore.engine.run.usage import UsageError, duration
from tta_restore.engine.run.user_code import import_named, is_named

__all__ = ["describe_tables", "find_table", "reproduce"]


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
        dry_run: list what is missing and what would be measured; estimate the time where an earlier run, such as one
            with --limit 3, has measured that of an image.
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
    counts, missing = _examine(chosen, folders, limit)
    domains = {d.name: folders[d.name] for d in chosen.data if d.name in counts}
    runnable = [row for row in chosen.rows if row.measurable and not _lacks(row, files, sources)]
    missing += _missing_weights(chosen, files, sources)
    lacking_lpips = [] if lpips_weights else _missing_lpips() if domains and _asks_lpips(chosen) else []
    missing += lacking_lpips
    if missing and is_first_process():
        say("\n".join(["Missing:", *(f"  {line}" for line in missing), ""]))
    for name, file in files.items():
        if name != "CLIP" and not Path(file).is_file():  # a tag of open_clip is no file
            raise UsageError(f"--weights {name}={file}: there is no such file")
    if dry_run:
        measured = ", ".join(row.name for row in runnable) if domains else ""
        say(f"would be measured on {', '.join(domains) or 'no data set'}: {measured or 'no row'}")
        if domains and runnable:
            from tta_restore.engine.evaluate.reproduction import Reproduction

            run = Reproduction(chosen, domains, counts, files, sources, out, limit=limit)
            with_lpips = _asks_lpips(chosen) and not lacking_lpips
            times = {row.name: run.expected_seconds(row, with_lpips=with_lpips) for row in runnable}
            say(_describe_time(times, sum(counts.values()), out))
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


def _asks_lpips(table: Table) -> bool:
    return any("lpips" in data.quantities for data in table.data)


def _describe_time(times: Mapping[str, float | None], images: int, out: Path) -> str:
    """Return a sentence on the time of a run: the sum of the rows that earlier records tell, and which do not."""
    known = {name: seconds for name, seconds in times.items() if seconds is not None}
    unknown = [name for name, seconds in times.items() if seconds is None]
    each = ", ".join(f"{name} {duration(seconds)}" for name, seconds in known.items())
    lines = []
    if known:
        lines.append(
            f"about {duration(sum(known.values()))} for what is left of {images} images, by the records in {out}, "
            f"reading files and metrics not included: {each}"
        )
    if unknown:
        lines.append(
            f"no estimate yet for {images} images of {', '.join(unknown)}: their time depends on network, method, "
            f"image size and device; after a run with --limit 3 into {out}, --dry-run estimates it from those images"
        )
    return "\n".join(lines)


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


def _examine(table: Table, folders: Mapping[str, Path], limit: int | None) -> tuple[dict[str, int], list[str]]:
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
            found = " ".join(str(error).split()).removeprefix(f"{data.name}: ")
            if not Path(folders[data.name]).is_dir():
                found += f"; {data.about}{_layout(data, table)}"
            missing.append(f"--data {data.name}={folders[data.name]}   {found}")
            continue
        if data.images and counts[data.name] != data.images and limit is None:
            missing.append(
                f"{data.name}: the published values are of {data.images} images, {folders[data.name]} has "
                f"{counts[data.name]}"
            )
    return counts, missing


def _layout(data: DataSet, table: Table) -> str:
    """Return where files are looked for in the folder of a data set."""
    from tta_restore.data.datasets.clip_folders import CLIP_LAYOUTS
    from tta_restore.data.datasets.layouts import LAYOUTS

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
