"""Plan a restoration: what is read, where each result is written, and what cannot be used or is left out."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

from tta_restore.data.io.files import natural_order, printable, real_path, scan_folder, suggest_path
from tta_restore.data.io.formats import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    RAW_SUFFIXES,
    VIDEO_SUFFIXES,
    irregular_kind,
    sniff_file,
)
from tta_restore.data.io.image_writer import FORMATS, SUFFIXES
from tta_restore.data.io.video_writer import WRITABLE_SUFFIXES
from tta_restore.engine.run.names import RESULTS_FILE
from tta_restore.engine.run.outputs import expect_folder
from tta_restore.engine.run.usage import UsageError

__all__ = [
    "Job",
    "Plan",
    "check_output",
    "describe_others",
    "format_named",
    "frame_files",
    "plan_jobs",
    "written_suffix",
]

Kind = Literal["image", "video", "frames"]

#: Formats that are read and not written, and the suffix of their results.
_WRITTEN_AS = {".hdr": ".exr", ".pfm": ".exr", ".mpo": ".jpg"} | dict.fromkeys(RAW_SUFFIXES, ".tif")


@dataclass(frozen=True)
class Job:
    """An input to restore and its output.

    Attributes:
        source: image or video file, or a folder of frames.
        destination: file, or folder for a folder of frames.
        kind: ``"image"``, ``"video"`` or ``"frames"``.
        image_format: of the resulting frames of a folder, one of :data:`tta_restore.data.io.image_writer.FORMATS`;
            None keeps the format of each frame.
    """

    source: Path
    destination: Path
    kind: Kind = "image"
    image_format: str | None = None


@dataclass
class Plan:
    """Inputs, outputs and expected cost of a run.

    Attributes:
        jobs: in the order in which they are done.
        problems: a line for each input that cannot be used.
        notes: a line for each thing that is done differently from what the names suggest.
        left_out: number of files in the folders that are neither images nor videos, by kind.
    """

    jobs: list[Job] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


_SHOWN_GAPS = 4  # stretches of missing numbers in one note
#: Suffixes of documents that an output may be named like by mistake.
_DOCUMENTS = (".psd", ".pdf", ".svg")


def plan_jobs(
    inputs: Sequence[str | Path], out: str | Path, *, clips: bool = False, image_format: str | None = None
) -> Plan:
    """Plan the restoration of files and folders; nothing is read but names and first bytes.

    A folder is searched in natural order and keeps its tree below `out`; hidden files and `out` itself are left out.
    One single file may be given a file name as `out`; a slash at the end makes it a folder.

    Args:
        inputs: files and folders.
        out: folder, or file for a single input.
        clips: restore every folder of images as one clip.
        image_format: one of :data:`tta_restore.data.io.image_writer.FORMATS`; None keeps the format of each input.

    Raises:
        UsageError: an argument is empty or of no use, two inputs would be written to one file, an input onto itself or
            onto another original, or `out` has the suffix of another format than `image_format`.
    """
    if isinstance(inputs, (str, Path)):
        inputs = [inputs]
    for name, value in (*(("input", entry) for entry in inputs), ("output", out)):
        if not str(value) or "\0" in str(value):
            raise UsageError(f"expected the {name} to be a path, got {str(value)!r}")
    if not inputs:
        raise UsageError("expected at least one input, got none")
    image_format = format_named(image_format)
    is_folder = _names_folder(out)
    out, plan = Path(out), Plan()
    try:
        if out.is_symlink() and not out.exists():
            raise UsageError(f"output {out}: a link that leads nowhere")
    except OSError as error:
        raise UsageError(f"output {out}: {(error.strerror or str(error)).lower()}") from None
    for entry in dict.fromkeys(map(Path, inputs)):
        try:
            if entry.is_dir():
                _plan_folder(plan, entry, out, clips=clips, image_format=image_format)
            else:
                _plan_file(plan, entry, out, alone=len(inputs) == 1 and not is_folder, image_format=image_format)
        except OSError as error:
            is_address = re.match(r"[a-z]{2,}:/", str(entry)) is not None
            reason = "an address, not a file: download it first" if is_address else error.strerror or str(error)
            hint = suggest_path(entry) if isinstance(error, FileNotFoundError) and not is_address else ""
            plan.problems.append(f"{entry}: {reason[0].lower()}{reason[1:]}{hint}")
        except RuntimeError as error:  # a link to itself
            plan.problems.append(f"{entry}: {str(error).lower()}")
    _expect_distinct(plan)
    return plan


def format_named(name: str | None) -> str | None:
    """Return the format of a name or a suffix, in capitals or not: ``"jpg"`` is ``"jpeg"``.

    Raises:
        UsageError: there is no such format.
    """
    if name is None:
        return None
    word = name.lower().removeprefix(".")
    found = next((known for known, suffixes in FORMATS.items() if word == known or f".{word}" in suffixes), None)
    if found is None:
        raise UsageError(f"no format {name!r}; there are: {', '.join(FORMATS)}")
    return found


def check_output(plan: Plan, inputs: Sequence[str | Path], out: str | Path, state: str | Path | None) -> None:
    """Find out before the work that results or state cannot be written.

    Functions of `os.path` take a name that is too long for one of nothing, where those of `Path` raise.

    Raises:
        UsageError: the output or the state cannot be written.
    """
    is_folder = _names_folder(out)
    out = Path(out)
    alone = len(inputs) == 1 and not os.path.isdir(inputs[0])
    if not is_folder:
        _expect_known_format(plan, out, alone=alone)
    is_file = plan.jobs[0].destination == out if len(plan.jobs) == 1 else alone and not plan.jobs  # told by itself
    if not is_file:
        if os.path.exists(out) and not os.path.isdir(out):
            raise UsageError(f"output {out}: a file with this name is there, expected a folder")
        is_named_like_file = out.suffix.lower() in (*IMAGE_SUFFIXES, *RAW_SUFFIXES, *VIDEO_SUFFIXES)
        if not is_folder and not os.path.exists(out) and is_named_like_file:
            raise UsageError(
                f"output {out}: named like a file, and {_count(len(inputs), 'input')} would need a folder; "
                f"{out}{os.sep} names the folder"
            )
    expect_folder(out.parent if is_file else out, flag="output")
    for job in plan.jobs:
        _expect_replaceable(job)
    if state is not None:
        state = Path(state)
        if os.path.isdir(state):
            raise UsageError(f"--state {state}: is a folder, expected a file")
        try:
            os.lstat(state)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UsageError(f"--state {state}: {(error.strerror or str(error)).lower()}") from None
        expect_folder(state.parent, flag="--state")
        if os.path.islink(state) and not os.path.exists(state):
            raise UsageError(f"--state {state}: a link that leads nowhere")
        if os.path.exists(state) and (special := irregular_kind(state)) is not None:
            raise UsageError(f"--state {state}: not a regular file: {special}")
        if os.path.exists(state) and not os.access(state, os.W_OK):
            raise UsageError(f"--state {state}: cannot be written to")
        if any(real_path(state) in (real_path(job.source), real_path(job.destination)) for job in plan.jobs):
            raise UsageError(f"--state {state}: is also an input or a result of this run")


def _expect_replaceable(job: Job) -> None:
    """Refuse a result in whose place there is a folder, or a pipe, which the result would replace.

    Raises:
        UsageError: there is.
    """
    place = job.destination
    with suppress(OSError):  # nothing is there, or the name is too long, which concerns this input alone
        kind = irregular_kind(place)
        if kind is not None or place.is_dir() != (job.kind == "frames"):
            kind = kind or ("a folder" if place.is_dir() else "a file")
            raise UsageError(f"output {place}: {kind} with this name is there")


def _names_folder(out: str | Path) -> bool:
    """Return whether an output ends in a slash."""
    return str(out).endswith(("/", os.sep))


def _expect_known_format(plan: Plan, out: Path, *, alone: bool) -> None:
    """Refuse an output that is named like a file of a format that is not written, or not of its input."""
    suffix, kinds = out.suffix.lower(), {job.kind for job in plan.jobs}
    wanted = SUFFIXES if kinds == {"image"} else WRITABLE_SUFFIXES if kinds == {"video"} else (suffix,)
    there_are = f"there are: {', '.join(FORMATS)}, and for videos {', '.join(WRITABLE_SUFFIXES)}"
    is_known = suffix in (*IMAGE_SUFFIXES, *RAW_SUFFIXES, *VIDEO_SUFFIXES, *_DOCUMENTS)
    # ".v2" and ".2024" are parts of a folder's name, ".jepg" for one single file is no such part
    is_meant_as_file = is_known or (alone and not os.path.exists(out) and re.fullmatch(r"\.[a-z][a-z\d]{2,4}", suffix))
    if os.path.isdir(out) or not is_meant_as_file:
        return
    if suffix not in (*SUFFIXES, *WRITABLE_SUFFIXES):
        folder = f"; {out}{os.sep} names a folder" if alone else ""
        raise UsageError(f"output {out}: {suffix} cannot be written; {there_are}{folder}")
    if len(plan.jobs) == 1 and suffix not in wanted:
        what = "a video" if "video" in kinds else "an image"
        raise UsageError(f"output {out}: {plan.jobs[0].source.name} is {what}, not written as {suffix}; {there_are}")


def _plan_folder(plan: Plan, entry: Path, out: Path, *, clips: bool, image_format: str | None) -> None:
    if real_path(out) == real_path(entry):
        raise UsageError(f"the output folder {out} is the input folder: the originals would be overwritten")
    base = out / entry.name if clips else out
    found = scan_folder(entry, skip=[out])
    plan.left_out += found.others
    jobs: list[Job] = []
    if clips:
        folders = sorted({path.parent for path in found.images}, key=natural_order)
        jobs += [Job(path, base / path.relative_to(entry), "frames", image_format) for path in folders]
        for path in folders:
            names = [image.name for image in found.images if image.parent == path]
            plan.notes += [f"{path}: {gap}" for gap in filter(None, [_describe_gaps(names)])]
    else:
        jobs += _image_jobs(found.images, entry, base, image_format)
    jobs += _video_jobs(found.videos, entry, base)
    if not jobs:
        plan.problems.append(f"{entry}: no image and no video in this folder{_others(found.others)}")
    if real_path(entry) in real_path(out).parents:
        _expect_results_only(out, jobs)
    plan.jobs += sorted(jobs, key=lambda job: natural_order(job.source))


def _describe_gaps(names: Sequence[str]) -> str | None:
    """Return which numbers are missing among the files of a clip, None where they are even or are no counters.

    The last number in a name counts; names that differ in something else are no sequence. Every tenth frame of a film
    is one without gaps.
    """
    parts = [re.fullmatch(r"(.*?)(\d+)(\D*)", name) for name in names]
    numbers = sorted({int(part[2]) for part in parts if part is not None and part[2].isdecimal()})
    if len(numbers) < len(names) or len({(part[1], part[3]) for part in parts if part is not None}) != 1:
        return None
    steps = Counter(after - before for before, after in pairwise(numbers))
    if not steps or (step := min(steps)) in (0, max(steps)) or 2 * steps[step] < steps.total():
        return None
    missing = [(a + step, b - step) for a, b in pairwise(numbers) if b - a > step]
    shown = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in missing[:_SHOWN_GAPS])
    rest = len(missing) - _SHOWN_GAPS
    return f"numbers are missing among its frames: {shown}" + (f" and {rest} more" if rest > 0 else "")


def _expect_results_only(out: Path, jobs: Sequence[Job]) -> None:
    """Refuse an output within the input folder that holds originals: they would be left out or overwritten.

    Results of an interrupted run are newer than their inputs; after a run the configuration lies next to them.

    Raises:
        UsageError: it holds some.
    """
    if not out.is_dir() or (out / RESULTS_FILE).is_file():
        return
    sources = {job.destination: job.source for job in jobs}
    found = scan_folder(out)
    for path in (*found.images, *found.videos):
        source = next((sources[place] for place in (path, *path.parents) if place in sources), None)
        if source is None or (source.exists() and path.exists() and os.path.getmtime(path) < os.path.getmtime(source)):
            raise UsageError(
                f"output {out}: is part of the input folder and holds {path.name}, which is no result: choose another"
            )


def _plan_file(plan: Plan, entry: Path, out: Path, *, alone: bool, image_format: str | None) -> None:
    kind = irregular_kind(entry)  # raises OSError where there is nothing
    if kind is not None:
        plan.problems.append(f"{entry}: not a regular file: {kind}")
        return
    detected = sniff_file(entry)
    suffix = entry.suffix.lower()
    video = detected.kind == "video" if detected else suffix in VIDEO_SUFFIXES
    if video and suffix in AUDIO_SUFFIXES:
        plan.problems.append(f"{entry}: sound without a video")
        return
    suffixes = WRITABLE_SUFFIXES if video else SUFFIXES
    if alone and not os.path.isdir(out) and out.suffix.lower() in suffixes:
        if not video and image_format is not None and out.suffix.lower() not in FORMATS[image_format]:
            expected = " or ".join(FORMATS[image_format])
            raise UsageError(f"output {out}: expected a name that ends in {expected} for --format {image_format}")
        plan.jobs.append(Job(entry, out, "video" if video else "image"))
    elif video:
        plan.jobs += _video_jobs([entry], entry.parent, out)
    else:
        plan.jobs += _image_jobs([entry], entry.parent, out, image_format)


def _image_jobs(paths: Sequence[Path], root: Path, out: Path, image_format: str | None) -> list[Job]:
    return [Job(path, _renamed(out / path.relative_to(root), written_suffix(path, image_format))) for path in paths]


def _renamed(target: Path, suffix: str | None) -> Path:
    """Return a target with another suffix, in place of a known one or behind the name."""
    if suffix is None:
        return target
    known = target.suffix.lower() in (*IMAGE_SUFFIXES, *RAW_SUFFIXES, *VIDEO_SUFFIXES)
    return target.with_suffix(suffix) if known else target.with_name(target.name + suffix)


def written_suffix(path: Path, image_format: str | None) -> str | None:
    """Return the suffix of the result, None where that of the input is kept."""
    suffix = path.suffix.lower()
    if image_format is not None:
        wanted = FORMATS[image_format]
        return None if suffix in wanted else wanted[0]
    if suffix in SUFFIXES:
        return None
    return _WRITTEN_AS.get(suffix, ".png")


def _video_jobs(paths: Sequence[Path], root: Path, out: Path) -> list[Job]:
    return [
        Job(
            path,
            _renamed(out / path.relative_to(root), None if path.suffix.lower() in WRITABLE_SUFFIXES else ".mp4"),
            "video",
        )
        for path in paths
    ]


def _expect_distinct(plan: Plan) -> None:
    """Keep results apart: nothing is written twice, nor onto an input.

    Results under the name of their input have the first choice; one whose suffix changes takes its whole name where
    another result has the short one ("a.bmp.png" next to "a.png").
    """
    sources = {real_path(job.source) for job in plan.jobs}
    taken: dict[Path, Path] = {}
    folded: dict[str, Path] = {}
    placed: dict[int, Job] = {}
    for index in sorted(range(len(plan.jobs)), key=lambda i: _is_renamed(plan.jobs[i])):
        job = plan.jobs[index]
        target, source = real_path(job.destination), real_path(job.source)
        if target == source:
            raise UsageError(f"{job.source} would be overwritten by its own result: choose another output")
        if target in sources:
            raise UsageError(f"{target} is an input and would be overwritten by the result of {job.source}")
        if taken.get(target, source) != source and _is_renamed(job):
            job = replace(job, destination=_appended(job.source, job.destination))
            target = real_path(job.destination)
        other = taken.get(target)
        if other == source:
            continue
        if other is not None:
            raise UsageError(
                f"{other} and {job.source} would both be written to {job.destination}: "
                "give a folder that holds both, or run them one after the other"
            )
        # A case-insensitive or normalizing file system stores these two names as one.
        key = unicodedata.normalize("NFC", str(target)).casefold()
        if (twin := folded.get(key)) is not None:
            number = 2
            while (target := real_path(job.destination.with_stem(f"{job.destination.stem} ({number})"))) in taken:
                number += 1
            plan.notes.append(
                f"{job.source}: written as {target.name}, since its name and that of {twin.name} differ only in case "
                "or in how accents are encoded"
            )
            job = replace(job, destination=job.destination.with_name(target.name))
        taken[target] = source
        folded.setdefault(key, job.source)
        placed[index] = job
    plan.jobs = [placed[index] for index in sorted(placed)]


def _is_renamed(job: Job) -> bool:
    return job.kind != "frames" and job.destination.suffix.lower() != job.source.suffix.lower()


def frame_files(job: Job) -> list[tuple[Path, Path]]:
    """Return the frames of a folder job, each with the file that its result is written to."""
    frames = scan_folder(job.source, recursive=False).images
    targets = [_renamed(job.destination / path.name, written_suffix(path, job.image_format)) for path in frames]
    taken = Counter(target.name for target in targets)
    return [
        (path, target if taken[target.name] == 1 or target.name == path.name else _appended(path, target))
        for path, target in zip(frames, targets, strict=True)
    ]


def _appended(path: Path, target: Path) -> Path:
    """Return a target named by the whole name of its source: "a.bmp.png" next to "a.png"."""
    return target.with_name(path.name + target.suffix)


def _others(others: Counter[str]) -> str:
    return f" ({describe_others(others)})" if others else ""


def describe_others(others: Counter[str]) -> str:
    """Return "3 .txt, 1 PDF" for the files that are left out, the most frequent kind first."""
    kinds = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{number} {printable(kind)}" for kind, number in kinds[:8])
    rest = sum(number for _, number in kinds[8:])
    return f"{shown}, {rest} of other kinds" if rest else shown


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
