"""Carry sound, subtitles, chapters and tags of a video file into another one."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

__all__ = ["SideTracks", "carry_stream_tags", "carry_tags", "needs_free_tags"]

_MP4_SOUND = {"aac", "mp3", "mp2", "ac3", "eac3", "alac", "opus", "flac"}
_MOV_SOUND = {"aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_f32le"}
#: Codecs that are copied packet by packet, by container; None for all.
_COPIED_SOUND: dict[str, set[str] | None] = {"mp4": _MP4_SOUND, "mov": _MOV_SOUND, "matroska": None}
_NOT_IN_MATROSKA = {
    "pcm_mulaw", "pcm_alaw", "adpcm_ima_wav", "adpcm_ms", "adpcm_ima_qt", "amr_nb", "amr_wb", "nellymoser",
}  # fmt: skip
_COPIED_SUBTITLES = {
    "mp4": {"mov_text"},
    "mov": {"mov_text"},
    "matroska": {"subrip", "ass", "ssa", "webvtt", "hdmv_pgs_subtitle", "dvd_subtitle", "dvb_subtitle"},
}
_TRACKS = ("video", "audio", "subtitle", "attachment")
#: Names of data tracks for the user, by codec.
_DATA = {
    "gpmd": "GoPro telemetry", "bin_data": "binary", "camm": "camera motion", "klv": "KLV telemetry",
    "scte_35": "SCTE-35 marks", "timed_id3": "timed ID3", "smpte_2038": "SMPTE 2038",
}  # fmt: skip
#: Handlers of the text tracks in MP4 that hold the titles of chapters.
_CHAPTER_TRACKS = {"SubtitleHandler", "Apple Text Media Handler", "Text Media Handler", "Core Media Text"}
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
_SOUND_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz, what AAC takes
_JUMP = Fraction(1, 2)  # seconds back in time that no reordering explains
_AHEAD = Fraction(1, 2)  # seconds by which sound may run ahead of the frames that are written
# Tags that describe the old file, or that the muxer writes itself.
_OWN_TAGS = {"encoder", "major_brand", "minor_version", "compatible_brands", "duration", "handler_name", "vendor_id"}
_OWN_PREFIXES = ("_statistics", "number_of_", "bps", "duration-", "number_of")
#: Tags that MP4 holds without the extension for arbitrary ones.
_MP4_TAGS = {
    "title", "artist", "album_artist", "album", "date", "comment", "composer", "genre", "copyright", "description",
    "synopsis", "show", "episode_id", "network", "lyrics", "grouping", "creation_time", "track", "disc", "location",
}  # fmt: skip


class SideTracks:
    """The sound and subtitle tracks of a video file on their way into another container.

    Sound that the container cannot hold is encoded again. Packets are taken over in step with the frames, so that
    neither the muxer nor this object holds more than a moment of them.

    Args:
        source: the opened input container; closed by :meth:`close`.
        target: the output container.
        kind: format of the output: ``"mp4"``, ``"mov"`` or ``"matroska"``.
        offset: seconds that are subtracted from all times.
    """

    def __init__(self, source: Any, target: Any, kind: str, offset: Fraction) -> None:
        self.notes: list[str] = []
        self.losses: list[str] = []
        self._source, self._target, self._offset = source, target, offset
        self._outputs: dict[int, Any] = {}
        self._encoders: dict[int, _Transcoder] = {}
        self._damaged: dict[int, int] = {}
        # Where files were joined, times start again: what is added to them then, joints of each track, and its end.
        self._shifts, self._joined, self._ends = [Fraction(0)], dict[int, int](), dict[int, Fraction]()
        for number, stream in enumerate(source.streams.audio, 1):
            self._add_sound(stream, number, kind)
        self._add_subtitles(kind)
        self._packets = self._read()
        self._waiting: tuple[Fraction, Any] | None = None

    def advance(self, seconds: Fraction) -> None:
        """Write what belongs before a time of the output."""
        while self._outputs:
            if self._waiting is None:
                self._waiting = next(self._packets, None)
                if self._waiting is None:
                    return
            if self._waiting[0] > seconds + _AHEAD:
                return
            self._write(self._waiting[1])
            self._waiting = None

    def finish(self) -> None:
        """Write the rest."""
        while self._outputs:
            if self._waiting is None:
                self._waiting = next(self._packets, None)
                if self._waiting is None:
                    break
            self._write(self._waiting[1])
            self._waiting = None
        for index, encoder in self._encoders.items():
            for packet in encoder.finish():
                self._target.mux(packet)
            if encoder.damaged:
                self._damaged[index] = self._damaged.get(index, 0) + encoder.damaged
        for index, count in self._damaged.items():
            self.losses.append(f"sound track {index}: {count} damaged packets left out")

    def close(self) -> None:
        """Close the input."""
        self._source.close()

    def _add_sound(self, stream: Any, number: int, kind: str) -> None:
        codec = _codec_name(stream)
        copied = _COPIED_SOUND[kind]
        if (codec in copied) if copied is not None else (codec not in _NOT_IN_MATROSKA):
            output = self._target.add_stream_from_template(stream)
        else:
            encoder = "flac" if kind == "matroska" else "aac"
            try:
                self._encoders[stream.index] = transcoder = _Transcoder(stream, self._target, encoder)
            except Exception as error:  # no decoder for it, or a layout that the encoder refuses
                self.losses.append(f"sound track {number} ({codec}) left out: {_line(error)}")
                return
            output = transcoder.output
            self.notes.append(f"sound track {number}: {codec} encoded again as {encoder.upper()}")
        carry_stream_tags(stream, output)
        self._outputs[stream.index] = output

    def _add_subtitles(self, kind: str) -> None:
        left_out: dict[str, int] = {}
        for stream in self._source.streams.subtitles:
            codec = _codec_name(stream)
            if codec in _COPIED_SUBTITLES[kind]:
                output = self._target.add_stream_from_template(stream)
                carry_stream_tags(stream, output)
                self._outputs[stream.index] = output
            else:
                left_out[codec] = left_out.get(codec, 0) + 1
        for codec, count in left_out.items():
            tracks = "subtitle track" if count == 1 else f"{count} subtitle tracks"
            self.notes.append(f"{tracks} ({codec}) left out: the container cannot hold it; .mkv may")
        self._carry_attachments(kind)
        data = [_data_name(stream) for stream in self._source.streams if stream.type not in _TRACKS]
        again = {"tmcd"} | (_CHAPTER_TRACKS if self._source.chapters() else set())  # made again from what they told
        data = [name for name in data if name not in again]
        if data:
            tracks = "data track" if len(data) == 1 else f"{len(data)} data tracks"
            self.notes.append(f"{tracks} left out: {', '.join(dict.fromkeys(data))}")

    def _carry_attachments(self, kind: str) -> None:
        """Copy attached files, such as fonts of subtitles, where the container holds them."""
        files = [stream for stream in self._source.streams if stream.type == "attachment"]
        left_out = []
        for stream in files:
            name = stream.name or f"attachment {stream.index}"
            try:
                if kind != "matroska":
                    raise ValueError
                self._target.add_attachment(name, stream.mimetype or "application/octet-stream", stream.data or b"")
            except Exception:  # libav's own, one class per error number
                left_out.append(name)
        if left_out:
            attached = "attached file" if len(left_out) == 1 else f"{len(left_out)} attached files"
            self.notes.append(
                f"{attached} left out: {', '.join(left_out[:8])}" + ("" if kind == "matroska" else "; .mkv holds them")
            )

    def _read(self) -> Iterator[tuple[Fraction, Any]]:
        streams = [self._source.streams[index] for index in self._outputs]
        if not streams:
            return
        last = Fraction(0)
        try:
            for packet in self._source.demux(*streams):
                if packet.dts is None and packet.pts is None:
                    continue
                last = self._continue(packet) - self._offset
                yield last, packet
        except Exception as error:
            self.losses.append(f"sound and subtitles end after {float(last):.1f} s: damaged ({_line(error)})")

    def _continue(self, packet: Any) -> Fraction:
        """Return the time of a packet, moved behind those before it where the times of a track start again."""
        base, index = Fraction(packet.time_base), packet.stream.index
        time = base * (packet.dts if packet.dts is not None else packet.pts)
        number = self._joined.get(index, 0)
        end = self._ends.get(index)
        if packet.stream.type == "subtitle":  # too far apart to show it
            number = len(self._shifts) - 1
        elif end is not None and time + self._shifts[number] < end - _JUMP:
            number += 1
            if number == len(self._shifts):
                self._shifts.append(end - time)
        self._joined[index] = number
        if shift := round(self._shifts[number] / base):
            packet.pts = packet.pts + shift if packet.pts is not None else None
            packet.dts = packet.dts + shift if packet.dts is not None else None
        time += shift * base
        self._ends[index] = max(time + base * (packet.duration or 0), end or time)
        return time

    def _write(self, packet: Any) -> None:
        index = packet.stream.index
        if (encoder := self._encoders.get(index)) is not None:
            for encoded in encoder.convert(packet, self._offset):
                self._target.mux(encoded)
            return
        shift = round(self._offset / Fraction(packet.time_base))
        packet.pts = packet.pts - shift if packet.pts is not None else None
        packet.dts = packet.dts - shift if packet.dts is not None else None
        packet.stream = self._outputs[index]
        try:
            self._target.mux(packet)
        except (ValueError, OSError) as error:
            if getattr(error, "errno", None) not in (22, None):  # 22: the muxer refuses this packet
                raise
            self._damaged[index] = self._damaged.get(index, 0) + 1


class _Transcoder:
    """Decodes the packets of one sound track and encodes them again."""

    def __init__(self, stream: Any, target: Any, encoder: str) -> None:
        import av

        context = stream.codec_context
        rate = context.sample_rate or 48000
        rate = rate if encoder == "flac" or rate in _SOUND_RATES else 48000
        layout = _LAYOUTS.get(context.layout.nb_channels, "5.1")  # AVI knows the number of channels only
        self._stream = stream
        self.output = target.add_stream(encoder, rate=rate, layout=layout)
        if encoder == "aac":
            self.output.codec_context.bit_rate = 128000 * max(1, min(context.layout.nb_channels, 6))
        else:
            self.output.codec_context.format = "s16"
        self._encoder = self.output.codec_context
        self._resampler = av.AudioResampler(format=self._encoder.format.name, layout=layout, rate=rate)
        self._fifo = av.AudioFifo()
        self._next: int | None = None
        self.damaged = 0

    def convert(self, packet: Any, offset: Fraction) -> Iterator[Any]:
        try:
            frames = self._stream.codec_context.decode(packet)
        except Exception:  # libav's own, one class per error number
            self.damaged += 1
            return
        for frame in frames:
            if self._next is None:
                start = frame.time_base * frame.pts if frame.pts is not None else Fraction(0)
                self._next = max(0, round((start - offset) * self._encoder.sample_rate))
            frame.pts = None
            for part in self._resampler.resample(frame):
                yield from self._encode(part)

    def finish(self) -> Iterator[Any]:
        for frame in self._stream.codec_context.decode(None):
            frame.pts = None
            for part in self._resampler.resample(frame):
                yield from self._encode(part)
        for part in self._resampler.resample(None):
            yield from self._encode(part)
        if (rest := self._fifo.read(0, partial=True)) is not None:
            yield from self._send(rest)
        if self._next is not None:
            yield from self.output.encode(None)

    def _encode(self, part: Any) -> Iterator[Any]:
        part.pts = None
        self._fifo.write(part)
        size = self._encoder.frame_size or 4096
        while (frame := self._fifo.read(size)) is not None:
            yield from self._send(frame)

    def _send(self, frame: Any) -> Iterator[Any]:
        frame.pts, frame.time_base = self._next, Fraction(1, self._encoder.sample_rate)
        self._next = (self._next or 0) + frame.samples
        yield from self.output.encode(frame)


def carry_tags(source: Any, target: Any, kind: str, offset: Fraction) -> list[str]:
    """Copy tags and chapters of a container; return a line for what cannot be copied.

    Args:
        source: the input container.
        target: the output container, before its first packet.
        kind: format of the output.
        offset: seconds that are subtracted from all times.
    """
    tags = {key: value for key, value in source.metadata.items() if not _is_own(key)}
    for key, value in tags.items():
        target.metadata[key] = value
    chapters = []
    for chapter in source.chapters():
        base = Fraction(chapter["time_base"])
        shift = round(offset / base)
        start, end = chapter["start"] - shift, chapter["end"] - shift
        if end > 0:
            chapters.append({**chapter, "start": max(start, 0), "end": end, "time_base": base})
    if chapters:
        try:
            target.set_chapters(chapters)
        except Exception as error:
            return [f"{len(chapters)} chapters left out: {_line(error)}"]
    return []


def needs_free_tags(source: Any) -> bool:
    """Return whether a container has tags for which MP4 needs its extension for arbitrary keys."""
    # MP4's own field holds a time without its notation, which comes back as "...00.000000Z".
    return any(
        (key.lower() == "creation_time" and not value.endswith(".000000Z"))
        or (not _is_own(key) and key.lower() not in _MP4_TAGS)
        for key, value in source.metadata.items()
    )


def _codec_name(stream: Any) -> str:
    """Return the name of a track's codec, whichever decoder is used for it ("mp3", not "mp3float")."""
    context = stream.codec_context
    return str(context.codec.canonical_name or context.name) if context is not None else "unknown"


def _data_name(stream: Any) -> str:
    """Return what a data track holds: its kind, else its handler's name."""
    context = getattr(stream, "codec_context", None)
    code = str(getattr(context, "codec_tag", "") or "").strip("\0 ")
    name = str(getattr(context, "name", "") or "")
    for known in (code, name):
        if known in ("tmcd", *_DATA):
            return _DATA.get(known, known)
    handler = stream.metadata.get("handler_name", "").strip()
    if "timecode" in stream.metadata or "TimeCode" in handler:
        return "tmcd"
    return handler or code or name or stream.type


def _is_own(key: str) -> bool:
    return key.lower() in _OWN_TAGS or key.lower().startswith(_OWN_PREFIXES)


def carry_stream_tags(stream: Any, output: Any) -> None:
    """Copy the tags of a stream (title, language, timecode) and its disposition."""
    for key, value in stream.metadata.items():
        if not _is_own(key):
            output.metadata[key] = value
    output.disposition = stream.disposition


def _line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0].lower()
