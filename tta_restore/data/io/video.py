"""Read and write video files through PyAV (the extra "video"): upright, with their colors, bits, times and sound."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tta_restore.data.datasets.clips import Clip
from tta_restore.data.io.atomic import atomic_file
from tta_restore.data.io.pixels import ImageError, array_from_tensors

#: What video files are called; :class:`VideoFile` goes by the content.
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".m4v", ".avi", ".webm")
#: Suffixes that :func:`write_video` takes.
WRITABLE_SUFFIXES = (".mp4", ".mov", ".mkv", ".m4v")
_UNSPECIFIED = 2  # of a color matrix, in the numbers of ISO/IEC 23001-8
_BT709 = 1


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says about itself.

    Attributes:
        height: of the upright frames, pixels.
        width: likewise.
        frame_rate: frames per second, on average.
        bit_depth: 8, or 10 and more.
        frames: how many there should be; None where the file does not say.
        sound: whether there is a sound track.
        colors: numbers of matrix, primaries and transfer curve, 2 where the file does not say.
    """

    height: int
    width: int
    frame_rate: Fraction
    bit_depth: int
    frames: int | None
    sound: bool
    colors: tuple[int, int, int]


class DecodedFrames(Sequence[Tensor]):
    """Frames in memory at the bits of their file; given out as floats.

    Args:
        samples: (3, H, W) of uint8 or uint16 each.
    """

    def __init__(self, samples: Sequence[Tensor]) -> None:
        self.samples = list(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int | slice) -> Any:
        """One frame, (3, H, W) in [0, 1]; or the frames of a slice."""
        return DecodedFrames(self.samples[index]) if isinstance(index, slice) else _as_float(self.samples[index])


@dataclass
class VideoFile:
    """A video file; iterating over it decodes frame after frame, (3, H, W) in [0, 1].

    Attributes:
        path: the file.
        info: what it says about itself.
        times: seconds at which the frames that were decoded so far are shown.

    Raises:
        ImageError: the file is missing or no video, or PyAV is not installed.
    """

    path: Path
    info: VideoInfo = field(init=False)
    times: list[Fraction] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        with _opened(self.path) as container:
            stream, first = container.streams.video[0], None
            try:
                first = next(container.decode(stream), None)
            except Exception as error:  # libav's own, one class per error number
                raise ImageError(f"{self.path}: damaged video ({_line(error)})") from None
            if first is None:
                raise ImageError(f"{self.path}: a video without frames")
            turned = first.rotation % 180 == 90
            height, width = (first.width, first.height) if turned else (first.height, first.width)
            codec = stream.codec_context
            self.info = VideoInfo(
                height=height,
                width=width,
                frame_rate=stream.average_rate or stream.guessed_rate or Fraction(25),
                bit_depth=max(component.bits for component in first.format.components),
                frames=stream.frames or None,
                sound=bool(container.streams.audio),
                colors=(int(first.colorspace), int(codec.color_primaries), int(codec.color_trc)),
            )

    def __iter__(self) -> Iterator[Tensor]:
        return map(_as_float, self._samples())

    def load(self) -> DecodedFrames:
        """All frames, at the bits of the file: 3 bytes per pixel and frame, 6 from 10 bits on."""
        return DecodedFrames(list(self._samples()))

    def clip(self) -> Clip:
        """All frames as a clip without originals."""
        return Clip(self.path.stem, self.load())

    def _samples(self) -> Iterator[Tensor]:
        deep = self.info.bit_depth > 8
        self.times.clear()
        with _opened(self.path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            try:
                for number, frame in enumerate(container.decode(stream)):
                    picture = frame.reformat(
                        format="rgb48le" if deep else "rgb24",
                        src_color_range=frame.color_range,
                        interpolation=_interpolation(),
                    )
                    samples = torch.from_numpy(picture.to_ndarray()).permute(2, 0, 1)
                    known = frame.pts is not None
                    self.times.append(frame.time_base * frame.pts if known else number / self.info.frame_rate)
                    yield torch.rot90(samples, round(frame.rotation / 90), (1, 2)).contiguous()
            except Exception as error:
                raise ImageError(f"{self.path}: damaged after frame {len(self.times)} ({_line(error)})") from None


def write_video(
    path: str | Path,
    frames: Iterable[Tensor],
    *,
    like: VideoFile | None = None,
    frame_rate: Fraction | float = 25,
    bit_depth: int | None = None,
    quality: int = 14,
) -> None:
    """Write frames as H.264 in an MP4, MOV or Matroska file: completely, or not at all.

    Args:
        path: where to; folders above it are made.
        frames: (3, H, W) in [0, 1] each, of one size; odd sides are kept (chroma is then not subsampled).
        like: the file that the frames come from: its times, bits, colors and sound are taken over.
        frame_rate: per second, without ``like``.
        bit_depth: 8 or 10; None for that of ``like``, else 8.
        quality: the encoder's constant rate factor: 0 is lossless or nearly so, 14 is hard to tell from the original.

    Raises:
        ImageError: the suffix is none of these, there are no frames, they differ in size, or it cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        raise ImageError(f"{path}: videos are written as {', '.join(WRITABLE_SUFFIXES)}")
    depth = bit_depth or (8 if like is None or like.info.bit_depth == 8 else 10)
    if depth not in (8, 10):
        raise ImageError(f"{path}: expected a bit depth of 8 or 10, got {depth}")
    av = _av(path)
    with atomic_file(path) as partial:
        sound = track = None
        container = av.open(str(partial), "w", format="matroska" if path.suffix.lower() == ".mkv" else "mp4")
        try:
            rate = Fraction(frame_rate).limit_denominator(90000) if like is None else like.info.frame_rate
            stream = container.add_stream("libx264", rate=rate)
            stream.options = {"crf": str(quality)}
            if like is not None and like.info.sound:
                sound = _opened(like.path)
                track = container.add_stream_from_template(sound.streams.audio[0])
            size, number = None, -1
            for number, frame in enumerate(frames):
                if size is None:
                    size = tuple(frame.shape)
                    _prepare(stream, size, depth, like)
                if tuple(frame.shape) != size:
                    raise ImageError(f"{path}: frame {number} is {tuple(frame.shape)}, those before it {size}")
                picture = _picture(av, frame, stream, depth)
                picture.time_base = Fraction(1, 90000)
                seconds = like.times[number] if like is not None and number < len(like.times) else number / rate
                picture.pts = round(seconds * 90000)
                for packet in stream.encode(picture):
                    container.mux(packet)
            if number < 0:
                raise ImageError(f"{path}: there are no frames to write")
            for packet in stream.encode():
                container.mux(packet)
            if sound is not None:
                for packet in sound.demux(sound.streams.audio[0]):
                    if packet.dts is not None:
                        packet.stream = track
                        container.mux(packet)
        except av.error.FFmpegError as error:
            raise ImageError(f"{path}: cannot be written ({_line(error)})") from None
        finally:
            container.close()
            if sound is not None:
                sound.close()


def _prepare(stream: Any, size: tuple[int, ...], depth: int, like: VideoFile | None) -> None:
    if len(size) != 3 or size[0] != 3:
        raise ImageError(f"write_video: expected frames of shape (3, H, W), got {size}")
    stream.height, stream.width = size[1:]
    chroma = "420" if size[1] % 2 == size[2] % 2 == 0 else "444"
    stream.pix_fmt = f"yuv{chroma}p" + ("10le" if depth == 10 else "")
    stream.time_base = Fraction(1, 90000)
    matrix, primaries, curve = (_BT709, _BT709, _BT709) if like is None else like.info.colors
    codec = stream.codec_context
    codec.time_base = Fraction(1, 90000)
    # Nothing said: BT.601 is what decoders take, so that is what is encoded, and nothing is said again.
    codec.colorspace, codec.color_primaries, codec.color_trc = matrix, primaries, curve
    codec.color_range = 1


def _picture(av: Any, frame: Tensor, stream: Any, depth: int) -> Any:
    array = array_from_tensors(frame, None, 8 if depth == 8 else 16)
    picture = av.VideoFrame.from_ndarray(array, format="rgb24" if depth == 8 else "rgb48le")
    matrix = int(stream.codec_context.colorspace)
    wanted = av.video.reformatter.Colorspace.ITU601 if matrix in (_UNSPECIFIED, 6) else matrix
    return picture.reformat(
        format=stream.pix_fmt, dst_colorspace=wanted, dst_color_range=1, interpolation=_interpolation()
    )


def _interpolation() -> Any:
    """Of chroma. The fast default repeats and truncates samples, which shows on colored edges."""
    kind = importlib.import_module("av.video.reformatter").Interpolation
    return kind.BICUBIC | kind.FULL_CHR_H_INT | kind.FULL_CHR_H_INP | kind.ACCURATE_RND


def _as_float(samples: Tensor) -> Tensor:
    return samples.to(torch.float32) / (255 if samples.dtype == torch.uint8 else 65535)


def _opened(path: Path) -> Any:
    av = _av(path)
    try:
        container = av.open(str(path))
    except OSError as error:  # libav's errors among them
        raise ImageError(f"{path}: {_line(error)}") from None
    except av.error.FFmpegError as error:
        raise ImageError(f"{path}: not a video ({_line(error)})") from None
    if not container.streams.video:
        container.close()
        raise ImageError(f"{path}: holds no video")
    return container


def _av(path: Path) -> Any:
    try:
        av = importlib.import_module("av")
        importlib.import_module("av.video.reformatter")
        return av
    except ImportError:
        raise ImageError(f"{path}: video files need PyAV: pip install 'tta-restore[video]'") from None


def _line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0].lower()
