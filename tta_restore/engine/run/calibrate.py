"""Adapt a restorer to one camera on a few of its photos, and write the result as an ordinary checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tta_restore import adapters
from tta_restore._core.processes import Processes
from tta_restore.adapters import calibration
from tta_restore.adapters.calibration import CalibrationProgress
from tta_restore.adapters.settings import encode
from tta_restore.data.io.atomic import atomic_file, hidden_path
from tta_restore.data.io.color import to_model_space
from tta_restore.data.io.files import printable, real_path, scan_folder, suggest_path
from tta_restore.data.io.image import read_image
from tta_restore.data.io.pixels import ImageError
from tta_restore.data.io.tensors import add_metadata, save_tensors
from tta_restore.engine.report.calibration import CalibrationPage, compare_photos, write_calibration
from tta_restore.engine.run.device import resolve_device
from tta_restore.engine.run.method_settings import typed_settings
from tta_restore.engine.run.methods import expect_one_frame
from tta_restore.engine.run.models import expect_restorer, origin_of
from tta_restore.engine.run.outputs import expect_file, locks_output
from tta_restore.engine.run.restore_plan import describe_others
from tta_restore.engine.run.settings import Named
from tta_restore.engine.run.usage import UsageError
from tta_restore.models import Restorer

__all__ = ["Calibration", "calibrate_model", "write_checkpoint"]

_KEPT = "calibration"  # entry of a state's metadata
_SHOWN = 4  # photos on the page, evenly among those that were used
_SHOWN_SIDE = 512  # largest crop of them in pixels


@dataclass(frozen=True)
class Calibration:
    """Outcome of ``tta-restore calibrate``.

    Attributes:
        report: the report of :func:`tta_restore.adapters.calibrate`.
        failed: photos that could not be read.
        unused: photos that could be read and were not used: the model was calibrated, or the budget was spent.
        unopened: photos beyond the limit, which were not opened.
        left_out: number of files in the folders that are no images, by kind.
    """

    report: calibration.CalibrationReport
    failed: int
    unused: int = 0
    unopened: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def exit_code(self) -> int:
        """0 if every photo was read, else 1."""
        return 1 if self.failed else 0

    def __str__(self) -> str:
        return ", ".join([self.report.verdict, *self.remarks])

    @property
    def remarks(self) -> list[str]:
        """Return what was not used, a few words each."""
        parts = []
        if self.failed:
            parts.append(f"{_photo_count(self.failed)} could not be read")
        if self.unused:
            parts.append(f"{_photo_count(self.unused)} not used")
        if self.unopened:
            parts.append(f"{_photo_count(self.unopened)} beyond --limit not opened")
        if self.left_out:
            parts.append(f"left out: {describe_others(self.left_out)}")
        return parts


@locks_output
def calibrate_model(
    inputs: Sequence[str | Path],
    *,
    out: str | Path,
    model: str | Named = "generalist",
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    method_options: Mapping[str, Any] | None = None,
    task: str | None = None,
    budget: str | None = None,
    limit: int = 25,
    crop: int = 512,
    device: str | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Calibration | None:
    """Adapt a restorer once to the camera that took some photos, and write a checkpoint with the model's own keys.

    The photos need no sharp originals: the degradation is estimated from them, and the model is trained on pairs with
    that degradation. The checkpoint is written with a report, as a page with pictures (.html) and as .json; if nothing
    was gained it holds the original weights, as the verdict states. Photos that are not needed because the model is
    steady before are read all the same, so that damaged ones are named. torchrun shares the pairs of every step among
    its processes. A calibration that was interrupted goes on behind the photos that it had used, if it is asked for
    again as it was.

    Args:
        inputs: photos of one camera, or folders of them; 5 to 25 are a good number.
        out: checkpoint, a .safetensors file; the report is written next to it as .html and .json.
        model: restorer.
        checkpoint: weights of the model.
        config: keywords of the model's builder.
        method_options: settings of the adapter.
        task: what the model removes: defocus, motion, denoise, jpeg, sr or any (default: what a probe finds)
        budget: total time such as 60s, or 10x for ten forward passes per photo (default: until it is steady)
        limit: first photos only.
        crop: side of the center crop that photos are read as, in pixels; 0 reads them whole.
        device: where everything runs.
        seed: of everything random.
        say: receives the text for the user.

    Returns:
        The outcome; None in all processes but the first.

    Raises:
        UsageError: the command cannot be carried out as given; nothing was written.
    """
    if crop < 0:
        raise UsageError(f"--crop: expected a number of pixels, or 0 for whole photos, got {crop}")
    expect_file(out)
    if Path(out).suffix != ".safetensors":
        raise UsageError(f"--out {out}: expected a file that ends in .safetensors")
    found, left_out = _photos(inputs)
    paths = found[:limit]
    chosen = resolve_device(device)
    restorer = expect_restorer(model, device=chosen, checkpoint=checkpoint, config=config)
    expect_one_frame(restorer)
    try:
        given = typed_settings(adapters.DegradationPairs, method_options or {})
    except ValueError as error:
        raise error if isinstance(error, UsageError) else UsageError(f"calibrate: {error}") from error
    options: dict[str, Any] = {"seed": seed, **given} | ({} if task is None else {"task": task})
    problems: list[str] = []
    remaining = deque(paths)
    try:
        adapter = adapters.recommended(restorer, **options)
        asked = [str(model), str(checkpoint), config, options, budget, crop, *map(_file_facts, paths)]
        keeper = _Keeper(hidden_path(Path(out), "state"), adapter, asked)
        with Processes.join(chosen) as processes:
            opened, done = keeper.load(problems)
            if processes.agree(opened) != opened:
                raise UsageError(f"--out {out}: not all processes can read the state that lies there")
            if opened and processes.first:
                say(f"continued behind the first {_photo_count(opened)}")
            for _ in range(opened):
                remaining.popleft()

            def keep(progress: CalibrationProgress) -> None:
                if processes.first:
                    keeper.save(len(paths) - len(remaining), progress, problems)

            frames = _frames(remaining, crop, chosen, problems)
            report = adapters.calibrate(
                adapter, frames, budget=budget, processes=processes, progress=done, on_frame=keep
            )
    except (ValueError, TypeError, RuntimeError) as error:
        told = f"; {problems[0]}" if problems else ""
        raise UsageError(f"{error}{told}") from error
    opened_paths = paths[: len(paths) - len(remaining)]
    used = [path for path in opened_paths if not any(problem.startswith(f"{path}: ") for problem in problems)]
    for path in remaining:
        try:
            read_image(path)
        except ImageError as error:
            problems.append(str(error))
    if not processes.first:
        return None
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)  # noqa: T201
    unused, unopened = len(paths) - report.frames - len(problems), len(found) - len(paths)
    outcome = Calibration(report, len(problems), unused, unopened, left_out)
    facts = {"source": str(model), "checkpoint": str(checkpoint or ""), "verdict": report.verdict}
    write_checkpoint(report.model, out, facts | origin_of(model, checkpoint, config))
    text = {
        name: getattr(report, name)
        for name in (
            "frames",
            "steps",
            "seconds",
            "task",
            "degradation",
            "gain",
            "trust",
            "gains",
            "verdict",
            "messages",
        )
    }
    text |= {"unreadable": problems, "unused": unused, "unopened": unopened, "left_out": left_out}
    with atomic_file(Path(out).with_suffix(".json")) as partial:
        partial.write_text(json.dumps(facts | text, indent=1), encoding="utf-8")
    facts = {
        "photos": ", ".join(map(str, inputs)),
        "model": str(model),
        **({"weights": str(checkpoint)} if checkpoint else {}),
        "crop": f"{crop} pixels" if crop else "none",
        "budget": budget or "none",
        "settings": ", ".join(f"{name} {value}" for name, value in options.items()),
        "machine": f"{chosen}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    _write_page(Path(out).with_suffix(".html"), outcome, restorer, used[: report.frames], crop, problems, facts)
    keeper.path.unlink(missing_ok=True)
    say(f"{report}\n\nCheckpoint: {out}   report: {Path(out).with_suffix('.html')}, {Path(out).with_suffix('.json')}")
    return outcome


class _Keeper:
    """State of an unfinished calibration: the adapter, what was done, and what was asked for, in one file.

    Args:
        path: of the file.
        adapter: whose state is kept.
        asked: what the calibration depends on; the state of another one is not continued.
    """

    def __init__(self, path: Path, adapter: adapters.Adapter, asked: Sequence[Any]) -> None:
        self.path, self.adapter = path, adapter
        self.asked = hashlib.sha256(json.dumps(encode(asked)).encode()).hexdigest()

    def load(self, problems: list[str]) -> tuple[int, CalibrationProgress | None]:
        """Take the state from the file; return the number of photos that were opened, and what was done, or (0, None).

        Photos that could not be read are added to the problems.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                kept = json.loads((file.metadata() or {}).get(_KEPT, "{}"))
            if kept.get("asked") != self.asked:
                return 0, None
            self.adapter.load(self.path)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError):
            return 0, None  # none, or damaged, or of another version: begin again
        problems += kept["problems"]
        own: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in kept["progress"].items()}
        return kept["opened"], CalibrationProgress(**own)

    def save(self, opened: int, progress: CalibrationProgress, problems: Sequence[str]) -> None:
        """Write everything, or nothing."""
        kept = {"asked": self.asked, "opened": opened, "progress": asdict(progress), "problems": list(problems)}
        with atomic_file(self.path) as partial:
            self.adapter.save(partial)
            add_metadata(partial, {_KEPT: json.dumps(kept)})


def _file_facts(path: Path) -> list[Any]:
    facts = path.stat()
    return [str(real_path(path)), facts.st_size, facts.st_mtime_ns]


def write_checkpoint(model: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write the weights of a model under its own keys, completely or not at all."""
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    with atomic_file(path) as partial:
        save_tensors(partial, weights, metadata)


def _photos(inputs: Sequence[str | Path]) -> tuple[list[Path], Counter[str]]:
    """Return the images among the inputs and in folders, and the number of other files in these by kind."""
    paths: list[Path] = []
    left_out: Counter[str] = Counter()
    for entry in map(Path, inputs):
        if entry.is_dir():
            found = scan_folder(entry)
            paths += found.images
            left_out += found.others
            left_out += Counter({"video": len(found.videos)} if found.videos else {})
        elif entry.exists():
            paths.append(entry)
        else:
            raise UsageError(f"{entry}: no such file or directory{suggest_path(entry)}")
    if not paths:
        raise UsageError(f"{', '.join(map(str, inputs))}: no image in this folder")
    return list(dict.fromkeys(paths)), left_out


def _photo_count(number: int) -> str:
    return f"{number} photo{'' if number == 1 else 's'}"


def _frames(paths: deque[Path], crop: int, device: str | torch.device, problems: list[str]) -> Iterator[Tensor]:
    """Yield the photos one after another; those that were opened are taken off the queue."""
    while paths:
        path = paths.popleft()
        try:
            rgb, _ = to_model_space(read_image(path))
        except ImageError as error:
            problems.append(str(error))
            continue
        yield _center(rgb, crop).to(device)


def _center(rgb: Tensor, side: int) -> Tensor:
    """Return the center of an image, at most ``side`` pixels high and wide; the whole of it if that is 0."""
    top, left = (max(0, length - side) // 2 if side else 0 for length in rgb.shape[-2:])
    return rgb[:, top : top + side, left : left + side] if side else rgb


def _write_page(
    path: Path,
    outcome: Calibration,
    restorer: Restorer,
    used: Sequence[Path],
    crop: int,
    problems: Sequence[str],
    facts: Mapping[str, str],
) -> None:
    """Write the page of the report, with pictures of a few of the photos that were used."""
    report = outcome.report
    count = min(_SHOWN, len(used))
    chosen = [used[i * (len(used) - 1) // max(count - 1, 1)] for i in range(count)]
    device = next((tensor.device for tensor in restorer.parameters()), torch.device("cpu"))
    side = min(crop or _SHOWN_SIDE, _SHOWN_SIDE)
    photos = [(p.name, _center(to_model_space(read_image(p))[0], side).to(device)) for p in chosen]
    is_adapted = report.worthwhile or math.isnan(report.gain)
    page = CalibrationPage(
        title=f"{Path(facts['model']).name}, calibrated on {_photo_count(report.frames)}",
        report=report,
        samples=compare_photos(photos, restorer, report.model if is_adapted else None),
        photos=[p.name for p in used],
        remarks=[*problems, *outcome.remarks],
        facts=facts,
    )
    write_calibration(path, page)
