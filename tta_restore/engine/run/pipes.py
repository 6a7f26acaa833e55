"""Restore one image from standard input, or to standard output, by way of temporary files."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from tta_restore._core.streams import is_closed
from tta_restore.data.io.formats import detect_format, sniff_file
from tta_restore.data.io.image_writer import FORMATS
from tta_restore.engine.run.restore_plan import written_suffix
from tta_restore.engine.run.usage import UsageError

__all__ = ["PIPE", "is_piped", "piped"]

#: Name of standard input and standard output.
PIPE = "-"
_HEAD = 4096  # bytes that a format is recognized by
_CHUNK = 2**20
#: Suffixes of formats that are written as what they are, or not as PNG.
_SUFFIXES = {
    "PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "WebP": ".webp", "AVIF": ".avif", "JPEG XL": ".jxl", "EXR": ".exr",
    "Radiance HDR": ".hdr",
}  # fmt: skip


def is_piped(inputs: Sequence[str | Path], out: str | Path) -> bool:
    """Return whether an input or the output is ``-``."""
    return PIPE in (*map(str, inputs), str(out))


@contextmanager
def piped(
    inputs: Sequence[str | Path], out: str | Path, *, image_format: str | None, max_bytes: int
) -> Iterator[tuple[list[str | Path], str | Path, Callable[[str], str]]]:
    """Yield files in place of standard input and output, and a function that names them as what they are in a line.

    What is printed to standard output meanwhile goes to standard error. At the end the result, if there is one, is
    written to standard output.

    Args:
        inputs: files; one of them may be ``-`` if it is the only one.
        out: file, folder or ``-``.
        image_format: format of the result, None for that of the input.
        max_bytes: most bytes that are read from standard input.

    Raises:
        UsageError: several inputs, a folder or a video, a terminal, or no image on standard input.
    """
    if len(inputs) != 1:
        raise UsageError(f"{PIPE} stands for one image, got {len(inputs)} inputs")
    source = Path(inputs[0])
    with tempfile.TemporaryDirectory(prefix="tta-restore-") as name:
        files: dict[str, str] = {}
        if str(inputs[0]) == PIPE:
            source = _receive(Path(name), max_bytes)
            files[str(source)] = "standard input"
        elif source.is_dir():
            raise UsageError(f"{source}: is a folder, and standard output takes one image")
        elif source.is_file() and (found := sniff_file(source)) is not None and found.kind == "video":
            raise UsageError(f"{source}: is a video, and standard output takes one image")

        def named(line: str) -> str:
            for path, shown in files.items():
                line = line.replace(path, shown)
            return line

        if str(out) != PIPE:
            yield [source], out, named
            return
        if sys.stdout.isatty():
            raise UsageError("standard output is a terminal: give a file, or pipe the image on")
        if is_closed(sys.stdout):
            raise UsageError("standard output is closed or full: give a file, or pipe the image on")
        suffix = _suffix_of_result(source, image_format)
        result = Path(name) / f"result{suffix}"
        files[str(result)] = "standard output"
        with redirect_stdout(sys.stderr):
            yield [source], result, named
        if result.is_file():
            with open(result, "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def _receive(folder: Path, max_bytes: int) -> Path:
    """Write standard input to a file in a folder, and return it."""
    if sys.stdin is None:
        raise UsageError("standard input is closed: pipe an image into it, or give a file")
    if sys.stdin.isatty():
        raise UsageError("standard input is a terminal: pipe an image into it, or give a file")
    stream = sys.stdin.buffer
    head = stream.read(_HEAD)
    found = detect_format(head) if head else None
    if found is None or found.kind == "video":
        what = "empty" if not head else "no image of a known format" if found is None else f"a video ({found.name})"
        raise UsageError(f"standard input: {what}, expected one image")
    path = folder / f"stdin{_SUFFIXES.get(found.name, '.image')}"
    total = len(head)
    with open(path, "wb") as file:
        file.write(head)
        while chunk := stream.read(_CHUNK):
            total += len(chunk)
            if total > max_bytes:
                raise UsageError(f"standard input: more than {max_bytes / 1e6:.0f} MB; --max-pixels raises the limit")
            file.write(chunk)
    return path


def _suffix_of_result(source: Path, image_format: str | None) -> str:
    known = image_format if image_format in FORMATS else None  # the plan refuses others
    return written_suffix(source, known) or source.suffix
