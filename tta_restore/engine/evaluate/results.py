"""Records of frames, means with bootstrap intervals, and tables of the results of several methods."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tta_restore.data.io.atomic import atomic_file

__all__ = [
    "IDENTICAL",
    "QUANTITIES",
    "FrameRecord",
    "Interval",
    "Quantity",
    "StreamResult",
    "bootstrap_mean",
    "written",
]

#: PSNR in dB that an output counts which equals its original, where the quotient is infinite.
IDENTICAL = 100.0


@dataclass(frozen=True)
class Interval:
    """A mean with the range that holds `level` of the bootstrap means, and what was drawn with replacement."""

    mean: float
    low: float
    high: float
    count: int
    over: str
    level: float = 0.95

    @property
    def half_width(self) -> float:
        """Return half the length of the range."""
        return (self.high - self.low) / 2


def bootstrap_mean(
    values: Sequence[float],
    *,
    blocks: Sequence[Hashable] | None = None,
    over: str = "frames",
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of `values`.

    With `blocks`, whole blocks are drawn: frames of one lens share its difficulty and the state of the adapter, so
    intervals that treat them as independent are too narrow. A single block (or value) has no interval, nor
    have values that are not finite: its ends are NaN.

    Args:
        values: one number per frame.
        blocks: one label per value; values of equal labels are drawn together.
        over: what is drawn, for the reader of the result.
        draws: number of bootstrap samples.
        level: share of the bootstrap means inside the interval.
        seed: of the draws; the same values and seed give the same interval.

    Raises:
        ValueError: no values, or not one block label per value.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"bootstrap_mean: expected a sequence of at least one value, got shape {array.shape}")
    from scipy.stats import bootstrap

    labels = list(range(array.size)) if blocks is None else list(blocks)
    if len(labels) != array.size:
        raise ValueError(f"bootstrap_mean: expected one block per value ({array.size}), got {len(labels)}")
    members: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    mean = float(array.mean())
    if len(members) < 2 or not np.isfinite(array).all():
        return Interval(mean, float("nan"), float("nan"), len(members), over, level)
    sums = np.array([array[rows].sum() for rows in members.values()])
    sizes = np.array([len(rows) for rows in members.values()])
    found = bootstrap(
        (sums, sizes),
        lambda s, n, axis=-1: s.sum(axis) / n.sum(axis),
        paired=True,
        n_resamples=draws,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), len(members), over, level)


@dataclass(frozen=True)
class FrameRecord:
    """Result of one method on one frame.

    Args:
        method: its name.
        stream: which stream (its seed) the frame belongs to.
        index: of the frame in the stream.
        family: of the lens.
        photo: the photograph.
        position: frames since the lens changed.
        psnr: of the output, dB.
        ssim: of the output.
        wall_seconds: time the call took.
        cpu_seconds: time it took on all cores together.
        report: what the method said about its step (loss, updated, skipped_because, ...), scalars only.
        mae: mean absolute error of the output.
        lpips: perceptual distance; None where it was not measured.
        metrics: further metrics of a protocol, such as those of the input or against a warped original.
    """

    method: str
    stream: int
    index: int
    family: str
    photo: str
    position: int
    psnr: float
    ssim: float
    wall_seconds: float
    cpu_seconds: float
    report: dict[str, Any] = field(default_factory=dict)
    mae: float | None = None
    lpips: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def value(self, quantity: str) -> Any:
        """Return a quantity by name: a field, or an entry of ``metrics``."""
        return self.metrics[quantity] if quantity in self.metrics else getattr(self, quantity)


Quantity = str
"""Measured quantity: one of :data:`QUANTITIES`, or the name of a metric that was asked for."""

#: Quantity -> how it is written: name, unit, digits, and whether more is better.
QUANTITIES: dict[Quantity, tuple[str, str, int, bool]] = {
    "psnr": ("PSNR", "dB", 2, True),
    "ssim": ("SSIM", "", 3, True),
    "mae": ("MAE", "", 4, False),
    "lpips": ("LPIPS", "", 3, False),
}


def written(quantity: Quantity) -> tuple[str, str, int, bool]:
    """Return how a quantity is written, see :data:`QUANTITIES`; of a user's metric more counts as better."""
    return QUANTITIES.get(quantity, (quantity, "", 4, True))


@dataclass(frozen=True)
class StreamResult:
    """The records of several methods on the same frames, and the questions that can be put to them.

    Args:
        records: one per method and frame.
        settings: how they came about, written along with them.
    """

    records: tuple[FrameRecord, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def merge(results: Iterable[StreamResult]) -> StreamResult:
        """Merge the results of several streams, such as seeds, with different stream numbers.

        Raises:
            ValueError: a frame occurs twice.
        """
        results = list(results)
        records = tuple(record for result in results for record in result.records)
        keys = {(r.method, r.stream, r.index) for r in records}
        if len(keys) != len(records):
            raise ValueError("StreamResult.merge: the same method and frame occur twice; give each stream its number")
        return StreamResult(records, results[0].settings if results else {})

    @property
    def methods(self) -> list[str]:
        """Names in the order in which they were run."""
        return list(dict.fromkeys(r.method for r in self.records))

    @property
    def families(self) -> list[str]:
        """Lens families in the order in which they appeared."""
        return list(dict.fromkeys(r.family for r in self.records))

    @property
    def quantities(self) -> list[Quantity]:
        """Return the names of the measured quantities, those of further metrics last."""
        own = [q for q in QUANTITIES if all(getattr(r, q) is not None for r in self.records)]
        measures = self.settings.get("measures") or {}
        return own + [q for q in measures.get("more", ()) if all(q in r.metrics for r in self.records)]

    def of(self, method: str, family: str | None = None) -> list[FrameRecord]:
        """Return the records of one method, optionally of one family.

        Raises:
            ValueError: there are none.
        """
        found = [r for r in self.records if r.method == method and family in (None, r.family)]
        if not found:
            raise ValueError(
                f"StreamResult: no records of {method!r}{f' on {family!r}' if family else ''}; "
                f"methods are {self.methods}, families {self.families}"
            )
        return found

    def value(self, method: str, quantity: Quantity = "psnr", family: str | None = None) -> Interval:
        """Return the mean of a quantity over frames, with its interval over frames."""
        return bootstrap_mean([r.value(quantity) for r in self.of(method, family)])

    def gains(
        self, method: str, baseline: str, quantity: Quantity = "psnr", family: str | None = None
    ) -> list[tuple[FrameRecord, float]]:
        """Return every frame of a method with its gain over the baseline on that frame."""
        reference = {(r.stream, r.index): r.value(quantity) for r in self.of(baseline, family)}
        return [(r, r.value(quantity) - reference[r.stream, r.index]) for r in self.of(method, family)]

    def gain(
        self,
        method: str,
        baseline: str,
        quantity: Quantity = "psnr",
        family: str | None = None,
        *,
        over: Literal["frames", "blocks"] = "frames",
    ) -> Interval:
        """Return the mean gain over the baseline with an interval over frames, or over blocks of (stream, family).

        Frames of a block share lens, adapter state and seed; the interval over blocks is the more honest one.
        """
        pairs = self.gains(method, baseline, quantity, family)
        values = [gain for _, gain in pairs]
        if over == "blocks":
            blocks = [(r.stream, r.family) for r, _ in pairs]
            return bootstrap_mean(values, blocks=blocks, over="blocks of stream x family")
        return bootstrap_mean(values)

    def gain_by_position(self, method: str, baseline: str) -> list[tuple[int, Interval]]:
        """Return the mean PSNR gain of the first, second, ... frame after the lens changed."""
        groups: dict[int, list[float]] = {}
        for record, gain in self.gains(method, baseline):
            groups.setdefault(record.position, []).append(gain)
        return [(position, bootstrap_mean(groups[position])) for position in sorted(groups)]

    def worst_window(self, method: str, baseline: str, length: int) -> tuple[int, float]:
        """Return the start of the ``length`` consecutive frames with the least mean gain, and that gain in dB.

        Raises:
            ValueError: no stream is that long.
        """
        worst: tuple[int, float] | None = None
        streams: dict[int, list[float]] = {}
        for record, gain in sorted(self.gains(method, baseline), key=lambda pair: pair[0].index):
            streams.setdefault(record.stream, []).append(gain)
        for gains in streams.values():
            for start in range(len(gains) - length + 1):
                mean = sum(gains[start : start + length]) / length
                if worst is None or mean < worst[1]:
                    worst = start, mean
        if worst is None:
            raise ValueError(f"StreamResult: expected a stream of at least {length} frames")
        return worst

    def share_above(self, method: str, baseline: str) -> float:
        """Share of frames on which a method has the higher PSNR."""
        pairs = self.gains(method, baseline)
        return sum(gain > 0 for _, gain in pairs) / len(pairs)

    def cost(self, method: str) -> dict[str, float]:
        """Seconds per frame: means of processor time (all cores) and of time on the clock, and the longest frame."""
        records = self.of(method)
        return {
            "cpu_seconds": sum(r.cpu_seconds for r in records) / len(records),
            "wall_seconds": sum(r.wall_seconds for r in records) / len(records),
            "longest_wall_seconds": max(r.wall_seconds for r in records),
        }

    def worst(self, method: str, baseline: str, family: str | None = None) -> tuple[FrameRecord, float]:
        """Return the frame on which a method loses most (or gains least) against the baseline, in PSNR."""
        return min(self.gains(method, baseline, family=family), key=lambda pair: pair[1])

    def summary(self, baseline: str) -> dict[str, Any]:
        """Return all numbers per method as JSON values."""
        rows = {}
        for method in self.methods:
            row: dict[str, Any] = {"cost": self.cost(method)}
            for quantity in self.quantities:
                row[quantity] = {
                    "all": asdict(self.value(method, quantity)),
                    **{family: asdict(self.value(method, quantity, family)) for family in self.families},
                }
                row[f"{quantity}_gain"] = {
                    "all": asdict(self.gain(method, baseline, quantity)),
                    "all, over blocks": asdict(self.gain(method, baseline, quantity, over="blocks")),
                    **{family: asdict(self.gain(method, baseline, quantity, family)) for family in self.families},
                }
            row["psnr_gain_by_position"] = {p: asdict(g) for p, g in self.gain_by_position(method, baseline)}
            row["share_of_frames_above_baseline"] = self.share_above(method, baseline)
            rows[method] = row
        return {"baseline": baseline, "families": self.families, "methods": rows}

    def to_csv(self, path: str | Path) -> None:
        """Write one row per record; what methods reported goes into columns of its own."""
        extra = sorted({name for record in self.records for name in record.report})
        more = sorted({name for record in self.records for name in record.metrics})
        names = [name for name in FrameRecord.__dataclass_fields__ if name not in ("report", "metrics")]
        with atomic_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*names, *more, *(f"report.{name}" for name in extra)])
            for record in self.records:
                own = [*(getattr(record, n) for n in names), *(record.metrics.get(n, "") for n in more)]
                writer.writerow([*own, *(record.report.get(n, "") for n in extra)])

    def to_json(self, path: str | Path, baseline: str) -> None:
        """Write settings, summary against the baseline, and all records."""
        content = {
            "settings": self.settings,
            "summary": self.summary(baseline),
            "records": [asdict(record) for record in self.records],
        }
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(_finite(content), indent=1), encoding="utf-8")


def _finite(content: Any) -> Any:
    """Return the same content without NaN and infinity, which JSON has not: they become `None` and strings."""
    if isinstance(content, dict):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None if math.isnan(content) else str(content)
    return content
