"""Restore one clip, a video file or a folder of frames, in bounded memory and resumable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tta_restore._core.progress import ProgressBar
from tta_restore.data.datasets.clips import ImageSequence, sliding_windows, stack_frames
from tta_restore.data.io.atomic import exclusive_lock, hidden_path
from tta_restore.data.io.color import in_range, to_model_space
from tta_restore.data.io.files import printable, real_path
from tta_restore.data.io.image import MAX_PIXELS, read_image
from tta_restore.data.io.image_writer import check_writable, write_image
from tta_restore.data.io.parts import PartStore
from tta_restore.data.io.pixels import Image, ImageError, one_line
from tta_restore.data.io.video import VideoFile
from tta_restore.data.io.video_writer import write_video
from tta_restore.engine.run.device import physical_memory
from tta_restore.engine.run.restore_plan import Job, frame_files

__all__ = [
    "FrameByFrame",
    "Output",
    "is_constant",
    "reason_not_to_adapt",
    "restore_frames",
    "restore_video",
    "sized",
]

_FEWEST_PIXELS = (4, 64)  # along a side and in all: fewer show neither blur nor noise, and cost more than a photo


_CLIP_BYTES = 27  # per pixel and frame: samples as decoded, floats, restored floats
_LARGE_CLIP = 10**9  # bytes from which the need is reported


@dataclass(frozen=True)
class Output:
    """Options for reading inputs and writing results.

    Attributes:
        quality: of lossy images, 1 to 100; None for 95.
        bit_depth: bits per sample of results; None keeps that of each input.
        strip: leave out metadata (EXIF, XMP, IPTC, text, tags); color profiles stay.
        keep_going: restore what can be read of damaged files.
        max_pixels: largest number of pixels of an image or a frame.
        deinterlace: turn interlaced video into progressive frames.
        codec: of videos, ``"h264"``, ``"hevc"``, ``"av1"``, ``"vp9"`` or ``"ffv1"``.
        crf: constant rate factor of videos; None for the codec's default.
    """

    quality: int | None = None
    bit_depth: int | None = None
    strip: bool = False
    keep_going: bool = False
    max_pixels: int = MAX_PIXELS
    deinterlace: bool = False
    codec: str = "h264"
    crf: int | None = None


class FrameByFrame:
    """Restores the frames of clips one after the other by a method of images.

    Args:
        method: from (1, 3, H, W) to (1, 3, s*H, s*W).
        device: where the method wants its input.
        fresh: whether the method is reset before every clip.
        window: number of frames around each frame that the method takes, as (1, T, 3, H, W); 1 for the frame alone.
    """

    def __init__(self, method: Any, device: str | torch.device, *, fresh: bool, window: int = 1) -> None:
        self.method, self.device, self.fresh, self.window = method, device, fresh, window

    @property
    def keeps_state(self) -> bool:
        """Return whether the method's state can be saved and loaded."""
        return callable(getattr(self.method, "save", None)) and callable(getattr(self.method, "load", None))

    def stream(self, frames: Any, *, start: int = 0, state: Path | None = None) -> Iterator[Tensor]:
        """Yield the restored frames.

        Args:
            frames: (3, H, W) each.
            start: number of frames that are passed over.
            state: file of the method's state after those, None for that at the beginning.
        """
        adapter = getattr(self.method, "adapter", None)
        if state is not None:
            self.method.load(state)
        elif self.fresh and adapter is not None:
            adapter.reset()
        for number, around in enumerate(sliding_windows(frames, self.window)):
            if number < start:
                continue
            frame = around[self.window // 2]
            # black between two shots: nothing to learn
            run = getattr(self.method, "predict", self.method) if reason_not_to_adapt(frame) else self.method
            yield run((frame if self.window == 1 else stack_frames(around))[None].to(self.device))[0]


def restore_video(job: Job, method: Any, output: Output, say: Callable[[str], None], *, progress: bool = True) -> bool:
    """Restore one video file; return whether it could be read whole.

    With a method of frames whose state can be saved, a killed run continues behind the last stored part.

    Raises:
        ImageError: it cannot be read or written, or another process is writing the same result.
    """
    video = VideoFile(
        job.source, deinterlace=output.deinterlace, keep_going=output.keep_going, max_pixels=output.max_pixels
    )
    for note in video.notes:
        say(f"note: {job.source}: {note}")
    with _locked(job.destination):
        notes = _write_video(job, method, video, output, say, progress=progress)
    for note in notes:
        say(f"note: {job.source}: {note}")
    for loss in video.losses:
        say(f"warning: {job.source}: {loss}")
    return not video.losses


def _write_video(
    job: Job, method: Any, video: VideoFile, output: Output, say: Callable[[str], None], *, progress: bool
) -> tuple[str, ...]:
    """Restore the frames of a video into its result; return a line for each thing that was changed or left out."""
    parts = None
    if not isinstance(method, FrameByFrame):
        if video.info.expected_frames:
            _announce_memory(job, video.info.expected_frames, video.info.height * video.info.width, say)
        frames = method(video.load())
    elif method.keeps_state:
        parts = _open_parts(job, method, output)
        frames = _resumed(job, method, video, parts, say)
    else:
        frames = method.stream(video)
    with sized(method, video.info.height, video.info.width) as note:
        if note:
            say(f"note: {job.source}: {note}")
        done = 0 if parts is None else parts.frames
        counted = _counted(frames, job, video.info.expected_frames, done=done, progress=progress)
        try:
            notes = write_video(
                job.destination,
                (picture.detach().float().cpu() for picture in counted),
                like=video,
                codec=output.codec,
                bit_depth=output.bit_depth,
                strip=output.strip,
                parts=parts,
                quality=output.crf,
            )
        except KeyboardInterrupt:
            stored = 0 if parts is None else parts.frames
            place = f"its first {stored} frames are stored" if stored else "none of its frames is stored yet"
            say(f"note: {job.source}: {place}")
            raise
    if parts is not None:
        parts.remove()
    return notes


def restore_frames(job: Job, method: Any, output: Output, say: Callable[[str], None], *, progress: bool = True) -> bool:
    """Restore a folder of frames as one clip, a file per frame; return whether all frames could be read whole.

    Every frame keeps its format, bits, color profile and metadata, as an image does.
    """
    files = frame_files(job)
    frames = _FrameFiles([source for source, _ in files], output)
    first = frames.image(0)
    check_writable(files[0][1], first, bit_depth=output.bit_depth, source=files[0][0])
    if not isinstance(method, FrameByFrame):
        _announce_memory(job, len(files), first.pixels[0].numel(), say)
    notes: Counter[str] = Counter(first.notes)
    losses: dict[str, None] = {}
    options = {} if output.quality is None else {"quality": output.quality}
    with _locked(job.destination), sized(method, *first.pixels.shape[-2:]) as note:
        notes.update([note] if note else [])
        results = method.stream(frames) if isinstance(method, FrameByFrame) else method(frames)
        counted = _counted(results, job, len(files), done=0, progress=progress)
        for number, ((source, path), picture) in enumerate(zip(files, counted, strict=True)):
            restored = frames.back(number)(in_range(picture.detach().float().cpu()))
            notes.update(restored.notes if number else ())
            losses |= dict.fromkeys(f"{source.name}: {loss}" for loss in restored.losses)
            notes.update(write_image(path, restored, bit_depth=output.bit_depth, strip=output.strip, **options))
    for note, count in notes.items():
        say(f"note: {job.source}: {note}" + (f" ({count} frames)" if count > 1 else ""))
    for loss in losses:
        say(f"warning: {job.source}: {loss}")
    return not losses


def _counted(frames: Iterable[Tensor], job: Job, total: int | None, *, done: int, progress: bool) -> Iterable[Tensor]:
    """Return the frames behind the first ``done`` ones, with their progress on stderr."""
    name = printable(job.source.name)
    return ProgressBar(frames, total=total, initial=done, desc=name, unit="frame", shown=progress, leave=False)


class _FrameFiles(ImageSequence):
    """Frames in image files in the color space of restorers, with the way back; the latest one is kept.

    Args:
        paths: in time.
        output: how they are read.
    """

    def __init__(self, paths: Sequence[Path], output: Output) -> None:
        super().__init__(paths)
        self._output = output
        self._latest: tuple[int, Image, Tensor, Callable[[Tensor], Image]] | None = None

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return _FrameFiles(self.paths[index], self._output)
        return self._read(index)[2]

    def image(self, number: int) -> Image:
        """Return a frame with everything that its file carries."""
        return self._read(number)[1]

    def back(self, number: int) -> Callable[[Tensor], Image]:
        """Return the function from the restored pixels of a frame to its image."""
        return self._read(number)[3]

    def _read(self, index: int) -> tuple[int, Image, Tensor, Callable[[Tensor], Image]]:
        number = range(len(self.paths))[index]
        if self._latest is None or self._latest[0] != number:
            image = read_image(
                self.paths[number], max_pixels=self._output.max_pixels, keep_going=self._output.keep_going
            )
            self._latest = (number, image, *to_model_space(image))
        return self._latest


@contextmanager
def _locked(destination: Path) -> Iterator[None]:
    """Keep other processes from writing the same clip while the block runs.

    Raises:
        ImageError: another one is writing it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(destination))
        except BlockingIOError:
            raise ImageError(f"{destination}: another run is writing it") from None
        except OSError as error:
            raise ImageError(f"{destination}: cannot be written ({one_line(error)})") from None
        yield


def _announce_memory(job: Job, frames: int, pixels: int, say: Callable[[str], None]) -> None:
    """Report the memory that a method of whole clips takes at least, or refuse a clip for which there is too little.

    Raises:
        ImageError: the machine has less memory.
    """
    needed = _CLIP_BYTES * frames * pixels
    text = f"the method takes the whole clip at once: {frames} frames need at least {needed / 1e9:.1f} GB of memory"
    available = physical_memory()
    if available is not None and needed > available:
        raise ImageError(f"{job.source}: {text}, of {available / 1e9:.1f} GB; split it into shorter clips")
    if needed > _LARGE_CLIP:
        say(f"note: {job.source}: {text}")


def _open_parts(job: Job, method: FrameByFrame, output: Output) -> PartStore:
    state = job.source.stat()
    key = {
        "source": str(real_path(job.source)),
        "size": state.st_size,
        "time": state.st_mtime_ns,
        "fresh": method.fresh,
        **asdict(output),
    }
    return PartStore(hidden_path(job.destination, "parts"), key, save_state=method.method.save)


def _resumed(
    job: Job, method: FrameByFrame, video: VideoFile, parts: PartStore, say: Callable[[str], None]
) -> Iterator[Tensor]:
    """Return the frames behind the stored parts; parts of another method or model are removed."""
    if parts.state is None:
        return method.stream(video)
    try:
        method.method.load(parts.state)
    except (ValueError, TypeError, KeyError, RuntimeError, OSError):
        parts.remove()
        return method.stream(video)
    say(f"note: {job.source}: continued behind its first {parts.frames} frames")
    return method.stream(video, start=parts.frames, state=parts.state)


def sized(method: Any, height: int, width: int) -> AbstractContextManager[str | None]:
    """Return the method's context for an image of that size, see :meth:`~.methods.ImageMethod.sized`."""
    method = method.method if isinstance(method, FrameByFrame) else method
    return method.sized(height, width) if hasattr(method, "sized") else nullcontext()


def reason_not_to_adapt(pixels: Tensor) -> str | None:
    """Return a note on an image that nothing can be learned from, None for any other. Shape: (3, H, W)."""
    height, width = pixels.shape[-2:]
    is_tiny = min(height, width) < _FEWEST_PIXELS[0] or height * width < _FEWEST_PIXELS[1]
    if not (is_tiny or is_constant(pixels)):
        return None
    kind = f"has {width} x {height} pixels" if is_tiny else "is constant"
    return f"the image {kind}: restored without adapting, nothing can be learned from it"


def is_constant(pixels: Tensor) -> bool:
    """Return whether all pixels have one color. Shape: (3, H, W)."""
    first = pixels[:, :1, :1]
    if not torch.equal(pixels[:, :1], first.expand(-1, 1, pixels.shape[2])):
        return False  # found at the first row of nearly every image
    return all(torch.equal(rows, first.expand_as(rows)) for rows in pixels.split(256, 1))
