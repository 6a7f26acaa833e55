"""Run methods on lens streams, print the tables, and write report, CSV and JSON into one folder."""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tta_restore import __version__
from tta_restore._core.progress import ProgressBar, no_progress
from tta_restore.adapters import Adapter
from tta_restore.data.synthetic.defocus import DefocusFrame
from tta_restore.engine.evaluate.results import FrameRecord, StreamResult
from tta_restore.engine.evaluate.stream import StreamMethod, evaluate_stream
from tta_restore.engine.report.images import to_bytes
from tta_restore.engine.report.page import (
    KernelSample,
    MethodNote,
    Report,
    Sample,
    lens_name,
    require_packages,
    worst_frame_rule,
    write_report,
)
from tta_restore.engine.report.table import text_table
from tta_restore.engine.run.usage import UsageError
from tta_restore.metrics import ImageMetrics

__all__ = ["Comparison", "Contender", "compare"]


@dataclass(frozen=True)
class Contender:
    """Row of a comparison of lenses.

    Args:
        name: of the row.
        build: seed -> a fresh method.
        description: what it does, for the report.
        color: in plots, a CSS color.
    """

    name: str
    build: Callable[[int], StreamMethod]
    description: str
    color: str = ""


_MEASURES = ImageMetrics()
_PACKAGES = ("torchmetrics", "jinja2", "matplotlib")


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison: its rows, streams and baseline.

    Args:
        title: of the report.
        contenders: the rows.
        baseline: row that gains are measured against.
        contrasts: pairs of rows that the report opens with.
        curves: rows drawn in the plots.
        shown: row whose images are shown after, and whose worst frame is the failure case.
        before: row whose images are shown before.
        estimate: blurry (1, 3, H, W) and true kernels (G, G, K, K) -> estimated kernels of the same shape; the true
            ones give the shape alone. `None` leaves the kernels out.
        limits: sentences on how the numbers must be read.
        group: what the families of frames are.
        measures: how outputs are measured.
    """

    title: str
    contenders: Sequence[Contender]
    baseline: str
    contrasts: Sequence[tuple[str, str]]
    curves: Sequence[str]
    shown: str
    before: str
    estimate: Callable[[Tensor, Tensor], Tensor] | None = None
    limits: Sequence[str] = field(default_factory=tuple)
    group: str = "lens"
    measures: ImageMetrics = _MEASURES

    def only(self, names: Sequence[str]) -> Comparison:
        """Return the same with some of the rows; the baseline is always one of them.

        Raises:
            UsageError: a name is no row.
        """
        there = [contender.name for contender in self.contenders]
        unknown = [name for name in names if name not in there]
        if unknown:
            raise UsageError(f"no row {unknown[0]!r}; there are: {', '.join(there)}")
        kept = {*names, self.baseline}
        shown = self.shown if self.shown in kept else next(name for name in [*names, self.baseline])
        return Comparison(
            title=self.title,
            contenders=[contender for contender in self.contenders if contender.name in kept],
            baseline=self.baseline,
            contrasts=[pair for pair in self.contrasts if set(pair) <= kept],
            curves=[name for name in there if name in kept],
            shown=shown,
            before=self.before if self.before in kept else self.baseline,
            estimate=self.estimate,
            limits=self.limits,
            group=self.group,
            measures=self.measures,
        )


def compare(
    comparison: Comparison,
    streams: Mapping[int, Sequence[DefocusFrame]],
    out: str | Path,
    *,
    processes: int = 1,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> StreamResult:
    """Run the comparison on every stream (seed -> frames), print tables, write `report.html`, `frames.csv` and
    `results.json` into `out`, and return the result.

    Args:
        comparison: the rows; with several processes, what builds them can be pickled.
        streams: seed -> frames.
        out: folder.
        processes: how many share the streams and the threads of torch. They import the main module of a script, which
            runs its code under `if __name__ == "__main__"` then.
        progress: show progress on stderr.
        say: receives the text for the user.

    Raises:
        UsageError: a package for metrics or report is missing; said before the work, not after it.
    """
    require_packages(*_PACKAGES, load=processes == 1)
    started = time.perf_counter()
    kinds = dict.fromkeys((c.name for c in comparison.contenders), sum(map(len, streams.values())))
    total, parallel = sum(kinds.values()), min(processes, len(streams))
    with ProgressBar(total=total, kinds=kinds, parallel=parallel, unit="frame", shown=progress, leave=False) as bar:
        if processes == 1:
            measured = [
                _measure(comparison, seed, frames, tick=lambda method: bar.update(kind=method))
                for seed, frames in streams.items()
            ]
        else:
            measured = _measure_in_processes(comparison, streams, processes, bar)
    outputs = {key: output for part in measured for key, output in part.outputs.items()}
    plans = {method: plan for part in reversed(measured) for method, plan in part.plans.items()}
    merged = StreamResult.merge([part.result for part in measured])
    seconds = time.perf_counter() - started
    facts = _facts(streams, seconds)
    result = StreamResult(merged.records, merged.settings | facts)
    say(text_table(result, comparison.baseline, group=comparison.group))
    out = Path(out)
    report = Report(
        title=comparison.title,
        result=result,
        baseline=comparison.baseline,
        contrasts=comparison.contrasts,
        curves=comparison.curves,
        notes={c.name: MethodNote(c.description, plans.get(c.name, ""), c.color) for c in comparison.contenders},
        samples=_samples(comparison, result, streams, outputs),
        kernels=_kernels(comparison, result, streams),
        facts=facts,
        limits=comparison.limits,
        group=comparison.group,
    )
    write_report(out / "report.html", report)
    result.to_csv(out / "frames.csv")
    result.to_json(out / "results.json", comparison.baseline)
    say(f"\nReport: {out / 'report.html'}   every frame: {out / 'frames.csv'}   numbers: {out / 'results.json'}")
    return result


@dataclass(frozen=True)
class _Measured:
    """Records of a stream, outputs as bytes by (method, seed, frame), and the plan of each adapter."""

    result: StreamResult
    outputs: dict[tuple[str, int, int], Tensor]
    plans: dict[str, str]


def _measure(
    comparison: Comparison,
    seed: int,
    frames: Sequence[DefocusFrame],
    *,
    tick: Callable[[str], object],
) -> _Measured:
    """Measure a stream; ``tick`` is called after each frame with the name of the method."""
    outputs: dict[tuple[str, int, int], Tensor] = {}
    plans: dict[str, str] = {}

    def look(record: FrameRecord, output: Tensor, method: StreamMethod) -> None:
        outputs[record.method, record.stream, record.index] = to_bytes(output[0])
        if record.method not in plans and isinstance(method, Adapter):
            plan = method.plan()
            plans[record.method] = str(plan) if plan.tensors else ""
        tick(record.method)

    factories = {c.name: (lambda build=c.build: build(seed)) for c in comparison.contenders}
    result = evaluate_stream(
        frames, factories, stream=seed, progress=False, on_frame=look, measures=comparison.measures
    )
    return _Measured(result, outputs, plans)


def _measure_in_processes(
    comparison: Comparison, streams: Mapping[int, Sequence[DefocusFrame]], processes: int, bar: ProgressBar
) -> list[_Measured]:
    """Measure each stream in a process of a pool, in their order; children that are left are ended."""
    context = multiprocessing.get_context("spawn")
    ticks = context.Queue()
    settings = (ticks, max(1, torch.get_num_threads() // processes))
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, context, _begin, settings) as pool:
        try:
            tasks = {seed: pool.submit(_measure_for_parent, comparison, seed, part) for seed, part in streams.items()}
            pending = set(tasks.values())
            require_packages(*_PACKAGES)  # their imports take seconds, in which the children work
            while pending:
                done, pending = wait(pending, 0.2, FIRST_EXCEPTION)
                for task in done:
                    task.result()  # its error ends the others
                while not ticks.empty():
                    method, seconds = ticks.get()
                    bar.update(kind=method, seconds=seconds)
        except BaseException:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise
    return [
        _Measured(part.result, {k: torch.from_numpy(v) for k, v in part.outputs.items()}, part.plans)
        for part in (tasks[seed].result() for seed in streams)
    ]


_ticks: Any = None  # in a child: the queue that takes the method and the seconds of each frame


def _begin(ticks: Any, threads: int) -> None:
    global _ticks
    _ticks = ticks
    torch.set_num_threads(threads)


def _measure_for_parent(comparison: Comparison, seed: int, frames: Sequence[DefocusFrame]) -> _Measured:
    """Measure a stream in a child; arrays need no memory that both share."""
    latest = time.perf_counter()

    def tick(method: str) -> None:
        nonlocal latest
        now = time.perf_counter()
        _ticks.put((method, now - latest))
        latest = now

    with no_progress():
        found = _measure(comparison, seed, frames, tick=tick)
    outputs: dict[Any, Any] = {key: output.numpy() for key, output in found.outputs.items()}
    return _Measured(found.result, outputs, found.plans)


def _samples(
    comparison: Comparison,
    result: StreamResult,
    streams: Mapping[int, Sequence[DefocusFrame]],
    outputs: Mapping[tuple[str, int, int], Tensor],
) -> list[Sample]:
    """Return the frame of median gain per lens, chosen by rule, and the worst frame of all."""
    shown, baseline = comparison.shown, comparison.baseline

    def sample(record: FrameRecord, rule: str, before: str, *, failure: bool = False) -> Sample:
        where = (record.stream, record.index)
        place = f"frame {record.position + 1} after the {comparison.group} changed"
        return Sample(
            title=f"{lens_name(record.family)}: {record.photo}, {place}",
            rule=rule,
            pictures={method: outputs[method, *where] for method in result.methods},
            sharp=streams[record.stream][record.index].sharp,
            psnr={r.method: r.psnr for r in result.records if (r.stream, r.index) == where},
            before=before,
            after=shown,
            failure=failure,
        )

    samples = []
    for family in result.families:
        ranked = sorted(result.gains(shown, baseline, family=family), key=lambda pair: pair[1])
        record, gain = ranked[(len(ranked) - 1) // 2]
        place = f"The frame of this {comparison.group} on which"
        rule = f"{place} {shown} has its median gain over {baseline}: {gain:+.2f} dB."
        samples.append(sample(record, rule, comparison.before))
    record, gain = result.worst(shown, baseline)
    rule = f"{worst_frame_rule(shown, baseline)} Here: {gain:+.2f} dB."
    samples.append(sample(record, rule, baseline, failure=True))
    return samples


def _kernels(
    comparison: Comparison, result: StreamResult, streams: Mapping[int, Sequence[DefocusFrame]]
) -> list[KernelSample]:
    """Return the last frame of the first stream per lens, a choice that cannot flatter the estimate."""
    if comparison.estimate is None:
        return []
    last = {frame.family: frame for frame in next(iter(streams.values()))}
    return [
        KernelSample(lens_name(family), frame.kernels, comparison.estimate(frame.blurry[None], frame.kernels))
        for family, frame in last.items()
        if family in result.families
    ]


def _facts(streams: Mapping[int, Sequence[DefocusFrame]], seconds: float) -> dict[str, str]:
    frames = [frame for stream in streams.values() for frame in stream]
    height, width = frames[0].sharp.shape[-2:]
    return {
        "command": " ".join([Path(sys.argv[0]).name.replace("__main__.py", "tta-restore"), *sys.argv[1:]]),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seeds": ", ".join(map(str, streams)),
        "frames": f"{len(frames)} of {width}x{height} pixels",
        "photographs": ", ".join(dict.fromkeys(frame.photo for frame in frames)),
        "protocol": "RGB floats clamped to [0, 1], no border cut; SSIM with an 11x11 Gaussian window",
        "versions": f"tta_restore {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "seconds in all": f"{seconds:.1f}",
    }
