"""JPEG XL with its color encoding, which the decoder does not return and the encoder does not ask for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tta_restore._core.color import srgb_to_linear
from tta_restore.data.io import boxes
from tta_restore.data.io.pixels import Image, array_from_tensors

__all__ = ["CodeStreamHeader", "encode_jpeg_xl", "read_code_stream"]

_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_ENUM = ((0, 0), (1, 0), (2, 4), (18, 6))
_GRAY = 1  # of color spaces
_ALPHA, _SPOT, _CFA = 0, 2, 5  # kinds of extra channels
_WHITE = {1: "", 10: "white point E", 11: "white point of DCI"}
_PRIMARIES = {1: "", 9: "primaries of Rec. 2100", 11: "primaries of P3"}
_CURVES = {1: "curve of Rec. 709", 8: "linear light", 13: "", 16: "PQ", 17: "curve of DCI", 18: "HLG"}
_CUSTOM = 2
_LINEAR, _SRGB = 8, 13  # numbers of curves, both coded as an offset of 2 and four bits


@dataclass(frozen=True)
class CodeStreamHeader:
    """Size and color encoding in the header of a code stream.

    Attributes:
        width: in pixels, before the orientation is applied.
        height: in pixels.
        encoding: how the colors differ from sRGB, in words; empty for sRGB, None where the header does not tell.
        is_linear: whether samples are linear light with the primaries of sRGB.
        curve_at: bit at which the number of the curve lies, None where it is not coded.
    """

    width: int
    height: int
    encoding: str | None = None
    is_linear: bool = False
    curve_at: int | None = None


def encode_jpeg_xl(image: Image, depth: int, quality: int) -> bytes:
    """Return a JPEG XL file of sRGB samples; 100 is lossless.

    The encoder labels samples of more than 8 bits as linear light. Lossless ones get the right label afterwards;
    lossy ones are converted to linear light before, since the label then decides how the decoder converts them.

    Raises:
        ImportError: imagecodecs is not installed.
    """
    # libjxl's own relation of quality to the Butteraugli distance
    options: dict[str, Any] = {"lossless": True} if quality == 100 else {"distance": 0.1 + (100 - quality) * 0.09}
    pixels = image.pixels.clamp(0, 1) if depth == 32 else image.pixels
    is_linear = _labels_linear({8: "uint8", 16: "uint16", 32: "float32"}[depth], len(pixels))
    if is_linear and quality < 100:
        pixels = srgb_to_linear(pixels.clamp(0, 1))
    content = _encode(array_from_tensors(pixels, image.alpha, depth), **options)
    return _labeled_srgb(content) if is_linear and quality == 100 else content


def _encode(array: np.ndarray, **options: Any) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpegxl_encode(np.ascontiguousarray(array), effort=5, usecontainer=True, **options))


@cache
def _labels_linear(dtype: str, channels: int) -> bool:
    """Return whether the encoder labels such samples as linear light."""
    content = _encode(np.zeros((8, 8, 3) if channels == 3 else (8, 8), dtype), lossless=True)
    header = read_code_stream(boxes.jpeg_xl_code_stream(content))
    return header is not None and header.is_linear


def _labeled_srgb(content: bytes) -> bytes:
    """Return a file with the curve of sRGB in place of linear light, its samples unchanged."""
    stream = boxes.jpeg_xl_code_stream(content)
    header = read_code_stream(stream)
    if header is None or header.curve_at is None:
        raise RuntimeError("the color encoding that the encoder wrote is not where it is expected")
    start = content.index(stream)
    head = int.from_bytes(stream, "little")
    head ^= ((_LINEAR - 2) ^ (_SRGB - 2)) << header.curve_at
    return content[:start] + head.to_bytes(len(stream), "little") + content[start + len(stream) :]


def read_code_stream(stream: bytes) -> CodeStreamHeader | None:
    """Return what the header of a code stream declares, None where it is incomplete."""
    if stream[:2] != b"\xff\x0a" or len(stream) < 8:
        return None
    bits = _Bits(stream[2:])
    width, height = bits.size()
    words = _encoding(bits)
    if words is None:
        return CodeStreamHeader(width, height)
    is_linear = words == [_CURVES[_LINEAR]]
    return CodeStreamHeader(width, height, ", ".join(words), is_linear, 16 + bits.taken - 4 if is_linear else None)


class _Bits:
    """Reads fields of a code stream, lowest bit first; zeros behind its end."""

    def __init__(self, data: bytes) -> None:
        self._bits, self.taken = int.from_bytes(data, "little"), 0

    def take(self, count: int) -> int:
        value = self._bits & ((1 << count) - 1)
        self._bits >>= count
        self.taken += count
        return value

    def choose(self, choices: tuple[tuple[int, int], ...]) -> int:
        """Return a number in one of four forms, each an offset and a number of bits."""
        offset, count = choices[self.take(2)]
        return offset + self.take(count)

    def size(self) -> tuple[int, int]:
        small = self.take(1)
        height = self._side(small)
        ratio = self.take(3)
        if ratio == 0:
            return self._side(small), height
        numerator, denominator = _RATIOS[ratio - 1]
        return height * numerator // denominator, height

    def _side(self, small: int) -> int:
        return (self.take(5) + 1) * 8 if small else self.choose(((1, 9), (1, 13), (1, 18), (1, 30)))


def _encoding(bits: _Bits) -> list[str] | None:
    """Return how the colors differ from sRGB, None where this reader does not get to them."""
    if bits.take(1):  # everything as usual
        return []
    if bits.take(1):  # orientation, intrinsic size, preview, animation
        bits.take(3)
        if bits.take(1):
            bits.size()
        if bits.take(2):
            return None
    _skip_depth(bits)
    bits.take(1)  # buffers of 16 bits suffice
    for _ in range(bits.choose(((0, 0), (1, 0), (2, 4), (1, 12)))):
        if not bits.take(1) and not _skip_channel(bits):  # else ordinary alpha
            return None
    bits.take(1)  # coded in XYB
    if bits.take(1):
        return []
    if bits.take(1):
        return ["a color profile"]
    space = bits.choose(_ENUM)
    if space not in (0, _GRAY):
        return ["colors of an unknown space"]
    found = []
    white = bits.choose(_ENUM)
    if white == _CUSTOM:
        return ["a white point of its own"]
    found.append(_WHITE.get(white, "an unknown white point"))
    if space != _GRAY:
        primaries = bits.choose(_ENUM)
        if primaries == _CUSTOM:
            return ["primaries of its own"]
        found.append(_PRIMARIES.get(primaries, "unknown primaries"))
    if bits.take(1):
        found.append(f"gamma {1e7 / max(bits.take(24), 1):.2f}")
    else:
        found.append(_CURVES.get(bits.choose(_ENUM), "an unknown curve"))
    return [word for word in found if word]


def _skip_depth(bits: _Bits) -> None:
    if bits.take(1):  # floats: bits, and those of the exponent
        bits.choose(((32, 0), (16, 0), (24, 0), (1, 6)))
        bits.take(4)
    else:
        bits.choose(((8, 0), (10, 0), (12, 0), (1, 6)))


def _skip_channel(bits: _Bits) -> bool:
    """Pass over the description of an extra channel; return whether its kind is known."""
    kind = bits.choose(_ENUM)
    _skip_depth(bits)
    bits.choose(((0, 0), (3, 0), (4, 0), (1, 3)))  # size
    bits.take(8 * bits.choose(((0, 0), (0, 4), (16, 5), (48, 10))))  # name
    if kind == _ALPHA:
        bits.take(1)  # whether colors are multiplied by it
    return kind not in (_SPOT, _CFA)
