"""Compare methods on streams: means per lens family, gains with intervals, what happens after a switch, and cost."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from tta_restore import metrics
from tta_restore.data.atomic_file import atomic_file
from tta_restore.engine.bootstrap import Interval, bootstrap_mean
from tta_restore.engine.stream import Frame, FrameRecord, Method, run_stream

Quantity = Literal["psnr", "ssim", "mae", "lpips"]

#: Quantity -> how it is written: name, unit, digits, and whether more is better.
QUANTITIES: dict[Quantity, tuple[str, str, int, bool]] = {
    "psnr": ("PSNR", "dB", 2, True),
    "ssim": ("SSIM", "", 3, True),
    "mae": ("MAE", "", 4, False),
    "lpips": ("LPIPS", "", 3, False),
}


def evaluate_stream(
    frames: Sequence[Frame],
    methods: Mapping[str, Callable[[], Method]],
    *,
    stream: int = 0,
    progress: bool = True,
    on_frame: Callable[[FrameRecord, Tensor, Method], None] | None = None,
    measures: metrics.Measures = metrics.Measures(),  # noqa: B008 (frozen)
) -> StreamResult:
    """Run every method over the frames; the arguments are those of :func:`run_stream`.

    Raises:
        ValueError: no frames or no methods, or an output of another shape than the sharp original.
    """
    records = run_stream(frames, methods, stream=stream, progress=progress, on_frame=on_frame, measures=measures)
    return StreamResult(tuple(records), settings={"measures": measures.as_dict()})


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
        """One result of several streams, such as seeds; they must have different stream numbers.

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
        """What was measured of every frame."""
        return [q for q in QUANTITIES if all(getattr(r, q) is not None for r in self.records)]

    def of(self, method: str, family: str | None = None) -> list[FrameRecord]:
        """The records of one method, optionally of one family.

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
        """Mean of a quantity over frames, with its interval over frames."""
        return bootstrap_mean([getattr(r, quantity) for r in self.of(method, family)])

    def gains(
        self, method: str, baseline: str, quantity: Quantity = "psnr", family: str | None = None
    ) -> list[tuple[FrameRecord, float]]:
        """Every frame of a method with its gain over the baseline on that frame."""
        reference = {(r.stream, r.index): getattr(r, quantity) for r in self.of(baseline, family)}
        return [(r, getattr(r, quantity) - reference[r.stream, r.index]) for r in self.of(method, family)]

    def gain(
        self,
        method: str,
        baseline: str,
        quantity: Quantity = "psnr",
        family: str | None = None,
        *,
        over: Literal["frames", "blocks"] = "frames",
    ) -> Interval:
        """Mean gain over the baseline with an interval over frames, or over blocks of (stream, family).

        Frames of a block share lens, adapter state and seed; the interval over blocks is the more honest one.
        """
        pairs = self.gains(method, baseline, quantity, family)
        values = [gain for _, gain in pairs]
        if over == "blocks":
            blocks = [(r.stream, r.family) for r, _ in pairs]
            return bootstrap_mean(values, blocks=blocks, over="blocks of stream x family")
        return bootstrap_mean(values)

    def gain_by_position(self, method: str, baseline: str) -> list[tuple[int, Interval]]:
        """Mean PSNR gain of the first, second, ... frame after the lens changed."""
        groups: dict[int, list[float]] = {}
        for record, gain in self.gains(method, baseline):
            groups.setdefault(record.position, []).append(gain)
        return [(position, bootstrap_mean(groups[position])) for position in sorted(groups)]

    def worst_window(self, method: str, baseline: str, length: int) -> tuple[int, float]:
        """Where ``length`` frames in a row gain least (lose most) over the baseline in the mean, and that mean in dB.

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
        """The frame on which a method loses most (or gains least) against the baseline, in PSNR."""
        return min(self.gains(method, baseline, family=family), key=lambda pair: pair[1])

    def summary(self, baseline: str) -> dict[str, Any]:
        """All the numbers, per method, as they go into JSON."""
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
        names = [name for name in FrameRecord.__dataclass_fields__ if name != "report"]
        with atomic_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*names, *(f"report.{name}" for name in extra)])
            for record in self.records:
                writer.writerow([*(getattr(record, n) for n in names), *(record.report.get(n, "") for n in extra)])

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
    """The same content without NaN and infinity, which JSON cannot say: they become `None` and words."""
    if isinstance(content, dict):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None if math.isnan(content) else str(content)
    return content
