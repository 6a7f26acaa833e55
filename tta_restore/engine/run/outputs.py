"""Check that results can be written before the work starts, and that no other run writes them."""

from __future__ import annotations

import functools
import inspect
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from tta_restore.data.io.atomic import exclusive_lock
from tta_restore.data.io.formats import irregular_kind
from tta_restore.engine.run.usage import UsageError

__all__ = ["expect_file", "expect_folder", "is_first_process", "locked_output", "locks_output"]

P = ParamSpec("P")
R = TypeVar("R")

#: Set by torchrun, by Lightning for the processes that it starts, and by SLURM.
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def is_first_process() -> bool:
    """Return whether this process, of those that share a task, writes files; before they join a group."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


@contextmanager
def locked_output(out: str | Path | None, *, flag: str = "--out") -> Iterator[None]:
    """Keep other runs from a folder or file of results while the block runs.

    The first of the processes that share one task holds the lock for all of them.

    Raises:
        UsageError: another run is using it.
    """
    if out is None or not is_first_process():
        yield
        return
    lock = exclusive_lock(Path(out).absolute())
    try:
        lock.__enter__()
    except BlockingIOError:
        raise UsageError(f"{flag} {out}: another run is using it") from None
    except OSError as error:
        raise UsageError(f"{flag} {out}: {(error.strerror or str(error)).lower()}") from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def locks_output(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that its argument ``out`` is locked while it runs, see :func:`locked_output`."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def locked(*arguments: P.args, **keywords: P.kwargs) -> R:
        bound = signature.bind(*arguments, **keywords)
        bound.apply_defaults()
        with locked_output(bound.arguments["out"]):
            return function(*arguments, **keywords)

    return locked


def expect_folder(out: str | Path, *, flag: str = "--out") -> Path:
    """Return a folder for results that can be written to, before any work is done.

    Raises:
        UsageError: it is a file, or cannot be created or written.
    """
    folder = above = Path(out)
    try:
        if folder.is_file():
            raise UsageError(f"{flag} {out}: expected a folder, got a file")
        while not above.exists() and above != above.parent:
            above = above.parent
        if not above.is_dir():
            raise UsageError(f"{flag} {out}: {above} is not a folder")
        with tempfile.TemporaryFile(dir=above):  # the only test that no file system or container fools
            pass
    except OSError as error:
        raise UsageError(f"{flag} {out}: {above} cannot be written to ({error.strerror or error})") from error
    return folder


def expect_file(out: str | Path | None, *, flag: str = "--out") -> None:
    """Refuse a result file that cannot be written, before any work is done.

    Raises:
        UsageError: it is a folder or a pipe, or its folder cannot be created or written.
    """
    if out is None:
        return
    try:
        if (kind := "a folder" if Path(out).is_dir() else irregular_kind(Path(out))) is not None:
            raise UsageError(f"{flag} {out}: expected a file, got {kind}")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError(f"{flag} {out}: {(error.strerror or str(error)).lower()}") from None
    expect_folder(Path(out).parent, flag=flag)
