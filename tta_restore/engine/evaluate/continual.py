"""The continual protocol: data sets one after the other, no word about where one ends, every method side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tta_restore import metrics
from tta_restore._core.processes import Processes
from tta_restore.data.datasets.layouts import folder_frames
from tta_restore.engine.evaluate.results import FrameRecord, StreamResult
from tta_restore.engine.evaluate.rows import Row, row_of
from tta_restore.engine.evaluate.runner import claim, open_lpips, run_resumable, task_of
from tta_restore.engine.report.page import MethodNote, Report, require_packages, write_report
from tta_restore.engine.report.samples import INPUT, KeptPictures
from tta_restore.engine.report.table import text_table
from tta_restore.engine.run.device import resolve_device
from tta_restore.engine.run.extensions import find_metrics
from tta_restore.engine.run.methods import ImageMethod, create_method, expect_one_frame, find_method
from tta_restore.engine.run.models import load_restorer
from tta_restore.engine.run.names import METHODS
from tta_restore.engine.run.usage import UsageError

__all__ = ["ALL", "BASELINE", "LIMITS", "run_continual"]

BASELINE = "self-ensemble"
#: Rows of ``--methods all``: every method, and the official variants next to ours.
ALL = [
    *METHODS,
    "causiam[variant=ours]",
    *(f"{name}[variant=official]" for name in ("tent", "cotta", "sar", "eata", "rotta")),
]
LIMITS = (
    "Methods are shown as published, or in the form that makes sense for pictures; a method that loses is left in.",
    "Self-ensemble is the baseline: methods that learn from the agreement of views also give the mean of views.",
)


def run_continual(
    domains: Mapping[str, str | Path],
    out: str | Path,
    *,
    model: str = "generalist",
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    methods: Sequence[str] | None = None,
    rounds: int = 1,
    limit: int | None = None,
    lpips_weights: str | Path | None = None,
    more_metrics: Sequence[str] | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> StreamResult | None:
    """Run methods over data sets one after the other, print tables, and write a report, CSV and JSON.

    Nothing is reset between data sets. Under torchrun the processes share the methods, and all but the first return
    None. Images without an original are adapted on and not measured. An interrupted run
    is continued when it is called again with the same ``out``.

    Args:
        domains: name -> folder, in the order of the protocol, see :func:`~.layouts.folder_frames`.
        out: folder for report, tables and the state of the run.
        model: what :func:`tta_restore.engine.run.models.load_restorer` takes, like the next two.
        checkpoint: weights of a registered model.
        config: keywords of its builder.
        methods: rows, see :func:`tta_restore.engine.evaluate.rows.row_of`; None for :data:`ALL`.
        rounds: how often the whole sequence is shown.
        limit: first images of each data set only.
        lpips_weights: see :class:`tta_restore.metrics.Lpips`; without them LPIPS is left out, and said.
        more_metrics: see :func:`tta_restore.engine.run.extensions.find_metrics`.
        seed: of the adapters.
        device: where to run; None takes a CUDA device where there is one.
        progress: show a bar on stderr where it is a terminal.
        say: takes the text for the user.

    Raises:
        UsageError: a method, folder or package is missing, or no image has an original; nothing was run.
    """
    require_packages("torchmetrics", "jinja2", "matplotlib")
    names = ALL if methods is None else list(dict.fromkeys([BASELINE, *methods]))
    rows = [row_of(name) for name in names]
    for row in rows:
        find_method(row.method.name)
    device = resolve_device(device)
    try:
        frames = folder_frames(domains, rounds=rounds, limit=limit)
        restorer = load_restorer(model, device=device, checkpoint=checkpoint, config=config)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    if all(frame.sharp_path is None for frame in frames):
        raise UsageError(
            f"{', '.join(domains)}: no originals, nothing to measure; `tta-restore restore --method` writes the results"
        )
    out = Path(out)
    lpips, without = open_lpips(lpips_weights, device)
    measures = metrics.ImageMetrics(lpips=lpips, more=find_metrics(more_metrics))
    task = task_of(frames, measures, model=model, checkpoint=checkpoint, config=config, seed=seed)
    expect_one_frame(restorer)
    kept = KeptPictures(frames, out / "run")
    options: dict[str, Any] = {"measures": measures, "device": device, "progress": progress}

    def run(row: Row, method: ImageMethod) -> list[FrameRecord]:
        look = partial(kept.keep, row.name)
        return run_resumable(frames, row.name, method, out / "run", file=row.file, look=look, **options)

    with Processes.join(device) as processes:
        if processes.first:
            claim(out / "run", task)
        processes.wait()
        if processes.count > 1:  # every process runs some rows; the first one then reads all of them
            for row in rows[processes.rank :: processes.count]:
                with suppress(UsageError):
                    run(row, create_method(row.method, restorer, seed=seed))
            processes.wait()
            if not processes.first:
                return None
    records: list[FrameRecord] = []
    notes: dict[str, MethodNote] = {}
    for row in rows:
        name = row.name
        try:
            method = create_method(row.method, restorer, seed=seed)
        except UsageError as error:
            say(f"left out: {error}")  # such as CauSiam without CLIP's weights
            continue
        plan = method.plan()
        notes[name] = MethodNote(
            (type(method.adapter).__doc__ or "").splitlines()[0], str(plan) if plan.tensors else ""
        )
        records += run(row, method)
    settings: dict[str, Any] = {
        "measures": measures.as_dict(),
        "model": model,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "rounds": rounds,
        "seed": seed,
    }
    result = StreamResult(tuple(records), settings | {"domains": {name: str(path) for name, path in domains.items()}})
    say("\n".join([text_table(result, BASELINE, group="data set"), *without]))
    facts = {"model": model, "data": ", ".join(domains), "rounds": str(rounds), "seed": str(seed), "device": device}
    shown = [name for name in notes if name != BASELINE]
    contrasts = [(name, BASELINE) for name in shown if name in ("recommended", "reblur-pairs", "causiam")]
    limits = [*LIMITS, *without]
    after = next((name for name in ("recommended", *shown) if name in notes), BASELINE)
    samples = kept.samples(result, before="source" if "source" in notes else INPUT, after=after)
    options = {"facts": facts, "limits": limits, "group": "data set"}
    report = Report("The continual protocol", result, BASELINE, contrasts, shown, notes, samples, **options)
    write_report(out / "report.html", report)
    result.to_csv(out / "frames.csv")
    result.to_json(out / "results.json", BASELINE)
    say(f"\nReport: {out / 'report.html'}   every frame: {out / 'frames.csv'}   numbers: {out / 'results.json'}")
    return result
