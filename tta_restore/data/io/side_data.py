"""Data that video frames carry next to their samples: HDR10 metadata, orientation, captions, timecodes, 360 degrees."""

from __future__ import annotations

import importlib
import math
import struct
from dataclasses import dataclass
from typing import Any

__all__ = ["Hdr10", "describe_lost", "kinds_of", "orientation_of", "read_hdr10"]

#: What is not carried along, by FFmpeg's name.
_LOST = {
    "A53_CC": "closed captions within the frames",
    "DOVI_RPU_BUFFER": "Dolby Vision metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "DYNAMIC_HDR_VIVID": "HDR Vivid metadata",
    "AMBIENT_VIEWING_ENVIRONMENT": "ambient viewing environment",
    "STEREO3D": "stereo 3D layout",
    "SPHERICAL": "360 degree projection",
    "S12M_TIMECODE": "timecode within the frames",
    "GOP_TIMECODE": "timecode within the frames",
    "ICC_PROFILE": "color profile within the frames",
    "AFD": "active format description",
    "PANSCAN": "pan and scan window",
}


@dataclass(frozen=True)
class Hdr10:
    """Static metadata of a video of high dynamic range (SMPTE ST 2086 and CTA-861.3).

    Attributes:
        primaries: CIE x and y of red, green and blue of the mastering display; None where they are not declared.
        white_point: CIE x and y.
        luminance: least and largest luminance of the mastering display, cd/m2; None where they are not declared.
        light_level: largest luminance of a pixel and largest mean luminance of a frame, cd/m2; None where they are not
            declared.
    """

    primaries: tuple[tuple[float, float], ...] | None = None
    white_point: tuple[float, float] | None = None
    luminance: tuple[float, float] | None = None
    light_level: tuple[int, int] | None = None

    def encoder_options(self, encoder: str) -> dict[str, str] | None:
        """Return the options by which an encoder writes this, None for one that cannot."""
        names = {
            "libx264": ("x264-params", "mastering-display", "cll"),
            "libx265": ("x265-params", "master-display", "max-cll"),
            "libsvtav1": ("svtav1-params", "mastering-display", "content-light"),
        }
        if encoder not in names:
            return None
        option, display, light = names[encoder]
        entries = []
        if self.primaries is not None and self.white_point is not None and self.luminance is not None:
            entries.append(f"{display}={self._display(whole=encoder != 'libsvtav1')}")
        if self.light_level is not None:
            entries.append(f"{light}={self.light_level[0]},{self.light_level[1]}")
        return {option: ":".join(entries)}

    def _display(self, *, whole: bool) -> str:
        """Return the mastering display in encoders' notation, in steps of 0.00002 and 0.0001 cd/m2 as ``whole``."""
        assert self.primaries is not None and self.white_point is not None and self.luminance is not None  # noqa: PT018, S101

        def pair(first: float, second: float, steps: int) -> str:
            return f"({round(first * steps)},{round(second * steps)})" if whole else f"({first:.5f},{second:.5f})"

        red, green, blue = (pair(*place, 50000) for place in self.primaries)
        low, high = self.luminance
        return f"G{green}B{blue}R{red}WP{pair(*self.white_point, 50000)}L{pair(high, low, 10000)}"


def read_hdr10(frame: Any) -> Hdr10 | None:
    """Return the HDR10 metadata of a decoded frame, None where there is none."""
    found: dict[str, Any] = {}
    for entry in _entries(frame):
        content = bytes(entry)
        if entry.type.name == "MASTERING_DISPLAY_METADATA" and len(content) >= 88:
            values = struct.unpack("22i", content[:88])
            numbers = [n / d if d else 0.0 for n, d in zip(values[0:20:2], values[1:20:2], strict=True)]
            if values[20]:
                found["primaries"] = tuple((numbers[i], numbers[i + 1]) for i in (0, 2, 4))
                found["white_point"] = (numbers[6], numbers[7])
            if values[21]:
                found["luminance"] = (numbers[8], numbers[9])
        elif entry.type.name == "CONTENT_LIGHT_LEVEL" and len(content) >= 8:
            found["light_level"] = struct.unpack("2I", content[:8])
    return Hdr10(**found) if found else None


def kinds_of(frame: Any) -> set[str]:
    """Return what a decoded frame carries that is not written, in words."""
    return {_LOST[entry.type.name] for entry in _entries(frame) if entry.type.name in _LOST}


def describe_lost(kinds: set[str]) -> list[str]:
    """Return a line for each kind of :func:`kinds_of`."""
    return [f"{kind} left out" for kind in sorted(kinds)]


def orientation_of(frame: Any) -> tuple[int, bool]:
    """Return the quarter turns, counter-clockwise, and whether a frame is mirrored left to right before them."""
    for entry in _entries(frame):
        if entry.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack("9i", bytes(entry)[:36])[:5]
            if a * d - b * c < 0:
                return round(-math.degrees(math.atan2(-b, -a)) / 90), True
    return round(frame.rotation / 90), False


def _entries(frame: Any) -> Any:
    """Return the side data of a frame. As the frame's own attribute they refer to it, which keeps its memory."""
    return importlib.import_module("av.sidedata.sidedata").SideDataContainer(frame)
