"""Write video files through PyAV (the extra "video"), with the times, colors and tracks of another one."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from tta_restore.data.io.atomic import atomic_file
from tta_restore.data.io.codecs import (
    CLOCK,
    CODECS,
    Encoder,
    check_codec,
    written_depth,
)  # fmt: skip
from tta_restore.data.io.parts import EncodedPacket, PartStore
from tta_restore.data.io.pixels import ImageError
from tta_restore.data.io.side_data import describe_lost
from tta_restore.data.io.tracks import SideTracks, carry_stream_tags, carry_tags, needs_free_tags
from tta_restore.data.io.video import VideoFile, error_line, film_of, import_av, opened, start_of

__all__ = ["CONTAINERS", "WRITABLE_SUFFIXES", "write_video"]

#: Suffixes that :func:`write_video` takes, and the containers they stand for.
CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".m4v": "mp4", ".mkv": "matroska"}
WRITABLE_SUFFIXES = tuple(CONTAINERS)


def write_video(
    path: str | Path,
    frames: Iterable[Tensor],
    *,
    like: VideoFile | None = None,
    frame_rate: Fraction | float = 25,
    codec: str = "h264",
    bit_depth: int | None = None,
    quality: int | None = None,
    strip: bool = False,
    parts: PartStore | None = None,
) -> tuple[str, ...]:
    """Write frames to an MP4, MOV or Matroska file: completely, or not at all.

    Args:
        path: where to; missing folders are made.
        frames: (3, H, W) in [0, 1] each, of one size; odd sides are kept (chroma is then not subsampled).
        like: the file that the frames come from: its times, bits, colors, pixel aspect ratio, sound, subtitles,
            chapters and tags are taken over.
        frame_rate: per second, without ``like``.
        codec: ``"h264"``, ``"hevc"``, ``"av1"``, ``"vp9"`` or ``"ffv1"`` (lossless).
        bit_depth: 8, 10 or 12; None for that of ``like`` as far as the codec holds it, else 8.
        quality: the encoder's constant rate factor: 0 is lossless or nearly so; None for a nearly invisible loss.
        strip: leave out tags and chapters.
        parts: keeps what is encoded, part by part; ``frames`` are then those behind the stored ones.

    Returns:
        A line for each thing that was changed or left out.

    Raises:
        ImageError: the suffix is none of these, there are no frames, they differ in size, or it cannot be written.
        ValueError: the codec is unknown, or the constant rate factor is out of range.
    """
    path = Path(path)
    kind = CONTAINERS.get(path.suffix.lower())
    if kind is None:
        raise ImageError(f"{path}: videos are written as {', '.join(WRITABLE_SUFFIXES)}")
    check_codec(codec, quality)
    notes: list[str] = []
    depth = written_depth(path, codec, bit_depth, like, notes)
    av = import_av(path)
    rate = Fraction(frame_rate).limit_denominator(CLOCK) if like is None else Fraction(like.info.frame_rate)
    encoder = Encoder(av, CODECS[codec], depth, quality, rate, like, notes)
    with atomic_file(path) as partial:
        source = None if like is None else opened(like.path)
        known: set[str] = set()
        tracks: SideTracks | None = None
        options = {"fflags": "+bitexact"}  # no random identifiers: the same frames give the same file
        if source is not None and kind != "matroska" and needs_free_tags(source):
            options["movflags"] = "use_metadata_tags"
        container = av.open(str(partial), "w", format=kind, container_options=options)
        try:
            output = _Output(av, container, container.add_stream(encoder.settings.encoder, rate=rate))
            if source is not None and like is not None:
                known = set(like.side_data)
                if not strip:
                    carry_stream_tags(film_of(source, like.path), output.stream)
                offset = start_of(source)
                output.tracks = tracks = SideTracks(source, container, kind, offset)
                if not strip:
                    notes += carry_tags(source, container, kind, offset)
            number = _encode(path, frames, encoder, output, like, rate, parts)
            if number == 0:
                raise ImageError(f"{path}: there are no frames to write")
            if tracks is not None:
                tracks.finish()
            if like is not None:
                notes += describe_lost(like.side_data - known)
        except av.error.FFmpegError as error:
            raise ImageError(f"{path}: cannot be written ({error_line(error)})") from None
        finally:
            _close(container, path)
            if source is not None:
                source.close()
    if tracks is not None:
        notes += tracks.notes
        if like is not None:
            like.losses += tracks.losses
    return tuple(dict.fromkeys(notes))


def _encode(
    path: Path,
    frames: Iterable[Tensor],
    encoder: Encoder,
    output: _Output,
    like: VideoFile | None,
    rate: Fraction,
    parts: PartStore | None,
) -> int:
    """Write the stored parts and then the frames behind them; return the number of frames."""
    size, number, last = None, 0, -1
    if parts is not None and parts.size is not None:
        size, number = parts.size, parts.frames
        encoder.prepare(output.stream.codec_context, size)
        for packet in parts.packets():
            output.write(packet)
            last = max(last, packet.pts)
    waiting: list[EncodedPacket] = []
    in_part = 0
    context: Any = None
    for frame in frames:
        if size is None:
            size = tuple(frame.shape)
            encoder.prepare(output.stream.codec_context, size)
        if tuple(frame.shape) != size:
            raise ImageError(f"{path}: frame {number} is {tuple(frame.shape)}, those before it {size}")
        if context is None:
            context = encoder.create(size, like=output.stream.codec_context)
        ticks = like.ticks_of(number) if like is not None else None
        last = max(round(number * CLOCK / rate) if ticks is None else ticks, last + 1)
        waiting += encoder.encode(context, frame, last)
        number, in_part = number + 1, in_part + 1
        if parts is not None and in_part == parts.part_frames:
            waiting += encoder.encode(context, None, 0)
            parts.add(waiting, in_part, size)
            context, in_part = None, 0
        if parts is None or context is None:
            for packet in waiting:
                output.write(packet)
            waiting = []
    if context is not None:
        for packet in [*waiting, *encoder.encode(context, None, 0)]:
            output.write(packet)
    return number


class _Output:
    """A container with the film's stream and its side tracks, written in step."""

    def __init__(self, av: Any, container: Any, stream: Any) -> None:
        self.av, self.container, self.stream = av, container, stream
        self.tracks: SideTracks | None = None
        self._last: int | None = None
        stream.time_base = Fraction(1, CLOCK)

    def write(self, encoded: EncodedPacket) -> None:
        packet = self.av.Packet(encoded.data)
        # Where parts meet, the decoding times of uneven frames may overlap.
        dts = encoded.dts if self._last is None else max(encoded.dts, self._last + 1)
        packet.pts, packet.dts, packet.duration = encoded.pts, min(dts, encoded.pts), encoded.duration
        packet.time_base, packet.is_keyframe = Fraction(1, CLOCK), encoded.is_key
        packet.stream = self.stream
        self._last = dts
        self.container.mux(packet)
        if self.tracks is not None:
            self.tracks.advance(Fraction(max(encoded.dts, 0), CLOCK))


def _close(container: Any, path: Path) -> None:
    try:
        container.close()
    except (OSError, importlib.import_module("av.error").FFmpegError) as error:
        raise ImageError(f"{path}: cannot be written ({error_line(error)})") from None
