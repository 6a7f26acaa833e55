"""Read video files through PyAV (the extra "video"): upright, with their colors, bits and times."""

from __future__ import annotations

import importlib
import io
import re
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tta_restore.data.datasets.clips import Clip
from tta_restore.data.io.atomic import is_text
from tta_restore.data.io.codecs import (
    CLOCK,
    interpolation,
)  # fmt: skip
from tta_restore.data.io.decoders import OPEN_ENDED, is_cut, strict_decoder
from tta_restore.data.io.formats import irregular_kind
from tta_restore.data.io.frame_times import timed, with_early_times
from tta_restore.data.io.pixels import ImageError, too_large
from tta_restore.data.io.side_data import Hdr10, describe_lost, kinds_of, orientation_of, read_hdr10
from tta_restore.data.io.structure import count_avi_frames, ffv1_checksums, is_broken

__all__ = ["MAX_FRAME_PIXELS", "DecodedFrames", "VideoFile", "VideoInfo"]
#: Default limit on the pixels of a frame.
MAX_FRAME_PIXELS = 160_000_000
_HDR_CURVES = {16: "PQ", 18: "HLG"}
_HIGHEST_RATE = 2000  # frames per second; more are nonsense in a header
_LONGEST_GROUP = 10  # seconds after damage for which a key frame is awaited
_CLOCK_TIME = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")
_EVEN = 0.95  # fraction of equal steps in time from which on a gap means lost frames
_BROKEN = "damaged or truncated: its parts do not follow each other to its end, or differ from their checksums"
_TRIED_FRAMES = 5  # of which one has to be interlaced for the video to count as such


@dataclass(frozen=True)
class VideoInfo:
    """Properties that a video file declares.

    Attributes:
        height: of the upright frames, pixels.
        width: of the upright frames, pixels.
        frame_rate: frames per second, on average.
        bit_depth: 8, or 9 and more.
        frames: number of frames, None where the file does not declare it.
        expected_frames: the same, by length and rate where the file declares those only; None where it does not.
        sound: whether there is a sound track.
        colors: numbers of matrix, primaries and transfer curve, 2 where the file declares none.
        sample_aspect_ratio: width of an upright pixel divided by its height.
        is_interlaced: whether frames consist of two fields from different times.
        chroma: chroma subsampling, ``"420"``, ``"422"`` or ``"444"``.
        hdr10: mastering display and content light level, None where the file declares none.
    """

    height: int
    width: int
    frame_rate: Fraction
    bit_depth: int
    frames: int | None
    sound: bool
    colors: tuple[int, int, int]
    sample_aspect_ratio: Fraction = Fraction(1)
    is_interlaced: bool = False
    chroma: str = "420"
    hdr10: Hdr10 | None = None
    expected_frames: int | None = None


class DecodedFrames(Sequence[Tensor]):
    """Frames in memory at the bits of their file; indexing returns floats.

    Args:
        samples: (3, H, W) of uint8 or uint16 each.
    """

    def __init__(self, samples: Sequence[Tensor]) -> None:
        self.samples = list(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int | slice) -> Any:
        """Return one frame, (3, H, W) in [0, 1], or the frames of a slice."""
        return DecodedFrames(self.samples[index]) if isinstance(index, slice) else _as_float(self.samples[index])


@dataclass
class VideoFile:
    """A video file; iterating over it decodes frame after frame, (3, H, W) in [0, 1], in constant memory.

    The first video stream that is no cover image is read.

    Args:
        path: the file.
        deinterlace: turn interlaced video into progressive frames, as many as there were.
        keep_going: leave out damaged frames instead of raising an error.
        max_pixels: largest number of pixels of a frame.

    Attributes:
        info: properties that it declares.
        notes: one line for each remark to the user before the work.
        side_data: kinds of data within the frames decoded so far that are not written.
        losses: a line for each part that could not be read, complete after the last frame.

    Raises:
        ImageError: the file is missing, no regular file or no video, or PyAV is not installed.
    """

    path: Path
    deinterlace: bool = False
    keep_going: bool = False
    max_pixels: int = MAX_FRAME_PIXELS
    info: VideoInfo = field(init=False)
    notes: list[str] = field(init=False, default_factory=list)
    losses: list[str] = field(init=False, default_factory=list)
    side_data: set[str] = field(init=False, default_factory=set)
    _ticks: array[int] = field(init=False, repr=False)
    _has_checksums: bool = field(init=False, repr=False, default=False)

    def __post_init__(self) -> None:
        self.path, self._ticks = Path(self.path), array("q")
        with opened(self.path) as container:
            stream = film_of(container, self.path)
            codec = stream.codec_context
            if codec is None:
                raise ImageError(f"{self.path}: a video in a codec that is not known here")
            if codec.width * codec.height > self.max_pixels:
                raise ImageError(f"{self.path}: {too_large(codec.width, codec.height, self.max_pixels)}")
            first, is_interlaced = self._first_frames(container, stream)
            turned = orientation_of(first)[0] % 2 == 1
            height, width = (first.width, first.height) if turned else (first.height, first.width)
            aspect = stream.sample_aspect_ratio or codec.sample_aspect_ratio or Fraction(1)
            aspect = Fraction(aspect) if aspect > 0 else Fraction(1)
            length, _ = _declared_length(container, stream)
            expected = 0 if length is None else round(length * _rate_of(stream))
            if expected > self.path.stat().st_size:  # no frame takes less than a byte: nonsense in a header
                expected = 0
            self.info = VideoInfo(
                height=height,
                width=width,
                frame_rate=_rate_of(stream),
                bit_depth=max(component.bits for component in first.format.components),
                frames=stream.frames or None,
                sound=bool(container.streams.audio),
                colors=(int(first.colorspace), int(codec.color_primaries), int(codec.color_trc)),
                sample_aspect_ratio=1 / aspect if turned else aspect,
                is_interlaced=is_interlaced,
                chroma=_chroma_of(first.format),
                hdr10=read_hdr10(first),
                expected_frames=stream.frames or expected or None,
            )
            self._note(container, stream, first)

    def __iter__(self) -> Iterator[Tensor]:
        return map(_as_float, self._samples())

    @property
    def times(self) -> list[Fraction]:
        """Seconds at which the frames that were decoded so far are shown, counted from the start of the file."""
        return [Fraction(ticks, CLOCK) for ticks in self._ticks]

    def ticks_of(self, number: int) -> int | None:
        """Return the time of a frame in 1/90000 s, None where it has not been decoded."""
        return self._ticks[number] if number < len(self._ticks) else None

    def load(self) -> DecodedFrames:
        """Return all frames at the bits of the file: 3 bytes per pixel and frame, 6 from 9 bits on."""
        return DecodedFrames(list(self._samples()))

    def clip(self) -> Clip:
        """Return all frames as a clip without originals."""
        return Clip(self.path.stem, self.load())

    def _first_frames(self, container: Any, stream: Any) -> tuple[Any, bool]:
        frames, problem = [], None
        try:
            for packet in container.demux(stream):
                if stream.codec_context.name == "ffv1":
                    self._has_checksums |= any(ffv1_checksums(bytes(packet)))
                try:
                    frames += stream.codec_context.decode(packet)
                except Exception as error:  # libav's own, one class per error number
                    problem = error
                    if not self.keep_going:
                        break
                if len(frames) >= _TRIED_FRAMES:
                    break
        except Exception as error:
            problem = error
        if frames:
            return frames[0], any(frame.interlaced_frame for frame in frames)
        if problem is not None:
            raise ImageError(f"{self.path}: damaged video ({error_line(problem)})")
        raise ImageError(f"{self.path}: a video without frames")

    def _note(self, container: Any, stream: Any, first: Any) -> None:
        info = self.info
        if info.is_interlaced:
            done = "its fields are combined into progressive frames" if self.deinterlace else (
                "restored as it is, and written as progressive frames; --deinterlace removes the comb of its fields"
            )  # fmt: skip
            self.notes.append(f"interlaced video: {done}")
        if (curve := _HDR_CURVES.get(info.colors[2])) is not None:
            self.notes.append(f"high dynamic range ({curve}): restored as it is encoded; its color tags are kept")
        films = [other for other in container.streams.video if not _is_cover(other)]
        covers = len(container.streams.video) - len(films)
        if len(films) > 1:
            self.notes.append(f"{len(films)} video streams: the first one is restored, the others are left out")
        if covers:
            self.notes.append("cover picture left out")
        self.side_data |= kinds_of(first)
        self.notes += describe_lost(self.side_data)
        has_alpha = any(component.is_alpha for component in first.format.components)
        if has_alpha or stream.metadata.get("alpha_mode") == "1":  # WebM: in packets of its own
            self.notes.append("alpha channel left out")

    def _samples(self) -> Iterator[Tensor]:
        deep = self.info.bit_depth > 8
        del self._ticks[:]
        self.losses.clear()
        with opened(self.path) as container:
            stream = film_of(container, self.path)
            offset = start_of(container)
            frames = self._decoded(container, stream, strict_decoder(stream, deep))
            if self.deinterlace and self.info.is_interlaced:
                frames = _deinterlaced(frames, stream)
            step = round(CLOCK / self.info.frame_rate)
            last: int | None = None
            if container.format.name.startswith("matroska"):
                frames = with_early_times(frames, step)
            for frame, last in timed(frames, offset, step):
                self._ticks.append(last)
                picture = frame.reformat(
                    format="rgb48le" if deep else "rgb24",
                    src_color_range=frame.color_range,
                    interpolation=interpolation(),
                )
                samples = torch.from_numpy(picture.to_ndarray()).permute(2, 0, 1)
                self.side_data |= kinds_of(frame)
                turns, mirrored = orientation_of(frame)
                yield torch.rot90(samples.flip(2) if mirrored else samples, turns, (1, 2)).contiguous()
            self._check_end(container, stream, last, step)

    def _decoded(self, container: Any, stream: Any, decoder: Any) -> Iterator[Any]:
        """Yield the frames that can be decoded, and note the damage."""
        good = bad = taken = 0
        skipped: int | None = None
        longest = round(_LONGEST_GROUP * self.info.frame_rate)
        first: float | None = None
        # AVI stores one time per packet, in order, and none for reordered frames: these take the packets' times.
        times: deque[int] | None = deque() if container.format.name == "avi" else None
        size = None
        group: list[Any] = []  # packets from the last key frame on
        is_open_ended = container.format.name in OPEN_ENDED
        packets = container.demux(stream)
        while True:
            problem: Exception | None = None
            frames: list[Any] = []
            try:
                packet = next(packets, None)
            except Exception as error:  # the file's structure itself: nothing behind it can be found
                packet, problem = None, error
            if packet is not None:
                taken += packet.size > 0
                if is_open_ended and packet.size:
                    if packet.is_keyframe or len(group) > longest:
                        group.clear()
                    group.append(packet)
                if times is not None and packet.size and packet.dts is not None:
                    times.append(packet.dts)
                try:
                    if self._has_checksums and packet.size:
                        fits = ffv1_checksums(bytes(packet))
                        if not fits or not all(fits):
                            raise ValueError("a checksum differs")
                    frames = decoder.decode(packet)
                except Exception as error:
                    problem = error
                    if times:
                        times.pop()
            damaged = (problem is not None) + sum(bool(frame.is_corrupt) for frame in frames)
            if damaged:
                where = float(good / self.info.frame_rate)
                first = where if first is None else first
                if not self.keep_going:
                    reason = error_line(problem) if problem is not None else "a frame of which parts are missing"
                    raise ImageError(
                        f"{self.path}: damaged after frame {good}, {where:.1f} s ({reason}); "
                        "--keep-going restores what can be read"
                    )
                bad += damaged
                skipped = skipped or 0  # frames up to the next key frame are made of the damaged one
            for frame in frames:
                if times:
                    frame.pts = times.popleft()
                if skipped is not None and (frame.key_frame or skipped >= longest):
                    skipped = None
                if frame.is_corrupt or skipped is not None:
                    bad += not frame.is_corrupt
                    skipped = 0 if skipped is None else skipped + 1
                    continue
                size = size or (frame.width, frame.height)
                if (frame.width, frame.height) != size:
                    change = f"change from {size[0]} x {size[1]} to {frame.width} x {frame.height} after frame {good}"
                    if not self.keep_going:
                        raise ImageError(f"{self.path}: its frames {change}: split it there first")
                    self.losses.append(f"the frames {change}: the rest is left out")
                    return
                good += 1
                yield frame
            if packet is None:
                break
        if bad:
            self.losses.append(f"damaged: {bad} frames from {first:.1f} s on are lost, {good} frames are good")
        if good == 0:
            raise ImageError(f"{self.path}: damaged video, no frame can be read")
        if group and not bad and is_cut(decoder, group):
            self.losses.append("damaged or truncated: the last frame is not whole")
        if times is not None and not bad:
            held, is_whole = count_avi_frames(self.path, stream.index)
            if not is_whole:
                self.losses.append(_BROKEN)
            elif taken < held:
                self.losses.append(f"damaged: {held - taken} frames are lost, {good} are good")

    def _check_end(self, container: Any, stream: Any, last: int | None, step: int) -> None:
        """Note that frames are missing: a file ends before the length that it declares, or has gaps."""
        if container.format.name == "avi":  # has been counted
            return
        if not self.losses and not container.format.name.startswith("mov"):
            # These demuxers skip a damaged stretch silently; MP4 has a table of its frames instead.
            steps = np.diff(np.frombuffer(self._ticks, np.int64)) if len(self._ticks) > 2 else np.zeros(0)
            gaps = steps > 1.5 * step
            if gaps.any() and (abs(steps - step) < 0.1 * step + 100).mean() >= min(_EVEN, 1 - 2 / len(steps)):
                at = self._ticks[int(gaps.argmax())] / CLOCK
                missing = int((steps[gaps] / step).round().sum() - gaps.sum())
                self.losses.append(f"damaged or incomplete: {missing} frames are missing from {at:.1f} s on")
        if not self.losses and is_broken(self.path, container.format.name):
            self.losses.append(_BROKEN)
        expected, is_own = _declared_length(container, stream)
        if expected is None or last is None:
            return
        end = Fraction(last + step, CLOCK)
        # A container's length is that of its longest track; sound may outlast the frames a little.
        slack = max(Fraction(3 * step, CLOCK), expected / 50 if self.info.sound else Fraction(0))
        if not is_own and self.info.sound:
            slack = max(slack, Fraction(1))
        if end + slack < expected and not self.losses:
            self.losses.append(
                f"damaged or truncated: the video ends after {float(end):.1f} of {float(expected):.1f} s"
            )


def _rate_of(stream: Any) -> Fraction:
    """Return the frames per second; of some files, such as DV, the average is nonsense."""
    rates = (Fraction(rate) for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate) if rate)
    return next((rate for rate in rates if 0 < rate <= _HIGHEST_RATE), Fraction(25))


def _declared_length(container: Any, stream: Any) -> tuple[Fraction | None, bool]:
    """Return the seconds from the first to the last frame that a file declares, and whether for the film alone."""
    if stream.duration and stream.time_base:
        # ASF gives every track the length of the file
        return Fraction(stream.duration) * stream.time_base, container.format.name != "asf"
    if container.format.name.startswith("matroska"):  # counts from zero, wherever the film starts
        start = start_of(container)
        if found := _CLOCK_TIME.fullmatch(stream.metadata.get("DURATION", "")):
            hours, minutes, seconds = map(Fraction, found.groups())
            return 3600 * hours + 60 * minutes + seconds - start, True
        return (Fraction(container.duration, 1_000_000) - start if container.duration else None), False
    return (Fraction(container.duration, 1_000_000) if container.duration else None), False


def _deinterlaced(frames: Iterator[Any], stream: Any) -> Iterator[Any]:
    """Yield progressive frames, one for each of interlaced ones, by FFmpeg's bwdif."""
    av = importlib.import_module("av")
    graph: Any = None
    for frame in frames:
        if graph is None:
            graph = av.filter.Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=stream.time_base
            )
            deinterlacer = graph.add("bwdif", "mode=send_frame:parity=auto:deint=all")
            sink = graph.add("buffersink")
            source.link_to(deinterlacer)
            deinterlacer.link_to(sink)
            graph.configure()
        graph.push(frame)
        yield from _pulled(graph)
    if graph is not None:
        graph.push(None)
        yield from _pulled(graph)


def _pulled(graph: Any) -> Iterator[Any]:
    errors = importlib.import_module("av.error")
    while True:
        try:
            yield graph.pull()
        except (errors.BlockingIOError, errors.EOFError):
            return


def _chroma_of(pixels: Any) -> str:
    """Return the subsampling that holds the chroma of a pixel format, ``"420"`` for gray."""
    if pixels.is_rgb or pixels.has_palette:
        return "444"
    if len(pixels.components) < 3:
        return "420"
    is_narrow, is_low = pixels.chroma_width(64) < 64, pixels.chroma_height(64) < 64
    return "420" if is_narrow and is_low else "422" if is_narrow else "444"


def film_of(container: Any, path: Path) -> Any:
    """Return the first video stream that is no cover picture."""
    film = next((stream for stream in container.streams.video if not _is_cover(stream)), None)
    if film is None:
        raise ImageError(f"{path}: holds a cover picture and no video")
    return film


def _is_cover(stream: Any) -> bool:
    disposition = importlib.import_module("av.stream").Disposition
    return bool(stream.disposition & disposition.attached_pic)


def start_of(container: Any) -> Fraction:
    """Return the seconds at which a container starts; transport streams start anywhere."""
    start = Fraction(container.start_time or 0, 1_000_000)
    # Matroska holds negative times; those of MP4 are what its edit list cuts off
    return start if container.format.name.startswith("matroska") else max(Fraction(0), start)


def _as_float(samples: Tensor) -> Tensor:
    return samples.to(torch.float32) / (255 if samples.dtype == torch.uint8 else 65535)


class _SelfClosing(io.FileIO):
    """A file whose name libav refuses; a container leaves it open."""

    def __del__(self) -> None:
        self.close()


def opened(path: Path) -> Any:
    av = import_av(path)
    try:
        if (special := irregular_kind(path)) is not None:
            raise ImageError(f"{path}: not a regular file: {special}")
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: empty file")
        # "file:" keeps names with a colon from being taken for the protocol of an address
        source = f"file:{path}" if is_text(path) else _SelfClosing(path)
        container = av.open(source, metadata_errors="replace")
    except ImageError:
        raise
    except OSError as error:  # libav's errors among them
        raise ImageError(f"{path}: {error_line(error)}") from None
    except (av.error.FFmpegError, ValueError) as error:
        raise ImageError(f"{path}: not a video ({error_line(error)})") from None
    if not container.streams.video:
        container.close()
        raise ImageError(f"{path}: holds no video")
    return container


def import_av(path: Path) -> Any:
    try:
        av = importlib.import_module("av")
        importlib.import_module("av.video.reformatter")
        return av
    except ImportError:
        raise ImageError(f"{path}: video files need PyAV: pip install 'tta-restore[video]'") from None


def error_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0].lower()
