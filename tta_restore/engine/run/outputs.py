"""Check that results can be written before the work starts."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tta_restore.engine.run.usage import UsageError

__all__ = ["expect_file", "expect_folder"]


def expect_folder(out: str | Path, *, flag: str = "--out") -> Path:
    """Return a folder for results that can be written to, before any work is done.

    Raises:
        UsageError: it is a file, or cannot be created or written.
    """
    folder = Path(out)
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{flag} {out}: expected a folder, got a file")
        above = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if not above.is_dir():
            raise UsageError(f"{flag} {out}: {above} is a file")
        with tempfile.TemporaryFile(dir=above):  # the only test that no file system or container fools
            pass
    except OSError as error:
        raise UsageError(f"{flag} {out}: {(error.strerror or str(error)).lower()}") from error
    return folder


def expect_file(out: str | Path | None, *, flag: str = "--out") -> None:
    """Refuse a result file that cannot be written, before any work is done.

    Raises:
        UsageError: it is a folder, or its folder cannot be created or written.
    """
    if out is None:
        return
    if Path(out).is_dir():
        raise UsageError(f"{flag} {out}: expected a file, got a folder")
    expect_folder(Path(out).parent, flag=flag)
