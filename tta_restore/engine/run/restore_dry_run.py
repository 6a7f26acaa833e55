"""Describe a run of `restore` without restoring: what would be written, and how long it would take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from tta_restore.data.io.files import printable
from tta_restore.data.io.image import read_image
from tta_restore.data.io.pixels import ImageError
from tta_restore.data.io.video import VideoFile
from tta_restore.engine.run.restore_clips import Output
from tta_restore.engine.run.restore_plan import Job, Plan, frame_files
from tta_restore.engine.run.usage import duration

__all__ = ["describe_run"]


def describe_run(
    plan: Plan,
    method: Any,
    output: Output,
    *,
    device: Any,
    window: int | None,
    say: Callable[[str], None],
    show: Callable[[str], None],
) -> None:
    """Show what a run would do, with the time that a part of the first image lets expect.

    Args:
        plan: the inputs and where their results belong.
        method: a method for frames, or for ``window`` of them.
        output: how inputs are read.
        device: where the method wants its input.
        window: number of frames that the method takes; None for whole clips, whose time is not estimated.
        say: receives a line for each input that cannot be read.
        show: receives the lines of the description.
    """
    pixels = 0
    sample: Tensor | None = None
    streams = [0]  # frames of the images, which are one stream, and of each clip
    for job in plan.jobs:
        count, size, frame = _measure_job(job, output, say)
        if sample is None:
            sample = frame
        pixels += count * size
        if job.kind == "image":
            streams[0] += count
        else:
            streams.append(count)
        show(f"would restore {printable(str(job.source))} -> {printable(str(job.destination))}")
    line = f"{len(plan.jobs)} inputs, {pixels / 1e6:.1f} million pixels"
    if sample is not None and window is not None:
        crop = sample[None, :, :256, :256].contiguous().to(device)
        x = crop if window == 1 else crop[:, None].expand(-1, window, -1, -1, -1)
        line += f", about {duration(_expected_seconds(method, x, pixels, streams))}"
    show(line)


def _expected_seconds(method: Any, x: Tensor, pixels: int, streams: Sequence[int]) -> float:
    """Return the expected time of a run from that of one frame ``x``.

    A method that calibrates takes its steps on patches, for the first frames of a stream only: their time does not
    grow with the frame.
    """

    def timed(restore: Callable[[Tensor], Any]) -> float:
        start = time.perf_counter()
        restore(x)
        return time.perf_counter() - start

    frames = pixels / (x.shape[-1] * x.shape[-2])
    whole = timed(method)
    limit = getattr(getattr(method, "adapter", None), "calibration_frames", None)
    if limit is None:
        return whole * frames
    plain = timed(method.predict)
    return plain * frames + max(whole - plain, 0.0) * sum(min(count, limit) for count in streams)


def _measure_job(job: Job, output: Output, say: Callable[[str], None]) -> tuple[int, int, Tensor | None]:
    """Return the number of frames of an input, the pixels of each and the first one; (0, 0, None) if unreadable."""
    try:
        if job.kind == "video":
            video = VideoFile(job.source, max_pixels=output.max_pixels)
            info = video.info
            return info.expected_frames or 1, info.height * info.width, next(iter(video), None)
        paths = [job.source] if job.kind == "image" else [source for source, _ in frame_files(job)]
        first = read_image(paths[0], max_pixels=output.max_pixels, keep_going=output.keep_going).as_rgb()
        return len(paths), first[0].numel(), first
    except ImageError as error:
        say(f"error: {error}")
        return 0, 0, None
