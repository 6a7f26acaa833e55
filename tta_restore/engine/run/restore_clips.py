"""Restore video files, and folders of frames as clips: resumable, one line for each input that cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tta_restore.data.datasets.clips import Frames, ImageSequence
from tta_restore.data.io.files import images_below, natural_order
from tta_restore.data.io.image import write_image
from tta_restore.data.io.pixels import Image, ImageError
from tta_restore.data.io.video import VIDEO_SUFFIXES, WRITABLE_SUFFIXES, VideoFile, write_video
from tta_restore.engine.run.methods import ClipMethod, create_clip_method
from tta_restore.engine.run.models import load_restorer
from tta_restore.engine.run.restore import Job, Summary
from tta_restore.engine.run.usage import UsageError


def holds_clips(inputs: Sequence[str | Path]) -> bool:
    """Whether an input is a video file, by its name, or a folder that has one in it."""
    return any(
        _is_video(path) or (path.is_dir() and any(map(_is_video, path.rglob("*")))) for path in map(Path, inputs)
    )


def restore_clip_inputs(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    method: str = "meta-transfer",
    model: str = "generalist",
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    reblur: str | Path | None = None,
    discriminator: str | Path | None = None,
    overwrite: bool = False,
    device: str | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Summary:
    """What `tta-restore restore` does with videos: plan, load the networks, and go through the clips.

    Args:
        inputs: video files, and folders: every folder in them that holds pictures is a clip, every video file, too.
        out: folder, or a video file for a single one.
        method: see :func:`tta_restore.engine.run.methods.create_clip_method`.
        model: what :func:`tta_restore.engine.run.models.load_restorer` takes, like the next two.
        checkpoint: weights of a registered model.
        config: keywords of its builder.
        reblur: file of a reblurrer.
        discriminator: file of a discriminator.
        overwrite: restore also what is there already.
        device: where to run; `None` takes a CUDA device where there is one.
        seed: of the method.
        progress: show a bar on stderr where it is a terminal.
        options: of the method.

    Raises:
        UsageError: it cannot be done as asked; nothing has been written.
    """
    jobs, problems = plan_clips(inputs, out)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        restorer = load_restorer(model, device=device, checkpoint=checkpoint, config=config)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    networks = {"reblur": reblur, "discriminator": discriminator}
    restore = create_clip_method(method, restorer, **networks, seed=seed, device=device, **options)
    for problem in problems:
        tqdm.write(f"error: {problem}", file=sys.stderr)
    summary = restore_clips(jobs, restore, overwrite=overwrite, progress=progress)
    return replace(summary, failed=summary.failed + len(problems))


def plan_clips(inputs: Sequence[str | Path], out: str | Path) -> tuple[list[Job], list[str]]:
    """What to read and where to write it, and a line for each input that is not there or holds no clip.

    Raises:
        UsageError: two clips would be written to one place, or a clip onto itself.
    """
    out = Path(out)
    jobs: list[Job] = []
    problems: list[str] = []
    for entry in map(Path, inputs):
        if entry.is_dir():
            written = (out / entry.name).resolve()
            if written == entry.resolve():
                raise UsageError(f"{entry} would be overwritten by its own result: choose another output")
            found = [path for path in _clips_below(entry) if not path.resolve().is_relative_to(written)]
            if not found:
                problems.append(f"{entry}: no pictures and no video in this folder")
            jobs += [_job(path, out / entry.name / path.relative_to(entry)) for path in found]
        elif not entry.exists():
            problems.append(f"{entry}: no such file or directory")
        elif len(inputs) == 1 and out.suffix.lower() in WRITABLE_SUFFIXES and not out.is_dir():
            jobs.append(Job(entry, out))
        elif _is_video(entry):
            jobs.append(_job(entry, out / entry.name))
        else:
            problems.append(f"{entry}: a clip is a video file ({', '.join(VIDEO_SUFFIXES)}) or a folder of pictures")
    taken: dict[Path, Path] = {}
    for job in jobs:
        if job.destination.resolve() == job.source.resolve():
            raise UsageError(f"{job.source} would be overwritten by its own result: choose another output")
        other = taken.setdefault(job.destination.resolve(), job.source)
        if other != job.source:
            raise UsageError(f"{other} and {job.source} would both be written to {job.destination}")
    return jobs, problems


def restore_clips(
    jobs: Sequence[Job],
    method: ClipMethod,
    *,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> Summary:
    """Restore clips one after the other. A clip that is there already, whole, is kept.

    Args:
        jobs: from :func:`plan_clips`; the destination of a folder is a folder, with a PNG file per frame.
        method: from frames to restored frames.
        overwrite: restore also what is there already.
        progress: show a bar on stderr where it is a terminal.
        say: takes each line for the user; `None` writes them to stderr.
    """
    say = say or (lambda line: tqdm.write(line, file=sys.stderr))
    restored = kept = failed = 0
    hidden = not (progress and sys.stderr.isatty())
    with tqdm(jobs, unit="clip", disable=hidden) as bar:
        for job in bar:
            bar.set_postfix_str(job.source.name)
            try:
                if not overwrite and _is_done(job):
                    kept += 1
                    continue
                _restore(job, method)
                restored += 1
            except ImageError as error:
                failed += 1
                say(f"error: {error}")
            except Exception as error:  # whatever a stranger's model raises concerns this clip alone
                failed += 1
                say(f"error: {job.source}: {type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}")
    return Summary(restored, kept, failed)


def _restore(job: Job, method: ClipMethod) -> None:
    if job.source.is_dir():
        frames = ImageSequence(_frames_in(job.source))
        for path, picture in zip(_frame_files(job), method(frames), strict=True):
            write_image(path, Image(picture.detach().float().cpu()), bit_depth=8)
        return
    video = VideoFile(job.source)
    write_video(job.destination, _on_cpu(method, video.load()), like=video)


def _on_cpu(method: ClipMethod, frames: Frames) -> Iterator[Tensor]:
    return (picture.detach().float().cpu() for picture in method(frames))


def _is_done(job: Job) -> bool:
    files = _frame_files(job) if job.source.is_dir() else [job.destination]
    made = [file.stat().st_mtime for file in files if file.is_file()]
    sources = _frames_in(job.source) if job.source.is_dir() else [job.source]
    return len(made) == len(files) and min(made) >= max(source.stat().st_mtime for source in sources)


def _frame_files(job: Job) -> list[Path]:
    return [job.destination / f"{path.stem}.png" for path in _frames_in(job.source)]


def _frames_in(folder: Path) -> list[Path]:
    return [path for path in images_below(folder) if path.parent == folder]


def _clips_below(folder: Path) -> list[Path]:
    folders = {path.parent for path in images_below(folder)}
    videos = {path for path in folder.rglob("*") if _is_video(path) and path.is_file()}
    return sorted(folders | videos, key=natural_order)


def _job(source: Path, destination: Path) -> Job:
    if source.is_file() and source.suffix.lower() not in WRITABLE_SUFFIXES:
        destination = destination.with_suffix(".mp4")
    return Job(source, destination)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES
