"""Measure the rows of a published table, keep their records and sample images, and write the results."""

from __future__ import annotations

import copy
import csv
import glob
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tta_restore import __version__
from tta_restore._core.processes import Processes
from tta_restore.data.io.atomic import atomic_file
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.engine.evaluate.dpdd import takes_views
from tta_restore.engine.evaluate.outcome import (
    Cost,
    Outcome,
    count_of,
    entries_of,
    side_by_side,
    unchanged_rows,
    write_values,
)
from tta_restore.engine.evaluate.protocols import Job, find_protocol
from tta_restore.engine.evaluate.reproduce import identity_of
from tta_restore.engine.evaluate.results import FrameRecord, StreamResult
from tta_restore.engine.evaluate.runner import open_lpips, read_records
from tta_restore.engine.evaluate.tables import INPUT, Row, Table
from tta_restore.engine.report import plots
from tta_restore.engine.report.comparison import Comparison, group_rows, write_comparison
from tta_restore.engine.report.page import Sample, require_packages
from tta_restore.engine.report.table import lay_out
from tta_restore.engine.run.device import resolve_device
from tta_restore.engine.run.extensions import find_metrics, is_further_metric
from tta_restore.engine.run.models import build_module, load_restorer
from tta_restore.engine.run.usage import one_line
from tta_restore.models import Restorer, RestorerSpec, as_restorer, count_macs, list_models

__all__ = ["Reproduction", "cost_of"]

_SIDE = 320  # of the crop that is shown, in pixels
_SHARP = "sharp original"


@dataclass
class Reproduction:
    """Run of a table.

    Attributes:
        table: with the chosen rows.
        domains: folder of every data set that there is.
        counts: number of images in each.
        files: files of weights by name.
        sources: models by name, which replace those of the rows.
        out: folder for everything.
        limit: first images of each data set only.
        device: of everything; None takes a CUDA device where there is one.
        progress: show progress on stderr.
    """

    table: Table
    domains: Mapping[str, Path]
    counts: Mapping[str, int]
    files: Mapping[str, str]
    sources: Mapping[str, str]
    out: Path
    limit: int | None = None
    device: str | None = None
    progress: bool = True

    def measure(
        self,
        rows: Sequence[Row],
        *,
        lpips_weights: str | Path | None = None,
        missing: Sequence[str] = (),
        say: Callable[[str], None] = print,
    ) -> Outcome | None:
        """Measure rows, print tables, and write report, CSV and JSON.

        Args:
            rows: that have what they need.
            lpips_weights: see :class:`tta_restore.metrics.Lpips`.
            missing: lines for the report.
            say: receives the text for the user.

        Returns:
            The values; None in all processes but the first.

        Raises:
            UsageError: the device or a package is missing.
        """
        require_packages("torchmetrics", "jinja2", "matplotlib", "skimage")
        device = resolve_device(self.device)
        lpips, without = None, []
        if any("lpips" in data.quantities for data in self.table.data):
            lpips, without = open_lpips(lpips_weights, device)
        failed: dict[str, str] = {}
        costs: dict[str, tuple[Cost, Cost]] = {}
        records: dict[str, list[FrameRecord]] = {}
        with Processes.join(device) as processes:
            if self.table.stream and processes.count > 1:
                for row in rows[processes.rank :: processes.count]:
                    self._row(row, device, lpips, Processes(), {}, {})
                processes.wait()
                if not processes.first:
                    return None
                processes = Processes()
            for row in self.table.rows:
                if row in rows:
                    found = self._row(row, device, lpips, processes, costs, failed)
                    if found is not None:
                        records[row.name] = found
                else:
                    costs[row.name] = (_published_cost(row), self._cost_without_weights(row))
            processes.wait()
            if not processes.first:
                return None
        outcome = Outcome(
            self.table, entries_of(self.table, records), costs, tuple(missing), failed, tuple(records)
        )  # fmt: skip
        for title, header, lines in side_by_side(outcome):
            say(lay_out(title, header, lines) + "\n")
        same = unchanged_rows(self.table, records)
        told = [f"error: {rows} failed: {why}" for rows, why in group_rows(failed)]
        for line in [*without, *told, *(f"{row}: {how}" for row, how in same.items())]:
            say(line)
        self._write(outcome, records, [*self.table.notes, *without], same, device)
        return outcome

    def _row(
        self,
        row: Row,
        device: str,
        lpips: Any,
        processes: Processes,
        costs: dict[str, tuple[Cost, Cost]],
        failed: dict[str, str],
    ) -> list[FrameRecord] | None:
        """Return the records of a row; None where there are none, with the reasons in ``failed``.

        Data sets are measured apart from each other, and one that is damaged costs its own values; a stream is one.
        Under torchrun what fails in one process fails in all of them, see :func:`~.runner.run_units`.
        """
        costs[row.name] = (_published_cost(row), Cost())
        try:
            restorer = self._restorer(row, device)
            networks = {key: self.files[name] for key, name in row.networks.items()}
            protocol, more = find_protocol(self.table.protocol), find_metrics(self._metrics())
        except Exception as error:  # code of any project
            failed[row.name] = one_line(error)
            return None
        found: list[FrameRecord] = []
        reasons: dict[str, str] = {}
        for domains in self._groups():
            folder = self._folder(row, domains, with_lpips=lpips is not None)
            folder.mkdir(parents=True, exist_ok=True)
            try:
                found += protocol(
                    Job(
                        self.table, row, domains, restorer, networks, folder, device, self.limit, lpips, more,
                        self._keep(row), processes, self.progress,
                    )
                )  # fmt: skip
            except Exception as error:
                reasons[", ".join(domains)] = one_line(error)
        if not found and len(set(reasons.values())) == 1:
            failed[row.name] = next(iter(reasons.values()))
        else:
            failed |= {f"{row.name} on {name}": why for name, why in reasons.items()}
        if not found:
            return None
        seconds = sum(record.wall_seconds for record in found) / len(found)
        measured = Cost() if restorer is None else cost_of(restorer, self.table.macs_size)
        costs[row.name] = (_published_cost(row), replace(measured, seconds=None if restorer is None else seconds))
        return found

    def _metrics(self) -> list[str]:
        """Return the quantities of the table that are metrics of a plug-in or of a module."""
        quantities = dict.fromkeys(q for data in self.table.data for q in data.quantities)
        return [q for q in quantities if is_further_metric(q)]

    def _restorer(self, row: Row, device: str) -> Restorer | None:
        if row.model == INPUT:
            return None
        given = self.sources.get(row.slot) or self.sources.get(row.slot.removesuffix("-meta"))  # the same architecture
        source, file = given or row.model, self.files.get(row.slot)
        if not source:
            return load_restorer(str(file), device=device)
        own = row.config if source == row.model else {}
        found = load_restorer(source, device=device, checkpoint=file, config=own)
        return as_restorer(found.module, RestorerSpec(**row.spec)) if row.spec and found.spec is None else found

    def _cost_without_weights(self, row: Row) -> Cost:
        """Return parameters and MACs of a built-in network that has no weights here."""
        if row.model not in list_models("restorer"):
            return Cost()
        try:
            module = build_module(row.model, config={**row.config, "device": "meta"})
            return cost_of(Restorer(module), self.table.macs_size)
        except (ValueError, RuntimeError, NotImplementedError):
            return Cost()

    def expected_seconds(self, row: Row, *, with_lpips: bool) -> float | None:
        """Return the time to restore the images of a row that have no records yet.

        It is estimated from records of the same weights and settings in the folder, those of a run with another limit
        or other data included; None where there are none.
        """
        seconds = [
            record.wall_seconds
            for path in (self.out / "run").glob(f"{glob.escape(f'{row.file}.{self._settings(row)}')}.*/**/*.jsonl")
            for record in read_records(path)
        ]
        if not seconds:
            return None
        folders = [self._folder(row, domains, with_lpips=with_lpips) for domains in self._groups()]
        done = sum(len(read_records(path)) for folder in folders for path in folder.rglob("*.jsonl"))
        return sum(seconds) / len(seconds) * (sum(self.counts[name] for name in self.domains) - done)

    def _groups(self) -> list[Mapping[str, Path]]:
        """Return the data sets that are measured together: all of a stream, else each alone."""
        return [self.domains] if self.table.stream else [{name: path} for name, path in self.domains.items()]

    def _folder(self, row: Row, domains: Mapping[str, Path], *, with_lpips: bool) -> Path:
        """Return where the records of a row are kept: a folder for each choice of weights, settings and data."""
        data = {name: [str(Path(path).resolve()), self.counts[name]] for name, path in domains.items()}
        return self.out / "run" / f"{row.file}.{self._settings(row)}.{identity_of(data, self.limit, with_lpips)}"

    def _settings(self, row: Row) -> str:
        """Return a name for the weights and settings by which runs of a row differ."""

        def stamp(file: str | None) -> Any:
            path = Path(file or "")
            return [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else file

        networks = {key: stamp(self.files[name]) for key, name in row.networks.items()}
        return identity_of(
            asdict(row) | {"published": None, "reason": None, "source": None}, self.table.protocol, self.table.bits,
            stamp(self.files.get(row.slot)), dict(self.sources), networks,
        )  # fmt: skip

    def _keep(self, row: Row) -> Callable[[str, int, Tensor, Tensor, Tensor], None]:
        def keep(name: str, index: int, blurry: Tensor, sharp: Tensor, restored: Tensor) -> None:
            if index != self.counts[name] // 2:
                return
            for title, image in ((INPUT, blurry), (_SHARP, sharp), (row.name, restored)):
                path = self._picture(name, title)
                if title != row.name and path.exists():
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                write_image(path, Image(_crop(image).clamp(0, 1)), bit_depth=8)

        return keep

    def _picture(self, data: str, title: str) -> Path:
        named = Row(title).file
        return self.out / "pictures" / f"{data}.{named}.png"

    def _samples(self, records: Mapping[str, Sequence[FrameRecord]]) -> list[Sample]:
        """Return the middle image of every data set, as the rows restored it."""
        samples = []
        for name in self.domains:
            pictures, psnr = {}, {}
            quantity = next((q for q in self.table.data_set(name).quantities if q.endswith("psnr")), "psnr")
            for title in (INPUT, *(row for row in records if row != INPUT)):
                path = self._picture(name, title)
                if path.exists():
                    pictures[title] = read_image(path).as_rgb()
                own = [r for r in records.get(title, ()) if r.family == name]
                if len(own) > self.counts[name] // 2:
                    middle = own[self.counts[name] // 2]
                    psnr[title] = middle.metrics.get(quantity, middle.psnr)
            sharp = self._picture(name, _SHARP)
            if len(pictures) < 2 or not sharp.exists():
                continue
            *_, after = pictures
            value = "PSNR of" if quantity == "psnr" else "PSNR after alignment, of"
            rule = f"The middle image of the data set, its central {_SIDE} pixels; {value} the whole image."
            samples.append(Sample(name, rule, pictures, read_image(sharp).as_rgb(), psnr, INPUT, after))
        return samples

    def _write(
        self,
        outcome: Outcome,
        records: Mapping[str, Sequence[FrameRecord]],
        notes: Sequence[str],
        same: Mapping[str, str],
        device: str,
    ) -> None:
        table, out = self.table, self.out
        everything = StreamResult(tuple(record for own in records.values() for record in own))
        everything.to_csv(out / "frames.csv")
        if table.protocol == "meta":
            _write_clips(out / "clips.csv", everything.records)
        write_values(out / "table.csv", outcome)
        facts = {
            "table": f"{table.name}: {table.title}",
            "data": ", ".join(f"{name} ({count_of(self.counts[name])}, {p})" for name, p in self.domains.items()),
            "weights": ", ".join(f"{name}={file}" for name, file in self.files.items()) or "none",
            "models": ", ".join(f"{name}={source}" for name, source in self.sources.items()) or "built-in ones",
            "limit": "none" if self.limit is None else f"the first {self.limit} images of each data set",
            "device": device,
            "versions": f"tta_restore {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        }
        content = {
            "table": table.name, "title": table.title, "source": table.source, "facts": facts, "notes": list(notes),
            "missing": list(outcome.missing), "failed": dict(outcome.failed), "unchanged": dict(same),
            "values": [asdict(entry) | {"difference": entry.difference} for entry in outcome.entries],
            "costs": {row: {"published": asdict(p), "measured": asdict(m)} for row, (p, m) in outcome.costs.items()},
        }  # fmt: skip
        with atomic_file(out / "results.json") as partial:
            partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        plot = ""
        if table.stream and everything.records:
            colors = {row: plots.PALETTE[order % len(plots.PALETTE)] for order, row in enumerate(records)}
            plot = plots.psnr_over_stream(everything, list(records), colors)
        if self.limit is not None:
            notes = [f"Only the first {self.limit} images of each data set: not comparable.", *notes]
        remarks = {row.name: row.reason for row in table.rows if row.reason} | dict(same)
        page = Comparison(
            table.title, f"{outcome}.", table.source, side_by_side(outcome), remarks, self._samples(records), plot,
            outcome.missing, outcome.failed, notes, facts,
        )  # fmt: skip
        write_comparison(out / "report.html", page)


def cost_of(restorer: Restorer, size: tuple[int, int]) -> Cost:
    """Return parameters and MACs of a network for one image of a size (H, W); None for what cannot be counted."""
    module = restorer.module
    if not isinstance(module, torch.nn.Module):
        return Cost()
    parameters = sum(p.numel() for p in module.parameters()) / 1e6
    spec = restorer.spec
    channels = 3 if spec is None else spec.in_channels or 3
    shape = [1, channels, *size] if spec is None or spec.frames == 1 else [1, spec.frames or 5, channels, *size]
    image = torch.empty(shape, device="meta")
    try:
        module = copy.deepcopy(module).to("meta")  # the topology: kernels of a device may merge layers
        gmacs = count_macs(module, *[image] * (3 if takes_views(restorer) else 1)).with_additions / 1e9
    except Exception:  # control flow that depends on values, ops without a fake kernel: code of any project
        gmacs = None
    return Cost(parameters, gmacs)


def _published_cost(row: Row) -> Cost:
    return Cost(row.parameters, row.gmacs, row.seconds)


def _crop(image: Tensor) -> Tensor:
    """Return the center of (C, H, W)."""
    top, left = (max(side - _SIDE, 0) // 2 for side in image.shape[-2:])
    return image[..., top : top + _SIDE, left : left + _SIDE].contiguous()


def _write_clips(path: Path, records: Sequence[FrameRecord]) -> None:
    """Write the means of every video, a row each."""
    groups: dict[tuple[str, str, str], list[FrameRecord]] = {}
    for record in records:
        groups.setdefault((record.method, record.family, record.photo), []).append(record)
    with atomic_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "data set", "video", "frames", "psnr", "ssim"])
        for (row, data, clip), own in groups.items():
            means = [sum(getattr(r, name) for r in own) / len(own) for name in ("psnr", "ssim")]
            writer.writerow([row, data, clip, len(own), *means])
