"""Decoders of videos that report as much damage as they can."""

from __future__ import annotations

import importlib
import zlib
from typing import Any

__all__ = ["OPEN_ENDED", "is_cut", "strict_decoder"]

#: Decoders that notice more damage than libav's own: of VP9, when more is read than a frame holds.
_STRICT_DECODERS = {"vp9": "libvpx-vp9"}
#: Streams of which nothing but the decoder shows whether they are whole, and whose decoders read on past their end.
OPEN_ENDED = {"hevc", "vvc"}
_FILLERS = (b"\x55" * 64, b"\xaa" * 64)  # without the marks of such streams


def strict_decoder(stream: Any, deep: bool) -> Any:
    """Return a decoder of a video stream that reports as much damage as it can, before its first packet.

    Args:
        stream: of a container.
        deep: whether its samples have more than 8 bits.
    """
    av = importlib.import_module("av")
    decoder = stream.codec_context
    other = _STRICT_DECODERS.get(decoder.name)
    if other in av.codecs_available and not deep:  # libvpx is often built for 8 bits
        decoder = av.CodecContext.create(other, "r")
        decoder.extradata = stream.codec_context.extradata
    decoder.thread_type = "NONE"  # errors of frames that threads decode are lost at times
    # Without "explode" some decoders invent what is missing; without the others they ignore checksums and overflows.
    decoder.options = {"err_detect": "crccheck+bitstream+explode"}
    return decoder


def is_cut(decoder: Any, packets: list[Any]) -> bool:
    """Return whether the frame of the last packet depends on what follows it.

    Args:
        decoder: one of the same codec.
        packets: those from a key frame on.
    """
    av = importlib.import_module("av")
    results = []
    for filler in _FILLERS:
        again = av.CodecContext.create(decoder.name, "r")
        frames: list[int] = []
        for data in (*map(bytes, packets[:-1]), bytes(packets[-1]) + filler, None):
            try:
                decoded = again.decode(None if data is None else av.Packet(data))
            except Exception:  # libav's own, one class per error number
                decoded = []
            frames += (zlib.crc32(frame.to_ndarray(format="rgb24").tobytes()) for frame in decoded)
        results.append(frames)
    return results[0] != results[1]
