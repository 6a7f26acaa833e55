"""The continual protocol: data sets one after the other, no word about where one ends, every method side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tta_restore import metrics
from tta_restore.data.folders import FolderFrame, folder_frames
from tta_restore.engine.continual_pictures import INPUT, KeptPictures
from tta_restore.engine.evaluate import StreamResult
from tta_restore.engine.methods import METHODS, ImageMethod, create_method
from tta_restore.engine.model_source import load_restorer
from tta_restore.engine.report import MethodNote, Report, require_packages, write_report
from tta_restore.engine.stream import Frame, FrameRecord, measure
from tta_restore.engine.table import text_table
from tta_restore.engine.usage import UsageError

BASELINE = "self-ensemble"
_SAVE_EVERY = 20
LIMITS = (
    "Methods are shown as published, or in the form that makes sense for pictures; a method that loses is left in.",
    "Self-ensemble is the baseline: methods that learn from the agreement of views also give the mean of views.",
)


def run_continual(
    domains: Mapping[str, str | Path],
    out: str | Path,
    *,
    model: str = "generalist",
    methods: Sequence[str] | None = None,
    rounds: int = 1,
    limit: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> StreamResult:
    """What ``tta-restore evaluate --data`` does: run methods over data sets, print tables, write report, CSV and JSON.

    Nothing is reset between data sets. Pictures without an original are adapted on and not measured. An interrupted run
    is continued when it is called again with the same ``out``.

    Args:
        domains: name -> folder, in the order of the protocol, see :func:`tta_restore.data.folders.folder_frames`.
        out: folder for report, tables and the state of the run.
        model: what :func:`tta_restore.engine.model_source.load_restorer` takes.
        methods: names in :data:`tta_restore.engine.methods.METHODS`; None for all of them.
        rounds: how often the whole sequence is shown.
        limit: first pictures of each data set only.
        seed: of the adapters.
        device: where to run; None takes a CUDA device where there is one.
        progress: show a bar on stderr where it is a terminal.
        say: takes the text for the user.

    Raises:
        UsageError: a method, folder or package is missing; nothing was run.
    """
    require_packages("torchmetrics", "jinja2", "matplotlib")
    names = list(METHODS) if methods is None else list(dict.fromkeys([BASELINE, *methods]))
    if unknown := [name for name in names if name not in METHODS]:
        raise UsageError(f"no method {unknown[0]!r}; there are: {', '.join(METHODS)}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        frames = folder_frames(domains, rounds=rounds, limit=limit)
        restorer = load_restorer(model, device=device)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    out = Path(out)
    task = {"model": model, "seed": seed, "frames": [[str(frame.blurry_path), frame.family] for frame in frames]}
    _claim(out / "run", task)
    kept = KeptPictures(frames, out / "run")
    records: list[FrameRecord] = []
    notes: dict[str, MethodNote] = {}
    for name in names:
        try:
            method = create_method(name, restorer, seed=seed)
        except UsageError as error:
            say(f"left out: {error}")  # such as CauSiam without CLIP's weights
            continue
        plan = method.plan()
        notes[name] = MethodNote(
            (type(method.adapter).__doc__ or "").splitlines()[0], str(plan) if plan.tensors else ""
        )
        records += run_resumable(
            frames, name, method, out / "run", device=device, progress=progress, on_frame=partial(kept.keep, name)
        )
    settings: dict[str, Any] = {
        "protocol": metrics.Protocol().as_dict(),
        "model": model,
        "rounds": rounds,
        "seed": seed,
    }
    result = StreamResult(tuple(records), settings | {"domains": {name: str(path) for name, path in domains.items()}})
    say(text_table(result, BASELINE))
    facts = {"model": model, "data": ", ".join(domains), "rounds": str(rounds), "seed": str(seed), "device": device}
    shown = [name for name in notes if name != BASELINE]
    contrasts = [(name, BASELINE) for name in shown if name in ("recommended", "reblur-pairs", "causiam")]
    after = next((name for name in ("recommended", *shown) if name in notes), BASELINE)
    report = Report(
        "The continual protocol",
        result,
        BASELINE,
        contrasts,
        shown,
        notes,
        samples=kept.samples(result, before="source" if "source" in notes else INPUT, after=after),
        facts=facts,
        limits=LIMITS,
    )
    write_report(out / "report.html", report)
    result.to_csv(out / "frames.csv")
    result.to_json(out / "results.json", BASELINE)
    say(f"\nReport: {out / 'report.html'}   every frame: {out / 'frames.csv'}   numbers: {out / 'results.json'}")
    return result


def run_resumable(
    frames: Sequence[FolderFrame] | Sequence[Frame],
    name: str,
    method: ImageMethod,
    folder: str | Path,
    *,
    device: str = "cpu",
    progress: bool = True,
    save_every: int = _SAVE_EVERY,
    on_frame: Callable[[int, Tensor], None] | None = None,
) -> list[FrameRecord]:
    """Records of one method over the frames, from where an earlier run left off.

    After every ``save_every`` frames the method's state is written to ``<name>.<frames done>.safetensors``, next to the
    records in ``<name>.jsonl``: those that a killed run wrote beyond its last state are dropped and made again.
    ``on_frame`` is called with the number of each frame that is measured and the output (1, C, H, W).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    log, states = folder / f"{name}.jsonl", sorted(folder.glob(f"{name}.*.safetensors"), key=_frames_done)
    done = _frames_done(states[-1]) if states else 0
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    records = [FrameRecord(**entry) for entry in map(json.loads, lines) if entry["index"] < done]
    log.write_text("".join(_line(record) for record in records), encoding="utf-8")
    if done:
        method.load(states[-1])
    hidden = not (progress and sys.stderr.isatty())
    bar = tqdm(range(done, len(frames)), desc=name, unit="frame", disable=hidden, leave=False)
    with log.open("a", encoding="utf-8") as file:
        for index in bar:
            frame = frames[index]
            if getattr(frame, "sharp_path", frame) is None:
                method(frame.blurry[None].to(device))
            else:
                record, output = measure(name, method, frame, 0, index, metrics.Protocol(), device=device)
                records.append(record)
                file.write(_line(record))
                if on_frame is not None:
                    on_frame(index, output)
            if (index + 1) % save_every == 0 or index + 1 == len(frames):
                file.flush()
                method.save(folder / f"{name}.{index + 1}.safetensors")
                for state in folder.glob(f"{name}.*.safetensors"):
                    if _frames_done(state) < index + 1:
                        state.unlink()
    return records


def _line(record: FrameRecord) -> str:
    return json.dumps(asdict(record)) + "\n"


def _frames_done(state: Path) -> int:
    return int(state.name.split(".")[-2])


def _claim(folder: Path, task: Mapping[str, Any]) -> None:
    """Refuse to continue a run of something else."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "task.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != task:
        raise UsageError(f"{folder} holds a run of another model, seed or data; give another --out, or remove it")
    path.write_text(json.dumps(task), encoding="utf-8")
