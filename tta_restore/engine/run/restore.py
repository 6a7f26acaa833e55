"""Restore files and folders of images: resumable, in bounded memory, one line for each input that cannot be used."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor
from tqdm import tqdm

from tta_restore.data.io.atomic import atomic_file
from tta_restore.data.io.files import images_below
from tta_restore.data.io.image import SUFFIXES, read_image, write_image
from tta_restore.data.io.pixels import Image, ImageError
from tta_restore.engine.run.methods import create_method
from tta_restore.engine.run.models import load_restorer
from tta_restore.engine.run.usage import UsageError

Method = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Job:
    """One image to restore, and where to."""

    source: Path
    destination: Path


@dataclass(frozen=True)
class Summary:
    """How many inputs were restored, were there already, and failed."""

    restored: int
    kept: int
    failed: int

    @property
    def exit_code(self) -> int:
        """0 when every input has its output, 1 otherwise."""
        return 1 if self.failed else 0

    def __str__(self) -> str:
        parts = [f"{self.restored} restored"]
        if self.kept:
            parts.append(f"{self.kept} kept from before")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return ", ".join(parts)


def restore_inputs(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    method: str = "recommended",
    model: str = "generalist",
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    state: str | Path | None = None,
    overwrite: bool = False,
    device: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Summary:
    """What `tta-restore restore` does: plan, load the model, wrap it in the method, and go through the files.

    Args:
        inputs: files and folders.
        out: folder, or file for a single input.
        method: one of :data:`tta_restore.engine.run.methods.METHODS`.
        model: what :func:`tta_restore.engine.run.models.load_restorer` takes, like the next two.
        checkpoint: weights of a registered model.
        config: keywords of its builder.
        state: file of the method's state, loaded when it exists and saved after every image.
        overwrite: restore also what is there already.
        device: where to run; `None` takes a CUDA device where there is one.
        seed: of the adapter.
        progress: show a bar on stderr where it is a terminal.

    Raises:
        UsageError: it cannot be done as asked; nothing has been written.
    """
    jobs, problems = plan_jobs(inputs, out)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        restorer = load_restorer(model, device=device, checkpoint=checkpoint, config=config)
        adapter = create_method(method, restorer, seed=seed)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    for problem in problems:
        tqdm.write(f"error: {problem}", file=sys.stderr)
    summary = restore_files(jobs, adapter, state=state, overwrite=overwrite, progress=progress, device=device)
    return replace(summary, failed=summary.failed + len(problems))


def plan_jobs(inputs: Sequence[str | Path], out: str | Path) -> tuple[list[Job], list[str]]:
    """What to read and where to write it, and a line for each input that is not there or holds no image.

    A folder is searched through, in natural order, and keeps its tree below `out`; hidden files and `out` itself are
    left out. One single file may be given a file name as `out`.

    Raises:
        UsageError: two inputs would be written to one file, or an input onto itself.
    """
    out = Path(out)
    jobs: list[Job] = []
    problems: list[str] = []
    for entry in map(Path, inputs):
        if entry.is_dir():
            found = [path for path in images_below(entry) if not path.resolve().is_relative_to(out.resolve())]
            if out.resolve() == entry.resolve():
                raise UsageError(f"the output folder {out} is the input folder: the originals would be overwritten")
            if not found:
                problems.append(f"{entry}: no PNG, JPEG or TIFF file in this folder")
            jobs += [Job(path, out / path.relative_to(entry)) for path in found]
        elif not entry.exists():
            problems.append(f"{entry}: no such file or directory")
        elif len(inputs) == 1 and out.suffix.lower() in SUFFIXES and not out.is_dir():
            jobs.append(Job(entry, out))
        else:
            suffix = "" if entry.suffix.lower() in SUFFIXES else ".png"
            jobs.append(Job(entry, out / (entry.name + suffix)))
    taken: dict[Path, Path] = {}
    unique = []
    for job in jobs:
        target = job.destination.resolve()
        if target == job.source.resolve():
            raise UsageError(f"{job.source} would be overwritten by its own result: choose another output")
        other = taken.setdefault(target, job.source)
        if other.resolve() != job.source.resolve():
            raise UsageError(f"{other} and {job.source} would both be written to {job.destination}")
        if other is job.source:
            unique.append(job)
    return unique, problems


def restore_files(
    jobs: Sequence[Job],
    method: Method,
    *,
    state: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    device: str | torch.device = "cpu",
    say: Callable[[str], None] | None = None,
) -> Summary:
    """Restore images one after the other with a method that may learn from each of them.

    An output that is there already is kept unless its input is newer. With `state`, the method is loaded from that
    file when it exists and saved to it after every image, together with the list of inputs it has seen: whenever the
    process dies, running it again gives the outputs of an uninterrupted run, bit for bit.

    Args:
        jobs: from :func:`plan_jobs`.
        method: maps (1, 3, H, W) in [0, 1] to (1, 3, s*H, s*W).
        state: file of the method's state.
        overwrite: restore also what is there already.
        progress: show a bar on stderr where it is a terminal.
        device: where the method wants its input.
        say: takes each line for the user; `None` writes them to stderr.

    Raises:
        UsageError: `state` was asked for and the method has no `save` and `load`, or the file does not fit it.
    """
    keeper = None
    if state is not None:
        try:
            keeper = RestoreState(Path(state), method)
            keeper.load()
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise UsageError(f"--state {state}: {error}") from error
    restored = kept = failed = 0
    # Lines and bar share stderr: tqdm.write lifts the bar for a line.
    say = say or (lambda line: tqdm.write(line, file=sys.stderr))
    hidden = not (progress and sys.stderr.isatty())
    with tqdm(jobs, unit="image", disable=hidden) as bar:
        for job in bar:
            bar.set_postfix_str(job.source.name)
            if not overwrite and _is_done(job, keeper):
                kept += 1
                continue
            try:
                _restore(job, method, device, say)
            except ImageError as error:
                failed += 1
                say(f"error: {error}")
                continue
            except Exception as error:  # whatever a stranger's model raises concerns this image alone
                failed += 1
                say(f"error: {job.source}: {type(error).__name__}: {_first_line(error)}")
                continue
            if keeper is not None:
                keeper.save(job.source)
            restored += 1
    return Summary(restored, kept, failed)


def _restore(job: Job, method: Method, device: str | torch.device, say: Callable[[str], None]) -> None:
    image = read_image(job.source)
    for note in image.notes:
        say(f"note: {job.source}: {note}")
    _check_format(job, image)
    result = method(image.as_rgb()[None].to(device))
    write_image(job.destination, image.with_rgb(result[0].detach().float().cpu()))


def _check_format(job: Job, image: Image) -> None:
    """Find out before the work that the output's format cannot hold the input's samples."""
    suffix = job.destination.suffix.lower()
    if suffix in (".jpg", ".jpeg") and (image.bit_depth != 8 or image.alpha is not None):
        what = "alpha" if image.alpha is not None else f"{image.bit_depth} bits"
        raise ImageError(f"{job.source}: {job.destination.name} cannot hold its {what}: write PNG or TIFF")
    if suffix == ".png" and image.bit_depth == 32:
        raise ImageError(f"{job.source}: {job.destination.name} cannot hold its float samples: write TIFF")


def _is_done(job: Job, keeper: RestoreState | None) -> bool:
    if not job.destination.is_file():
        return False
    if keeper is not None:
        return keeper.has_seen(job.source)
    try:
        return job.destination.stat().st_mtime >= job.source.stat().st_mtime
    except OSError:
        return False


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:200]


_KEY = "restored_inputs"


class RestoreState:
    """Loads and saves an adapter together with the list of inputs it has seen.

    Both are in one safetensors file, written in one step. Were they two files, a process that dies in between would
    leave an adapter that has learned from an image which the list does not name, and learn from it twice.

    Raises:
        ValueError: the method cannot save itself.
    """

    def __init__(self, path: Path, method: Any) -> None:
        if not (callable(getattr(method, "save", None)) and callable(getattr(method, "load", None))):
            raise ValueError("a state was asked for, but this method keeps none")
        self.path = path
        self.method = method
        self._seen: dict[str, None] = {}

    def load(self) -> None:
        """Take adapter and list from the file, when it exists.

        Raises:
            ValueError: the file is damaged, or belongs to another method or model.
        """
        if not self.path.exists():
            return
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"not a readable state file ({error})") from error
        self.method.load(self.path)
        self._seen = dict.fromkeys(json.loads(metadata.get(_KEY, "[]")))

    def save(self, source: Path) -> None:
        """Note that an input has been learned from, and write adapter and list."""
        self._seen[_name(source)] = None
        with atomic_file(self.path) as partial:
            self.method.save(partial)
            with safe_open(partial, framework="pt") as file:
                metadata = file.metadata() or {}
            # From a copy in memory: tensors mapped from a file must not be written over it.
            save_file(load(partial.read_bytes()), partial, metadata | {_KEY: json.dumps(list(self._seen))})

    def has_seen(self, source: Path) -> bool:
        """Whether the adapter has learned from an input."""
        return _name(source) in self._seen


def _name(source: Path) -> str:
    return str(source.resolve())
