"""Encode frames of videos: codecs, their options, and encoders of equal settings."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tta_restore.data.io.parts import EncodedPacket
from tta_restore.data.io.pixels import ImageError, array_from_tensors

if TYPE_CHECKING:
    from tta_restore.data.io.video import VideoFile

__all__ = [
    "BT709",
    "CLOCK",
    "CODECS",
    "UNSPECIFIED",
    "Codec",
    "Encoder",
    "check_codec",
    "interpolation",
    "written_depth",
]

UNSPECIFIED = 2  # of a color matrix, in the numbers of ISO/IEC 23001-8
BT709 = 1
CLOCK = 90000  # ticks per second of the frames' times


@dataclass(frozen=True)
class Codec:
    """Options of the video encoder.

    Attributes:
        encoder: FFmpeg's name.
        quality: default constant rate factor, a nearly invisible loss.
        worst: largest constant rate factor.
        depths: bits per sample that it takes.
        chroma: chroma subsampling that it takes, for each of these depths.
        options: further options.
    """

    encoder: str
    quality: int
    worst: int
    depths: tuple[int, ...]
    chroma: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()


#: Codecs by name.
CODECS = {
    # frames that the encoder looks ahead are memory: 40 by default, 1.6 MB each at 640x480
    "h264": Codec("libx264", 14, 51, (8, 10), ("420", "422", "444"), (("x264-params", "rc-lookahead=20"),)),
    "hevc": Codec("libx265", 16, 51, (8, 10, 12), ("420", "422", "444"), (("x265-params", "log-level=none"),)),
    "av1": Codec("libsvtav1", 18, 63, (8, 10), ("420",), (("preset", "6"),)),
    "vp9": Codec("libvpx-vp9", 15, 63, (8,), ("420", "422", "444"), (("b", "0"), ("row-mt", "1"), ("cpu-used", "2"))),
    "ffv1": Codec("ffv1", 0, 0, (8, 10, 12), ("420", "422", "444"), (("level", "3"), ("slicecrc", "1"))),
}


def check_codec(name: str, quality: int | None = None) -> None:
    """Refuse an unknown codec, or a quality that it does not have.

    Raises:
        ValueError: the codec is unknown, or the constant rate factor is out of range.
    """
    if name not in CODECS:
        raise ValueError(f"no codec {name!r}; there are: {', '.join(CODECS)}")
    codec = CODECS[name]
    if quality is not None and not 0 <= quality <= codec.worst:
        raise ValueError(f"expected a constant rate factor from 0 to {codec.worst} for {name}, got {quality}")


class Encoder:
    """Makes encoders of equal settings, and packets of frames."""

    def __init__(
        self,
        av: Any,
        settings: Codec,
        depth: int,
        quality: int | None,
        rate: Fraction,
        like: VideoFile | None,
        notes: list[str],
    ) -> None:
        self.av, self.settings, self.depth, self.rate, self.like, self.notes = av, settings, depth, rate, like, notes
        self.options = {"crf": str(settings.quality if quality is None else quality), **dict(settings.options)}
        if settings.encoder == "ffv1":
            del self.options["crf"]
        if like is not None and like.info.hdr10 is not None:
            found = like.info.hdr10.encoder_options(settings.encoder)
            if found is None:
                notes.append(f"HDR10 metadata left out: {settings.encoder} does not write it; h264, hevc and av1 do")
            for name, value in (found or {}).items():
                self.options[name] = ":".join(part for part in (self.options.get(name), value) if part)
        if settings.encoder == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # errors only; it prints a page otherwise

    def prepare(self, context: Any, size: tuple[int, ...]) -> None:
        """Set an encoder up for frames of a size."""
        _prepare(context, size, self.depth, self.settings, self.like, self.notes)
        context.options = dict(self.options)

    def create(self, size: tuple[int, ...], *, like: Any) -> Any:
        """Return an encoder, with its headers where those of another one are."""
        context = self.av.CodecContext.create(self.settings.encoder, "w")
        context.framerate = self.rate
        context.flags |= like.flags
        self.prepare(context, size)
        return context

    def encode(self, context: Any, frame: Tensor | None, ticks: int) -> list[EncodedPacket]:
        """Return the packets that are ready after a frame; None for the rest."""
        picture = None
        if frame is not None:
            picture = _picture(self.av, frame, context, self.depth)
            picture.time_base, picture.pts = Fraction(1, CLOCK), ticks
        return [
            EncodedPacket(bytes(p), p.pts, p.dts if p.dts is not None else p.pts, p.duration or 0, p.is_keyframe)
            for p in context.encode(picture)
        ]


def written_depth(path: Path, codec: str, wanted: int | None, like: VideoFile | None, notes: list[str]) -> int:
    """Return the bits per sample to write: those wanted, else those of the source as far as the codec holds them.

    Raises:
        ImageError: the codec does not hold the bits that are wanted.
    """
    depths = CODECS[codec].depths
    if wanted is not None:
        if wanted not in depths:
            raise ImageError(
                f"{path}: expected a bit depth of {' or '.join(map(str, depths))} for {codec}, got {wanted}"
            )
        return wanted
    have = 8 if like is None else like.info.bit_depth
    depth = next((depth for depth in depths if depth >= have), depths[-1])
    if depth < have:
        notes.append(f"{have} bits written as {depth}, which is what {codec} holds; --codec hevc holds 12")
    return depth


def _prepare(
    codec: Any, size: tuple[int, ...], depth: int, settings: Codec, like: VideoFile | None, notes: list[str]
) -> None:
    """Set size, samples, times and color tags of an encoder."""
    if len(size) != 3 or size[0] != 3:
        raise ImageError(f"write_video: expected frames of shape (3, H, W), got {size}")
    codec.height, codec.width = size[1:]
    chroma = "420" if like is None else like.info.chroma
    if (chroma == "420" and size[1] % 2) or (chroma != "444" and size[2] % 2):
        chroma = "444"
    if chroma not in settings.chroma:
        notes.append(f"chroma subsampled to 4:2:0, which is all that {settings.encoder} holds")
        chroma = "420"
    codec.pix_fmt = f"yuv{chroma}p" + ("" if depth == 8 else f"{depth}le")
    matrix, primaries, curve = (BT709, BT709, BT709) if like is None else like.info.colors
    if matrix == 0:  # RGB, which is encoded as Y'CbCr here
        matrix = BT709
    codec.time_base = Fraction(1, CLOCK)
    # Without tags decoders assume BT.601: that is encoded, and the file stays without tags.
    codec.colorspace, codec.color_primaries, codec.color_trc = matrix, primaries, curve
    codec.color_range = 1
    if like is not None and like.info.sample_aspect_ratio != 1:
        codec.sample_aspect_ratio = like.info.sample_aspect_ratio


def _picture(av: Any, frame: Tensor, codec: Any, depth: int) -> Any:
    array = array_from_tensors(frame, None, 8 if depth == 8 else 16)
    picture = av.VideoFrame.from_ndarray(array, format="rgb24" if depth == 8 else "rgb48le")
    matrix = int(codec.colorspace)
    wanted = av.video.reformatter.Colorspace.ITU601 if matrix in (UNSPECIFIED, 6) else matrix
    return picture.reformat(
        format=codec.pix_fmt, dst_colorspace=wanted, dst_color_range=1, interpolation=interpolation()
    )


def interpolation() -> Any:
    """Return the interpolation of chroma. The fast default repeats and truncates samples, visible on colored edges."""
    kind = importlib.import_module("av.video.reformatter").Interpolation
    return kind.BICUBIC | kind.FULL_CHR_H_INT | kind.FULL_CHR_H_INP | kind.ACCURATE_RND
