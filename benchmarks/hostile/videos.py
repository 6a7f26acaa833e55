"""Damaged videos, and whole ones with what a careless reader gets wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hostile.files import Made, put

__all__ = ["make_videos"]

FRAMES = 12


def make_videos(folder: Path) -> Iterator[Made]:
    """Write all videos below a folder."""
    rng = np.random.default_rng(1)
    kinds = (
        ("a.mp4", None, "libx264"), ("a.mkv", None, "libx264"), ("a.avi", None, "mpeg4"), ("a.ts", "mpegts", "libx264"),
        ("a.mpg", "mpeg", "mpeg2video"), ("a.flv", "flv", "flv"), ("a.wmv", "asf", "wmv2"), ("a.webm", None, "libvpx"),
    )  # fmt: skip
    for name, container, codec in kinds:
        content = _written(folder, name, codec, container=container)
        stem, suffix = name.split(".")
        for percent in (2, 60):
            yield put(folder / f"{stem}_cut{percent}.{suffix}", content[: len(content) * percent // 100])
        flipped = bytearray(content)
        for at in rng.integers(len(content) // 4, len(content), 40):
            flipped[at] ^= 0xFF
        yield put(folder / f"{stem}_flipped.{suffix}", bytes(flipped))
        hole = content[: len(content) // 2] + bytes(300) + content[len(content) // 2 + 300 :]
        yield put(folder / f"{stem}_holes.{suffix}", hole)
        yield put(folder / f"{stem}_headless.{suffix}", content[300:])
        yield put(folder / f"{stem}_whole.{suffix}", content, is_whole=True)
    yield put(folder / "empty.mp4", b"")
    yield put(folder / "text.mkv", b"no video")
    yield put(folder / "noise.mov", rng.bytes(5000))
    yield put(folder / "http:remote.mp4", b"no address")
    yield put(folder / "list.txt.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    yield put(folder / "concat.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n")
    yield from _odd(folder)


def _odd(folder: Path) -> Iterator[Made]:
    for name, options in {
        "rates.mkv": {"times": [0, 1, 2, 9, 10, 30, 31, 32, 33, 80, 81, 200]},
        "backwards.mkv": {"codec": "mpeg4", "times": [100 + number for number in range(FRAMES)]},
        "deep.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": "log-level=none"}},
        "small.mkv": {"size": (2, 2), "codec": "ffv1", "pix_fmt": "yuv444p"},
        "odd.mkv": {"size": (35, 57), "codec": "ffv1", "pix_fmt": "yuv444p"},
        "gray.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
        "rgb.mkv": {"codec": "libx264rgb", "pix_fmt": "rgb24"},
        "wide.mp4": {"aspect": Fraction(4, 3)},
        "interlaced.mpg": {"codec": "mpeg2video", "container": "mpeg", "options": {"flags": "+ildct+ilme"}},
        "still.mp4": {"frames": 1},
        "motion.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
        "professional.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
        "sound.mov": {"sound": "pcm_mulaw"},
        "sound.avi": {"codec": "mpeg4", "sound": "pcm_s16le"},
        "tags.mkv": {"metadata": {"title": "line\nbreak \x1b[31m", "comment": "x" * 100_000}},
        "raw.y4m": {"codec": "wrapped_avframe", "container": "yuv4mpegpipe"},
    }.items():
        content = _written(folder, f"odd_{name}", **{"codec": "libx264", **options})
        yield put(folder / f"odd_{name}", content, is_whole=True)
    yield put(folder / "no_frames.mkv", _written(folder, "none.mkv", "libx264", frames=0))
    yield put(folder / "sound_only.mp4", _written(folder, "s.mp4", "libx264", frames=0, sound="aac", has_film=False))
    turned = _matrix(_written(folder, "t.mp4", "libx264"), (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30))
    yield put(folder / "odd_turned.mp4", turned, is_whole=True)
    yield put(folder / "odd_skewed.mp4", _matrix(turned, (65536, 9999, 0, 7, 65536, 0, 0, 0, 1 << 30)), is_whole=True)
    whole = _written(folder, "w.mp4", "libx264")
    yield put(folder / "size.mp4", whole.replace(b"\0\x80\0\x60", b"\xff\xff\xff\xff"))
    yield put(folder / "times.mp4", _edited(whole, b"stts", lambda data: data[:8] + b"\0\0\0\x0c\xff\xff\xff\xff"))
    yield put(folder / "samples.mp4", _edited(whole, b"stsz", lambda data: data[:4] + b"\x7f\xff\xff\xff" + data[8:]))
    yield put(folder / "count.mp4", _edited(whole, b"stsz", lambda data: data[:8] + b"\x7f\xff\xff\xff" + data[12:]))


def _written(
    folder: Path,
    name: str,
    codec: str,
    *,
    container: str | None = None,
    size: tuple[int, int] = (96, 128),
    pix_fmt: str = "yuv420p",
    frames: int = FRAMES,
    times: list[int] | None = None,
    aspect: Fraction | None = None,
    sound: str | None = None,
    has_film: bool = True,
    metadata: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """Return the content of a video file."""
    import av

    path = folder / name
    base = np.random.default_rng(2).integers(0, 255, (24, 32, 3), np.uint8)
    with av.open(str(path), "w", format=container) as file:
        file.metadata.update(metadata or {})
        film: Any = None
        if has_film:
            film = file.add_stream(codec, rate=25, options=options or {})
            film.height, film.width = size
            film.pix_fmt = pix_fmt
            if aspect is not None:
                film.codec_context.sample_aspect_ratio = aspect
        track: Any = file.add_stream(sound, rate=8000, layout="mono") if sound else None
        file.start_encoding()
        for number in range(frames):
            array = np.kron(np.roll(base, number, 1), np.ones((4, 4, 1), np.uint8))[: size[0], : size[1]]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = times[number] if times else number, Fraction(1, 25)
            file.mux(film.encode(frame))
        if film is not None:
            file.mux(film.encode())
        if track is not None:
            kind = track.codec_context.format.name
            dtype = {"s16": np.int16, "fltp": np.float32}[kind]
            for number in range(4):
                tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype), format=kind, layout="mono")
                tone.sample_rate, tone.pts, tone.time_base = 8000, 1024 * number, Fraction(1, 8000)
                file.mux(track.encode(tone))
            file.mux(track.encode())
    content = path.read_bytes()
    path.unlink()
    return content


def _edited(content: bytes, kind: bytes, edit: Callable[[bytes], bytes]) -> bytes:
    """Return an MP4 file in which the first box of a kind is edited, at its size."""
    at = content.index(kind)
    size = int.from_bytes(content[at - 4 : at], "big") - 8
    data = edit(content[at + 4 : at + 4 + size])[:size]
    return content[: at + 4] + data + content[at + 4 + len(data) :]


def _matrix(content: bytes, values: tuple[int, ...]) -> bytes:
    """Return an MP4 file whose film is displayed through a matrix."""
    data = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    return _edited(content, b"tkhd", lambda box: box[:40] + data + box[76:])
