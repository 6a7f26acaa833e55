"""Recognize image and video files by their content, not by their names."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = [
    "AUDIO_SUFFIXES",
    "IMAGE_SUFFIXES",
    "RAW_SUFFIXES",
    "VIDEO_SUFFIXES",
    "FileFormat",
    "detect_format",
    "irregular_kind",
    "sniff_file",
]

#: Suffixes of image files that are read; the content decides, whatever the name.
IMAGE_SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".tif", ".tiff", ".webp", ".avif", ".heic", ".heif",
    ".hif", ".jxl", ".jp2", ".j2k", ".bmp", ".dib", ".gif", ".exr", ".hdr", ".pbm", ".pgm", ".ppm", ".pnm", ".pam",
    ".pfm",
)  # fmt: skip
#: Suffixes of camera files with sensor values.
RAW_SUFFIXES = (
    ".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".sr2", ".srf", ".raf", ".orf", ".rw2", ".pef", ".srw",
    ".x3f", ".3fr", ".fff", ".iiq", ".erf", ".mef", ".mos", ".mrw", ".kdc", ".dcr", ".rwl", ".gpr",
)  # fmt: skip
#: Suffixes of video files; FFmpeg decides by the content.
VIDEO_SUFFIXES = (
    ".mp4", ".mov", ".mkv", ".m4v", ".avi", ".webm", ".mts", ".m2ts", ".mpg", ".mpeg", ".m2v", ".vob", ".3gp", ".3g2",
    ".ts", ".flv", ".f4v", ".wmv", ".asf", ".ogv", ".mxf", ".dv", ".y4m", ".qt", ".h264", ".264",
    ".h265", ".265", ".hevc", ".ivf", ".nut", ".rm", ".rmvb", ".m2t", ".divx",
)  # fmt: skip
#: Suffixes of sound, whose containers are those of videos.
AUDIO_SUFFIXES = (".mp3", ".m4a", ".aac", ".ogg", ".oga", ".opus", ".wma", ".flac", ".wav", ".mka", ".aiff", ".aif")

Kind = Literal["image", "raw", "video", "unsupported"]


@dataclass(frozen=True)
class FileFormat:
    """Format of a file.

    Attributes:
        name: of the format, such as ``"PNG"``.
        kind: ``"image"``, ``"raw"`` (sensor values), ``"video"`` or ``"unsupported"`` (recognized, not read).
    """

    name: str
    kind: Kind


_SIGNATURES: tuple[tuple[int, bytes, str, Kind], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG", "image"),
    (0, b"\xff\xd8\xff", "JPEG", "image"),
    (0, b"GIF8", "GIF", "image"),
    (0, b"\x76\x2f\x31\x01", "EXR", "image"),
    (0, b"#?RADIANCE", "Radiance HDR", "image"),
    (0, b"#?RGBE", "Radiance HDR", "image"),
    (0, b"\xff\x0a", "JPEG XL", "image"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", "image"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000", "image"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000", "image"),
    (0, b"FUJIFILMCCD-RAW", "Fujifilm RAW", "raw"),
    (0, b"IIRO", "Olympus RAW", "raw"),
    (0, b"IIRS", "Olympus RAW", "raw"),
    (0, b"MMOR", "Olympus RAW", "raw"),
    (0, b"IIU\0", "Panasonic RAW", "raw"),
    (0, b"FOVb", "Sigma RAW", "raw"),
    (0, b"\0MRM", "Minolta RAW", "raw"),
    (6, b"HEAPCCDR", "Canon RAW (CRW)", "raw"),
    (0, b"8BPS", "Photoshop document", "unsupported"),
    (0, b"%PDF", "PDF", "unsupported"),
    (0, b"gimp xcf", "GIMP document", "unsupported"),
    (0, b"DDS ", "DDS texture", "unsupported"),
    (0, b"II\xbc", "JPEG XR", "unsupported"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM", "video"),
    (0, b"FLV\x01", "Flash video", "video"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "ASF", "video"),
    (0, b"\0\0\x01\xba", "MPEG program stream", "video"),
    (0, b"\0\0\x01\xb3", "MPEG video", "video"),
    (0, b"OggS", "Ogg", "video"),
    (0, b"YUV4MPEG2", "YUV4MPEG", "video"),
    (0, b"DKIF\0\0", "IVF", "video"),
    (0, b"nut/multimedia container", "NUT", "video"),
    (0, b".RMF\0", "RealMedia", "video"),
    (0, b"\x1f\x07\x00", "DV", "video"),
    (0, b"\0\0\x01\xb0", "MPEG-4 video", "video"),
    (0, b"\x06\x0e\x2b\x34", "MXF", "video"),
    (4, b"moov", "QuickTime", "video"),
    (4, b"mdat", "QuickTime", "video"),
    (4, b"wide", "QuickTime", "video"),
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_HEAD = 400  # bytes: two packets of a transport stream


def detect_format(head: bytes, suffix: str = "") -> FileFormat | None:
    """Return the format that the first bytes of a file declare, None where they are unknown.

    Args:
        head: at least the first 400 bytes, or the whole file.
        suffix: of the file's name. It distinguishes camera files, most of which are TIFF, from ordinary TIFF.
    """
    suffix = suffix.lower()
    for offset, magic, name, kind in _SIGNATURES:
        if head.startswith(magic, offset):
            return FileFormat(name, kind)
    if head[:4] in _TIFF:
        if head[8:10] == b"CR" or suffix in RAW_SUFFIXES:
            return FileFormat(f"RAW ({suffix[1:].upper() or 'CR2'})", "raw")
        return FileFormat("TIFF", "image")
    if head[:4] == b"RIFF":
        if head[8:12] == b"WEBP":
            return FileFormat("WebP", "image")
        return FileFormat("AVI", "video") if head[8:12] in (b"AVI ", b"AVIX", b"CDXA") else None
    if head[4:8] == b"ftyp":
        return _from_brand(head)
    if (
        head[:2] == b"BM"
        and len(head) > 26
        and head[14:18] in (b"\x0c\0\0\0", b"\x28\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0")
    ):
        return FileFormat("BMP", "image")
    if len(head) > 3 and head[:1] == b"P" and head[1:2] in b"1234567fF" and head[2:3] in b" \t\r\n":
        return FileFormat("PNM", "image")
    for start in (0, 4):  # M2TS prefixes each packet with four bytes of time
        if len(head) > start + 188 + start and head[start] == 0x47 and head[2 * start + 188] == 0x47:
            return FileFormat("MPEG transport stream", "video")
    if head[:4] == b"\0\0\0\x01" and len(head) > 5:  # a stream without container: how its first unit begins
        if head[4] & 0x9F in (7, 9):
            return FileFormat("H.264 stream", "video")
        if head[4] in (0x40, 0x42, 0x46) and head[5] == 1:
            return FileFormat("H.265 stream", "video")
    if head.lstrip()[:5] in (b"<?xml", b"<svg ") and b"<svg" in head:
        return FileFormat("SVG", "unsupported")
    return None


def sniff_file(path: Path) -> FileFormat | None:
    """Return the format of a file by its first bytes.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return detect_format(file.read(_HEAD), path.suffix)


def irregular_kind(path: Path) -> str | None:
    """Return what a path is if reading it could block or never end (FIFO, device, socket), else None.

    Raises:
        OSError: there is nothing at the path, or it may not be looked at.
    """
    mode = os.stat(path).st_mode
    kinds = (
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((name for matches, name in kinds if matches(mode)), None)


def _from_brand(head: bytes) -> FileFormat:
    size = int.from_bytes(head[:4], "big")
    brands = [head[8:12], *(head[i : i + 4] for i in range(16, min(size, len(head)), 4))]
    if brands[0] == b"crx ":
        return FileFormat("RAW (CR3)", "raw")
    if b"avif" in brands or b"avis" in brands:
        return FileFormat("AVIF", "image")
    if any(brand in _HEIF_BRANDS for brand in brands):
        return FileFormat("HEIC", "image")
    return FileFormat("MP4 or QuickTime", "video")
