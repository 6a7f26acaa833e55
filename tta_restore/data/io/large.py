"""Images that do not fit into memory: PNG and TIFF decoded to and encoded from arrays on disk, strip by strip."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from tta_restore.data.io import exif, png, tiff
from tta_restore.data.io.atomic import atomic_file
from tta_restore.data.io.formats import sniff_file
from tta_restore.data.io.pixels import Image, ImageError, one_line, tensor_from_array, too_large

__all__ = ["LargeImage", "declared_pixels", "open_large", "write_large"]

_ROWS = 256  # rows decoded or encoded at a time
_READ = 2**20  # bytes read at a time
_LARGEST_CHUNK = 2**26  # bytes of metadata
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # PNG color types without palette


class LargeImage:
    """The samples of an image in a file on disk, (H, W, C), and what its file carried.

    Args:
        samples: uint8 or uint16, memory-mapped.
        carried: an image of one pixel with the metadata.
        levels: the largest sample.
    """

    def __init__(self, samples: np.ndarray, carried: Image, levels: int) -> None:
        self.samples, self.carried, self.levels = samples, carried, levels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.samples.shape[0], self.samples.shape[1]

    def rows(self, top: int, bottom: int, columns: slice = slice(None)) -> Image:
        """Return some rows as an image of their own."""
        values = tensor_from_array(np.ascontiguousarray(self.samples[top:bottom, columns]), levels=self.levels)
        colors = 1 if len(values) <= 2 else 3
        alpha = values[colors:] if len(values) > colors else None
        return replace(self.carried, pixels=values[:colors], alpha=alpha)


def declared_pixels(path: Path) -> int:
    """Return the number of pixels that a PNG or TIFF file declares, 0 for other files and unreadable ones."""
    try:
        found = sniff_file(path)
        if found is not None and found.name == "PNG":
            with open(path, "rb") as file:
                header = png.read_header(file.read(64))
            return header.width * header.height if header else 0
        if found is not None and found.name == "TIFF":
            import tifffile

            with tifffile.TiffFile(path) as file:
                page = tiff.main_page(file, [])
                return page.imagewidth * page.imagelength
    except Exception:  # whatever is wrong with it is told where it is read
        return 0
    return 0


@contextmanager
def open_large(path: Path, folder: Path, *, max_pixels: int) -> Iterator[LargeImage]:
    """Decode a PNG or TIFF file to an array on disk, which is removed at the end.

    Args:
        path: the file.
        folder: where the array is kept, 1 to 8 bytes per pixel.
        max_pixels: largest number of pixels.

    Raises:
        ImageError: damaged, too large, interlaced, turned, or of other samples than 8 or 16 bits, gray or RGB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".strips-") as name:
        try:
            read = _read_png if (found := sniff_file(path)) is not None and found.name == "PNG" else _read_tiff
            yield read(path, Path(name) / "samples", max_pixels)
        except ImageError as error:
            text = str(error)
            raise ImageError(text if text.startswith(str(path)) else f"{path}: {text}") from None
        except (OSError, zlib.error, struct.error) as error:
            raise ImageError(f"{path}: truncated or damaged ({one_line(error)})") from None


def write_large(path: Path, samples: np.ndarray, carried: Image) -> None:
    """Encode an array on disk as PNG or TIFF, by the suffix: completely, or not at all.

    Raises:
        ImageError: another suffix, or the disk refuses.
    """
    suffix = path.suffix.lower()
    if suffix not in (".png", ".tif", ".tiff"):
        raise ImageError(f"{path}: an image of this size is written as PNG or TIFF")
    try:
        with atomic_file(path) as partial:
            if suffix == ".png":
                _write_png(partial, samples, carried)
            else:
                _write_tiff(partial, samples, carried)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({one_line(error)})") from None


def _read_tiff(path: Path, target: Path, max_pixels: int) -> LargeImage:
    import tifffile

    notes: list[str] = []
    with tiff.quiet(tifffile), open(path, "rb") as stream, tifffile.TiffFile(stream) as file:
        page = tiff.main_page(file, notes)
        tiff.check_page(page, os.fstat(stream.fileno()).st_size, max_pixels)
        orientation = page.tags.get("Orientation")
        photometric = page.photometric.name
        if photometric not in ("MINISBLACK", "RGB", "YCBCR") or str(page.dtype) not in ("uint8", "uint16"):
            raise ImageError(f"TIFF of this size with {photometric} samples of type {page.dtype}: convert it first")
        if page.axes.startswith("S") or (orientation is not None and orientation.value != 1):
            raise ImageError("TIFF of this size in planes, or turned: convert it first")
        shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
        samples = np.memmap(target, page.dtype, "w+", shape=shape)
        for segment, (_, _, top, left, _), _ in page.segments():
            if segment is None:
                raise ImageError("truncated TIFF: strips are missing")
            part = segment.reshape(segment.shape[-3:])
            place = samples[top : top + part.shape[0], left : left + part.shape[1]]
            place[...] = part[: place.shape[0], : place.shape[1]]
        block = exif.read_tiff_exif(stream, notes)
        carried = tiff.carried_by(page, block, notes)
        bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    return LargeImage(samples, carried, 2**bits - 1)  # 12 bits lie in words of 16


def _read_png(path: Path, target: Path, max_pixels: int) -> LargeImage:
    with open(path, "rb") as file:
        head = file.read(64)
        header = png.read_header(head)
        if header is None:
            raise ImageError("truncated or damaged PNG: its header is incomplete")
        if header.width * header.height > max_pixels:
            raise ImageError(too_large(header.width, header.height, max_pixels))
        if header.is_interlaced or header.color_type not in _CHANNELS or header.bit_depth < 8:
            raise ImageError("PNG of this size that is interlaced, or has a palette or few bits: convert it first")
        channels, bytes_per_sample = _CHANNELS[header.color_type], header.bit_depth // 8
        shape = (header.height, header.width, channels)
        samples = np.memmap(target, np.uint8 if bytes_per_sample == 1 else np.uint16, "w+", shape=shape)
        row = header.width * channels * bytes_per_sample
        before = np.zeros(row, np.uint8)
        top = 0
        for block in _scan_lines(file, row + 1, _ROWS):
            lines = block[: (header.height - top) * (row + 1)].reshape(-1, row + 1)
            plain = _unfilter(lines[:, 0], lines[:, 1:], before, channels * bytes_per_sample)
            before = plain[-1]
            values = plain if bytes_per_sample == 1 else plain.view(">u2")
            samples[top : top + len(plain)] = values.reshape(len(plain), header.width, channels)
            top += len(plain)
            if top == header.height:
                break
        if top < header.height:
            raise ImageError(f"truncated or damaged PNG: {top} of {header.height} rows")
        content = _without_samples(file)
    metadata = png.read_metadata(content)
    notes = metadata.pop("notes", [])
    icc, exif_block = png.profile_and_exif(content, notes)
    block, orientation = exif.reset_orientation(exif_block, notes)
    if orientation != 1:
        raise ImageError("PNG of this size, turned by its EXIF orientation: convert it first")
    carried = Image(
        torch.zeros(1, 1, 1), bit_depth=header.bit_depth, icc=icc, exif=block, notes=tuple(notes), **metadata
    )
    return LargeImage(samples, carried, int(np.iinfo(samples.dtype).max))


def _without_samples(file: BinaryIO) -> bytes:
    """Return a PNG file without its samples: header and metadata, in front of them and behind."""
    file.seek(0)
    kept = bytearray(file.read(8))
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"tRNS":
            raise ImageError("PNG of this size with one transparent color: convert it first")
        if kind == b"IDAT" or length > _LARGEST_CHUNK:
            file.seek(length + 4, os.SEEK_CUR)
        else:
            kept += head + file.read(length + 4)
    return bytes(kept)


def _scan_lines(file: BinaryIO, row: int, rows: int) -> Iterator[np.ndarray]:
    """Yield the filtered rows of a PNG file, some at a time, in bounded memory."""
    inflate, ready = zlib.decompressobj(), bytearray()
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind != b"IDAT":
            if kind == b"IEND":
                break
            file.seek(length + 4, os.SEEK_CUR)
            continue
        left = length
        while left:
            data = file.read(min(left, _READ))
            if not data:
                raise ImageError("truncated or damaged PNG: the pixel data ends early")
            left -= len(data)
            while data:
                ready += inflate.decompress(data, row * rows)
                data = inflate.unconsumed_tail
                while len(ready) >= row * rows:
                    yield np.frombuffer(bytes(ready[: row * rows]), np.uint8)
                    del ready[: row * rows]
        file.seek(4, os.SEEK_CUR)
    ready += inflate.flush()
    if whole := len(ready) // row * row:
        yield np.frombuffer(bytes(ready[:whole]), np.uint8)


def _unfilter(kinds: np.ndarray, lines: np.ndarray, before: np.ndarray, step: int) -> np.ndarray:
    """Undo PNG's row filters.

    A byte depends on those to its left, above and above left. Along the anti-diagonals nothing depends on each other,
    so all rows are decoded at once, each one pixel behind the row above.

    Args:
        kinds: filter of each row, 0 to 4.
        lines: filtered bytes, (R, N).
        before: the row above, (N,).
        step: bytes of a pixel.
    """
    if kinds.max(initial=0) > 4:
        raise ImageError("damaged PNG: unknown row filter")
    count, width = len(lines), lines.shape[1] // step
    # Time-major: skewed[t, r + 1] is the pixel x = t - r of row r; row -1 is the one above.
    skewed = np.zeros((width + count + 1, count + 1, step), np.int16)
    filtered = np.zeros((width + count, count, step), np.uint8)
    above = before.reshape(width, step)
    skewed[: width - 1, 0] = above[1:]
    for r in range(count):
        filtered[r : r + width, r] = lines[r].reshape(width, step)
    first = np.zeros((count + 1, step), np.int16)
    first[0] = above[0]  # at t = -1, row -1 is at x = 0
    zero = np.zeros((count + 1, step), np.int16)
    kind = kinds.astype(np.int16)[:, None]
    is_sub, is_up, is_mean, is_paeth = (kind == k for k in (1, 2, 3, 4))
    any_mean, any_paeth = bool(is_mean.any()), bool(is_paeth.any())
    rows = np.arange(count)
    for t in range(width + count - 1):
        one, two = (skewed[t - 1] if t >= 1 else first), (skewed[t - 2] if t >= 2 else first if t == 1 else zero)
        left, up, corner = one[1:], one[:-1], two[:-1]
        guess = np.where(is_sub, left, 0)
        guess = np.where(is_up, up, guess)
        if any_mean:
            guess = np.where(is_mean, (left + up) >> 1, guess)
        if any_paeth:
            distance = left + up - corner
            to_left, to_up, to_corner = abs(distance - left), abs(distance - up), abs(distance - corner)
            nearest = np.where(to_up <= to_corner, up, corner)
            nearest = np.where((to_left <= to_up) & (to_left <= to_corner), left, nearest)
            guess = np.where(is_paeth, nearest, guess)
        skewed[t, 1:] = (filtered[t] + guess) & 0xFF
        # Rows that have not begun or are done stay zero, as PNG has it left of a row.
        skewed[t, 1:][(rows > t) | (rows <= t - width)] = 0
    plain = np.empty((count, width, step), np.uint8)
    for r in range(count):
        plain[r] = skewed[r : r + width, r + 1]
    return plain.reshape(count, -1)


def _write_png(path: Path, samples: np.ndarray, carried: Image) -> None:
    height, width, channels = samples.shape
    depth = samples.dtype.itemsize * 8
    color = {count: kind for kind, count in _CHANNELS.items()}[channels]
    header = png.chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    step = channels * samples.dtype.itemsize
    with open(path, "wb") as file:
        file.write(png.add_metadata(png.SIGNATURE + header, carried))
        deflate = zlib.compressobj(3)
        before = np.zeros((1, width * step), np.uint8)
        for top in range(0, height, _ROWS):
            values = np.ascontiguousarray(samples[top : top + _ROWS])
            plain = values.astype(">u2").view(np.uint8) if depth == 16 else values
            plain = plain.reshape(len(values), -1)
            lines = np.empty((len(plain), 1 + plain.shape[1]), np.uint8)
            lines[:, 0] = 2  # every row as its difference from the one above
            lines[:, 1:] = plain - np.concatenate([before, plain[:-1]])
            before = plain[-1:]
            if data := deflate.compress(lines.tobytes()):
                file.write(png.chunk(b"IDAT", data))
        file.write(png.chunk(b"IDAT", deflate.flush()) + png.chunk(b"IEND", b""))


def _write_tiff(path: Path, samples: np.ndarray, carried: Image) -> None:
    import tifffile

    tifffile.imwrite(
        path,
        samples if samples.shape[2] > 1 else samples[..., 0],
        photometric="rgb" if samples.shape[2] > 2 else "minisblack",
        planarconfig="contig" if samples.shape[2] > 1 else None,
        rowsperstrip=_ROWS,
        compression="zlib",
        predictor=True,
        metadata=None,
        software=False,
        **tiff.options_of(carried, alpha=samples.shape[2] in (2, 4)),
    )


def samples_of(image: Image, levels: int) -> np.ndarray:
    """Return the samples of a strip, (H, W, C)."""
    planes: list[Tensor] = [*image.pixels, *(image.alpha if image.alpha is not None else ())]
    dtype = np.uint8 if levels < 256 else np.uint16
    return np.stack([plane.clamp(0, 1).mul(levels).round().numpy().astype(dtype) for plane in planes], -1)
