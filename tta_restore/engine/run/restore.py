"""Restore images, videos and folders of frames: resumable, in bounded memory, one line for whatever is lost."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from tta_restore._core.progress import ProgressBar
from tta_restore.data.io.codecs import check_codec
from tta_restore.data.io.color import to_model_space
from tta_restore.data.io.files import printable
from tta_restore.data.io.image import MAX_PIXELS, read_image
from tta_restore.data.io.image_writer import BIT_DEPTHS, check_writable, write_image
from tta_restore.data.io.pixels import ImageError
from tta_restore.engine.run.device import resolve_device
from tta_restore.engine.run.methods import CLIP_METHODS, create_clip_method, create_method
from tta_restore.engine.run.models import load_restorer
from tta_restore.engine.run.pipes import PIPE, is_piped, piped
from tta_restore.engine.run.restore_clips import (
    FrameByFrame,
    Output,
    reason_not_to_adapt,
    restore_frames,
    restore_video,
    sized,
)
from tta_restore.engine.run.restore_dry_run import describe_run
from tta_restore.engine.run.restore_large import is_large, restore_large
from tta_restore.engine.run.restore_plan import (
    Job,
    Plan,
    check_output,
    describe_others,
    format_named,
    frame_files,
    plan_jobs,
)
from tta_restore.engine.run.restore_state import RestoreState, StateError, open_state
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.run.user_code import place_in_user_code

__all__ = ["Output", "RestoreMethod", "Summary", "restore_files", "run_jobs"]

#: From (1, 3, H, W) in [0, 1] to (1, 3, s*H, s*W). A method that learns also has `save`, `load` and `adapter.reset`.
RestoreMethod = Callable[[Tensor], Tensor]

_DEPTHS = {"image": (8, 16, 32), "frames": (8, 16, 32), "video": (8, 10, 12)}  # bits per sample by kind of job
_LOSSLESS = (".png", ".tif", ".tiff", ".exr")
_LOG = logging.getLogger(__name__)  # tracebacks
_HEADERS = 2**28  # bytes of metadata that an image on standard input may have


@dataclass
class Summary:
    """Counts of inputs that were restored, already present, failed, and partly restored.

    Attributes:
        restored: inputs that have their result now, those in `incomplete` included.
        kept: inputs whose result was there already.
        failed: inputs without a result.
        incomplete: inputs of which a part is lost.
        left_out: number of files in the folders that are neither images nor videos, by kind.
        fragments: frames that were written of clips that failed.
    """

    restored: int = 0
    kept: int = 0
    failed: int = 0
    incomplete: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    fragments: int = 0

    @property
    def exit_code(self) -> int:
        """0 when every input has its whole result, 1 otherwise."""
        return 1 if self.failed or self.incomplete else 0

    @property
    def has_written(self) -> bool:
        """True if this run wrote a result."""
        return self.restored > 0 or self.fragments > 0

    def __str__(self) -> str:
        parts = [f"{self.restored} restored"]
        if self.incomplete:
            parts.append(f"{self.incomplete} of them in part")
        if self.kept:
            parts.append(f"{self.kept} kept from before")
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.left_out:
            parts.append(f"left out: {describe_others(self.left_out)}")
        return ", ".join(parts)


def restore_files(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    method: str = "recommended",
    model: str = "generalist",
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    clips: bool = False,
    reblur: str | Path | None = None,
    discriminator: str | Path | None = None,
    method_options: Mapping[str, Any] | None = None,
    budget: str | None = None,
    format: str | None = None,
    quality: int | None = None,
    bit_depth: int | None = None,
    strip: bool = False,
    codec: str = "h264",
    crf: int | None = None,
    deinterlace: bool = False,
    keep_going: bool = False,
    max_pixels: int = MAX_PIXELS,
    state: str | Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    device: str | None = None,
    seed: int = 0,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> Summary:
    """Restore images, videos and folders of them.

    Images are restored one after the other by a method that may learn from each of them. A video, and with `clips` a
    folder of images, is a clip: the method starts anew with it, unless `state` carries the method on.

    Args:
        inputs: image files, videos, and folders of them; ``-`` is one image from standard input.
        out: folder for the results, or a file for a single input; ``-`` writes one image to standard output.
        method: how to adapt, one of :data:`tta_restore.engine.run.methods.METHODS` or ``"meta-transfer"`` for clips.
        model: shipped weights, a checkpoint file, ``module.path:callable``, or a registered model such as ``ifan``.
        checkpoint: weights of a registered model.
        config: keywords of the model's builder.
        clips: restore every folder of images as one clip.
        reblur: file of a reblurring network, for meta-transfer (default: one that needs no training)
        discriminator: file of a discriminator, for meta-transfer
        method_options: keywords of the method.
        budget: time that adaptation to one image or frame may take, such as 20s, or 10x for ten passes through the
            model; short for ``--method.budget``.
        format: format of the resulting images: png, jpeg, tiff, webp, avif, jxl or exr; None keeps that of each input.
        quality: of JPEG, WebP, AVIF and JPEG XL, 1 to 100; None for 95.
        bit_depth: bits per sample of the results: 8, 16 or 32 (float) for images, 8, 10 or 12 for videos; None keeps
            that of each input.
        strip: leave out metadata (EXIF, XMP, IPTC, text, tags); color profiles are kept.
        codec: of the resulting videos: h264, hevc, av1, vp9, or ffv1 (lossless).
        crf: constant rate factor of the resulting videos, lower is better; None for a nearly invisible loss.
        deinterlace: turn interlaced video into progressive frames; else it is restored as it is, with a note.
        keep_going: restore what can be read of damaged images and videos, and name what is lost.
        max_pixels: largest number of pixels of an image or a frame of a video.
        state: file that keeps what the method learned, saved after every input; a later run continues from it.
        overwrite: restore also what has its result already.
        dry_run: print what would be done and how long it would take, and write nothing.
        device: where to run, such as cpu or cuda; None for a CUDA device where there is one.
        seed: of the method.
        progress: show a progress bar, or lines where stderr is not a terminal.
        say: receives each line for the user; None writes them to stderr.

    Raises:
        UsageError: it cannot be done as asked; nothing has been written.
    """
    arguments: dict[str, Any] = dict(locals())
    say = say or _to_stderr
    inputs = [inputs] if isinstance(inputs, (str, Path)) else inputs
    format = format_named(format)
    arguments["format"] = format
    if is_piped(inputs, out):
        if clips or method in CLIP_METHODS:
            raise UsageError(f"{PIPE} stands for one image, and clips were asked for")
        with piped(inputs, out, image_format=format, max_bytes=16 * max_pixels + _HEADERS) as (files, target, named):
            arguments |= {"inputs": files, "out": target, "say": lambda line: say(named(line))}
            return restore_files(**arguments)
    output = Output(quality, bit_depth, strip, keep_going, max_pixels, deinterlace, codec, crf)
    _expect_settings(output, format)
    clips = clips or method in CLIP_METHODS
    plan = plan_jobs(inputs, out, clips=clips, image_format=format)
    check_output(plan, inputs, out, state)
    _expect_use(plan, output, clips)
    for problem in plan.problems:
        say(f"error: {problem}")
    for note in plan.notes:
        say(f"note: {note}")
    device = resolve_device(device)
    try:
        restorer = load_restorer(model, device=device, checkpoint=checkpoint, config=config)
        window = 1 if restorer.spec is None else restorer.spec.frames
        whole_clips = method in CLIP_METHODS or window is None
        if whole_clips and state is not None:
            name = str(method if method in CLIP_METHODS else model)
            raise UsageError(f"--state is for methods that carry on from frame to frame; {name!r} takes whole clips")
        options: dict[str, Any] = dict(method_options or {}) | ({} if budget is None else {"budget": budget})
        given: dict[str, Any] = {
            n: v for n, v in (("reblur", reblur), ("discriminator", discriminator)) if v is not None
        }
        if given and method not in CLIP_METHODS:
            raise UsageError(f"method {method!r} takes no {next(iter(given))}; that is for {', '.join(CLIP_METHODS)}")
        if whole_clips:
            runner: Any = create_clip_method(method, restorer, seed=seed, device=device, **given, **options)
        else:
            runner = create_method(method, restorer, seed=seed, **options)
    except UsageError:
        raise
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    if whole_clips or window != 1:
        _drop_images(plan, method if method in CLIP_METHODS else f"{model} takes several frames and", clips, say)
    if dry_run:
        show = print if say is _to_stderr else say
        describe_run(plan, runner, output, device=device, window=None if whole_clips else window, say=say, show=show)
        return Summary(failed=len(plan.problems), left_out=plan.left_out)
    summary = run_jobs(
        plan.jobs,
        runner,
        output=output,
        state=state,
        overwrite=overwrite,
        progress=progress,
        device=device,
        whole_clips=whole_clips,
        window=window or 1,
        say=say,
    )
    summary.failed += len(plan.problems)
    summary.left_out = plan.left_out
    return summary


def _drop_images(plan: Plan, what: str, clips: bool, say: Callable[[str], None]) -> None:
    """Turn the images of a plan into problems, for what restores clips only.

    Raises:
        UsageError: the plan consists of images.
    """
    hint = "" if clips else " (--clips takes a folder as one)"
    if plan.jobs and all(job.kind == "image" for job in plan.jobs):
        raise UsageError(f"{plan.jobs[0].source}: {what} restores clips: videos or folders of images{hint}")
    problems = [
        f"{job.source}: {what} restores clips: videos or folders of images{hint}"
        for job in plan.jobs
        if job.kind == "image"
    ]
    for problem in problems:
        say(f"error: {problem}")
    plan.problems += problems
    plan.jobs = [job for job in plan.jobs if job.kind != "image"]


def run_jobs(
    jobs: Sequence[Job],
    method: Any,
    *,
    output: Output | None = None,
    state: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    device: str | torch.device = "cpu",
    whole_clips: bool = False,
    window: int = 1,
    say: Callable[[str], None] | None = None,
) -> Summary:
    """Restore inputs one after the other with a method that may learn from each of them.

    A result that is there already is kept unless its input is newer. With `state`, the method is loaded from that
    file when it exists and saved to it after every input, together with the list of inputs it has seen: whenever the
    process dies, running it again gives the results of an uninterrupted run, bit for bit.

    Args:
        jobs: from :func:`tta_restore.engine.run.restore_plan.plan_jobs`.
        method: a :data:`RestoreMethod`; with `whole_clips` a function from the frames of a clip to an iterator over
            the restored frames.
        output: how inputs are read and results are written; None for the defaults of :class:`Output`.
        state: file of the method's state.
        overwrite: restore also what is there already.
        progress: show a bar on stderr, or lines where it is not a terminal.
        device: where the method wants its input.
        whole_clips: whether the method takes whole clips.
        window: number of frames around each frame of a clip that the method takes, see :class:`FrameByFrame`.
        say: receives each line for the user; None writes them to stderr.

    Raises:
        UsageError: `state` was asked for and the method has no `save` and `load`, or the file does not fit it, or
            another run uses it.
    """
    say, output = say or _to_stderr, output or Output()
    summary = Summary()
    if hasattr(method, "adapter"):
        method.adapter.show_progress = progress
    clip_method = method if whole_clips else FrameByFrame(method, device, fresh=state is None, window=window)
    kinds = Counter(job.kind for job in jobs)
    with (
        open_state(state, method) as keeper,
        ProgressBar(total=len(jobs), kinds=kinds, unit="file", shown=progress) as bar,
    ):
        for job in jobs:
            bar.set_postfix_str(printable(job.source.name))
            if not overwrite and _is_done(job, keeper):
                summary.kept += 1
                bar.skip(kind=job.kind)
                continue
            own = output if output.bit_depth in (None, *_DEPTHS[job.kind]) else replace(output, bit_depth=None)
            try:
                if job.kind == "image":
                    is_whole = _restore_image(job, method, device, own, say)
                else:
                    restore = restore_video if job.kind == "video" else restore_frames
                    is_whole = restore(job, clip_method, own, say, progress=progress)
            except (Exception, SystemExit) as error:  # whatever a third-party model raises concerns this input alone
                summary.failed += 1
                text = f"{job.source}: {type(error).__name__}: {_first_line(error)}{place_in_user_code(error)}"
                say(f"error: {error if isinstance(error, ImageError) else text}")
                _LOG.debug("%s", job.source, exc_info=error)
                if written := _frames_there(job):
                    summary.fragments += written
                    say(f"note: {job.source}: {written} of its frames lie in {job.destination}")
                bar.skip(kind=job.kind)
                continue
            if keeper is not None:
                try:
                    keeper.save(job.source)
                except (OSError, SafetensorError) as error:
                    raise StateError(f"cannot be written ({error})") from error
            summary.restored += 1
            summary.incomplete += not is_whole
            bar.update(kind=job.kind)
    if trust := str(getattr(method, "tally", "")):
        say(f"note: {trust}")
    return summary


def _restore_image(
    job: Job, method: RestoreMethod, device: str | torch.device, output: Output, say: Callable[[str], None]
) -> bool:
    """Restore one image file; return whether it could be read whole."""
    if is_large(job.source, output):
        return restore_large(job, method, device, output, say)
    image = read_image(job.source, max_pixels=output.max_pixels, keep_going=output.keep_going)
    notes: list[str] = []
    check_writable(job.destination, image, bit_depth=output.bit_depth, source=job.source)
    rgb, back = to_model_space(image)
    with sized(method, rgb.shape[-2], rgb.shape[-1]) as note:
        notes += [note] if note else []
        if (reason := reason_not_to_adapt(rgb)) is not None:
            notes.append(reason)
            result = getattr(method, "predict", method)(rgb[None].to(device))[0].detach().float().cpu()
        else:
            result = method(rgb[None].to(device))[0].detach().float().cpu()
    losses = image.losses
    low, high = result.aminmax()
    if not (
        low >= 0 and high <= 1
    ):  # a copy of a large photo is hundreds of megabytes; the tensor may be the method's own
        result = result.clamp(0, 1)
    restored = back(result)
    notes = [*restored.notes, *notes]
    del image, rgb, result, back  # the samples of a large photo are hundreds of megabytes
    options = {} if output.quality is None else {"quality": output.quality}
    notes += write_image(job.destination, restored, bit_depth=output.bit_depth, strip=output.strip, **options)
    for note in notes:
        say(f"note: {job.source}: {note}")
    for loss in losses:
        say(f"warning: {job.source}: {loss}")
    return not losses


def _is_done(job: Job, keeper: RestoreState | None) -> bool:
    try:
        files = frame_files(job) if job.kind == "frames" else [(job.source, job.destination)]
        if not files or not all(made.is_file() for _, made in files):
            return False
        if keeper is not None:
            return keeper.has_seen(job.source)
        return min(made.stat().st_mtime for _, made in files) >= max(source.stat().st_mtime for source, _ in files)
    except OSError:
        return False


def _frames_there(job: Job) -> int:
    """Return the number of frames of a folder job that have their result."""
    with suppress(OSError):
        return sum(made.is_file() for _, made in frame_files(job)) if job.kind == "frames" else 0
    return 0


def _expect_settings(output: Output, image_format: str | None) -> None:
    """Check numbers before they mean something."""
    if output.quality is not None and not 1 <= output.quality <= 100:
        raise UsageError(f"expected quality from 1 to 100, got {output.quality}")
    if output.bit_depth not in (None, 8, 10, 12, 16, 32):
        raise UsageError(f"expected bit_depth 8, 16 or 32 for images, 8, 10 or 12 for videos, got {output.bit_depth}")
    if output.max_pixels < 1:
        raise UsageError(f"expected max_pixels >= 1, got {output.max_pixels}")
    if image_format is not None and output.bit_depth in (8, 16, 32):
        possible = BIT_DEPTHS[image_format]
        if output.bit_depth not in possible and not (image_format == "exr" and output.bit_depth == 8):
            raise UsageError(
                f"--bit-depth {output.bit_depth}: {image_format} holds {' or '.join(map(str, possible))} bits"
            )
    try:
        check_codec(output.codec, output.crf)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _expect_use(plan: Plan, output: Output, clips: bool) -> None:
    """Note options that concern none of the inputs.

    Raises:
        UsageError: no result can have the bit depth that was asked for.
    """
    kinds = {job.kind for job in plan.jobs}
    unable = [kind for kind in sorted(kinds) if output.bit_depth not in (None, *_DEPTHS[kind])]
    if unable:
        holds = f"{unable[0]} results have {', '.join(map(str, _DEPTHS[unable[0]]))} bits"
        if len(unable) == len(kinds):
            raise UsageError(f"--bit-depth {output.bit_depth}: {holds}")
        plan.notes.append(f"--bit-depth {output.bit_depth}: {holds}, these keep that of their input")
    for_videos = {
        "--codec": output.codec != "h264", "--crf": output.crf is not None, "--deinterlace": output.deinterlace
    }  # fmt: skip
    idle = [flag for flag, is_given in for_videos.items() if is_given and kinds and "video" not in kinds]
    if output.quality is not None and kinds == {"image"}:
        lossless = all(job.destination.suffix.lower() in _LOSSLESS for job in plan.jobs)
        idle += ["--quality"] if lossless else []
    if clips and kinds == {"image"}:
        idle.append("--clips")
    if idle:
        plan.notes.append(f"without effect on these inputs: {', '.join(idle)}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:200]


def _to_stderr(line: str) -> None:
    # Lines and bar share stderr: tqdm.write lifts the bar for a line.
    tqdm.write(printable(line), file=sys.stderr)
