"""Run an evaluation: resumable after an interruption, and shared by the processes of torchrun."""

from __future__ import annotations

import glob
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from tta_restore import metrics
from tta_restore._core.processes import Processes
from tta_restore._core.progress import ProgressBar
from tta_restore.data.datasets.layouts import FolderFrame
from tta_restore.data.io.atomic import atomic_file
from tta_restore.engine.evaluate.results import FrameRecord
from tta_restore.engine.evaluate.stream import StreamFrame, evaluate_frame, inputs_of
from tta_restore.engine.run.usage import UsageError, one_line

__all__ = [
    "Resumable",
    "Unit",
    "claim",
    "open_lpips",
    "read_records",
    "run_folder",
    "run_resumable",
    "run_units",
    "task_of",
]

_SAVE_EVERY = 20


class Resumable(Protocol):
    """A method whose state can be written and read back."""

    __call__: Callable[..., Tensor]
    """Restore a frame (1, C, H, W), given its views where it has any."""

    def save(self, path: Path, /) -> None:
        """Write the state."""
        ...

    def load(self, path: Path, /) -> None:
        """Go on from a state."""
        ...


def run_resumable(
    frames: Sequence[FolderFrame] | Sequence[StreamFrame],
    name: str,
    method: Resumable,
    folder: str | Path,
    *,
    file: str | None = None,
    measures: metrics.ImageMetrics = metrics.ImageMetrics(),  # noqa: B008 (frozen)
    device: str = "cpu",
    progress: bool = True,
    save_every: int = _SAVE_EVERY,
    look: Callable[[int, Tensor], None] | None = None,
) -> list[FrameRecord]:
    """Records of one method over the frames, from where an earlier run left off.

    After every ``save_every`` frames the method's state is written to ``<name>.<frames done>.safetensors``, next to the
    records in ``<name>.jsonl``: those that a killed run wrote beyond its last state are dropped and made again.
    ``look`` is called with the number of every frame and what became of it, (1, C, H, W).
    """
    folder, stem = Path(folder), file or name
    folder.mkdir(parents=True, exist_ok=True)
    log, states = folder / f"{stem}.jsonl", sorted(folder.glob(f"{glob.escape(stem)}.*.safetensors"), key=_frames_done)
    done = _frames_done(states[-1]) if states else 0
    records = [record for record in read_records(log) if record.index < done] if log.exists() else []
    log.write_text("".join(_line(record) for record in records), encoding="utf-8")
    if done:
        method.load(states[-1])
    bar = ProgressBar(range(done, len(frames)), desc=name, unit="frame", shown=progress, leave=False)
    with log.open("a", encoding="utf-8") as lines_file:
        for index in bar:
            frame = frames[index]
            if getattr(frame, "sharp_path", frame) is None:
                output = method(*inputs_of(frame, device))
            else:
                record, output = evaluate_frame(name, method, frame, 0, index, measures, device=device)
                records.append(record)
                lines_file.write(_line(record))
            if look is not None:
                look(index, output.detach())
            if (index + 1) % save_every == 0 or index + 1 == len(frames):
                lines_file.flush()
                method.save(folder / f"{stem}.{index + 1}.safetensors")
                for state in folder.glob(f"{glob.escape(stem)}.*.safetensors"):
                    if _frames_done(state) < index + 1:
                        state.unlink()
    return records


@dataclass(frozen=True)
class Unit:
    """Part of an evaluation that does not depend on the other parts, such as a pair or a clip.

    Attributes:
        name: of the file of its records.
        run: measures it.
    """

    name: str
    run: Callable[[], list[FrameRecord]]


def run_units(
    units: Sequence[Unit], folder: Path | None, *, progress: bool = True, processes: Processes = Processes()
) -> list[FrameRecord]:
    """Return the records of all units, in order; units whose records are in the folder already are not run again.

    Args:
        units: parts of the evaluation.
        folder: where records are kept, ``<name>.jsonl`` each, written at once; None to keep none.
        progress: show progress on stderr.
        processes: those that torchrun started. Each runs its share of the units, and all return all records; several
            processes need a folder.

    Raises:
        UsageError: a unit failed in another process; where it is one of this process, its own error is raised.
    """
    shown = progress and processes.first
    found: dict[str, list[FrameRecord]] = {}
    failure: Exception | None = None
    failures = [] if folder is None else [folder / f"failed.{rank}.txt" for rank in range(processes.count)]
    if processes.count > 1:
        failures[processes.rank].unlink(missing_ok=True)  # of an earlier run
    with ProgressBar(total=len(units), unit="part", shown=shown, leave=False, parallel=processes.count) as bar:
        for number, unit in enumerate(units):
            path = None if folder is None else folder / f"{unit.name}.jsonl"
            if number % processes.count != processes.rank or (path is not None and path.exists()):
                bar.skip()
                continue
            try:
                found[unit.name] = unit.run()
            except Exception as error:
                if processes.count == 1:
                    raise
                failure = error
                failures[processes.rank].write_text(one_line(error), encoding="utf-8")  # the others wait for this one
                break
            if path is not None:
                with atomic_file(path) as partial:
                    partial.write_text("".join(map(_line, found[unit.name])), encoding="utf-8")
            bar.update()
    processes.wait()
    if failure is not None:
        raise failure
    if processes.count > 1 and (told := [path.read_text(encoding="utf-8") for path in failures if path.exists()]):
        raise UsageError(told[0])
    for unit in units:
        if unit.name not in found and folder is not None:
            found[unit.name] = read_records(folder / f"{unit.name}.jsonl")
    return [record for unit in units for record in found[unit.name]]


@contextmanager
def run_folder(out: str | Path | None, task: Mapping[str, Any], processes: Processes) -> Iterator[Path | None]:
    """Give the folder in which a run for the file ``out`` keeps its records until it has ended.

    Raises:
        UsageError: it holds a run of something else.
    """
    folder = None if out is None else Path(f"{out}.run")
    if folder is None and processes.count > 1:
        raise UsageError("several processes need --out, where their records meet")
    if folder is not None and processes.first:
        claim(folder, task)
    processes.wait()
    yield folder
    processes.wait()
    if folder is not None and processes.first:
        shutil.rmtree(folder, ignore_errors=True)


def read_records(path: Path) -> list[FrameRecord]:
    """Return the records in a file, without the last line where a killed run wrote it in part.

    Raises:
        UsageError: they are damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        return [FrameRecord(**json.loads(line)) for line in whole]
    except (ValueError, TypeError):
        raise UsageError(f"{path}: damaged records of an earlier run; remove {path.parent} to start anew") from None


def _line(record: FrameRecord) -> str:
    return json.dumps(asdict(record)) + "\n"


def _frames_done(state: Path) -> int:
    return int(state.name.split(".")[-2])


def open_lpips(weights: str | Path | None, device: str) -> tuple[metrics.Lpips | None, list[str]]:
    """Return LPIPS where its weights exist, else a sentence with the reason why it is left out.

    Raises:
        UsageError: a file was named, and cannot be used.
    """
    try:
        return metrics.Lpips(weights).to(device), []
    except ValueError as error:
        if weights is not None:
            raise UsageError(f"--lpips-weights: {error}") from error
        return None, [f"LPIPS is left out: {error} (--lpips-weights)."]


def task_of(
    frames: Sequence[FolderFrame], measures: metrics.ImageMetrics, *, config: Mapping[str, Any] | None, **settings: Any
) -> dict[str, Any]:
    """Return the settings that identify a run, as they are stored."""
    own = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    files = [[str(frame.blurry_path), frame.family] for frame in frames]
    return own | {"config": dict(config or {}), "measures": measures.as_dict(), "frames": files}


def claim(folder: Path, task: Mapping[str, Any]) -> None:
    """Refuse to continue a run of something else.

    Raises:
        UsageError: the folder holds one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "task.json"
    text = json.dumps(task)
    if path.exists() and (held := path.read_text(encoding="utf-8", errors="replace")) != text:
        raise UsageError(
            f"{folder} holds a run of another model, seed or data{_differing(held, text)}; give another --out, or "
            "remove it"
        )
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _differing(held: str, asked: str) -> str:
    """Return the names of the settings that differ, in brackets; empty where what was held cannot be read."""
    try:
        old, new = json.loads(held), json.loads(asked)
        names = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    except (ValueError, TypeError, AttributeError):
        return ""
    return f" ({', '.join(names)} differ)" if len(names) > 1 else f" ({names[0]} differs)" if names else ""
