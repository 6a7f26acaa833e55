"""Standard streams of a program: closed ones, readers that leave, full devices."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

__all__ = ["READER_LEFT", "ReaderLeft", "is_closed", "muted", "run_with_streams"]

#: Exit code of a program whose output nobody reads any more: 128 and the number of SIGPIPE, as shells report it.
READER_LEFT = 141


def run_with_streams(work: Callable[[], int]) -> int:
    """Return the exit code of ``work``, after all of its output has been written.

    A reader that left, as ``head`` does, ends the program with :data:`READER_LEFT` and no message. Output that cannot
    be written for another reason ends it with an error of one line; lines for stderr that cannot be written are
    dropped.

    Args:
        work: the program; returns its exit code or raises SystemExit.
    """
    _open_closed()
    with _replaced("stdout", _fail), _replaced("stderr", _drop):
        try:
            try:
                return work()
            finally:  # also where the help exits
                sys.stdout.flush()
        except ReaderLeft:
            return READER_LEFT


_muting = threading.Lock()


@contextmanager
def muted() -> Iterator[None]:
    """Drop what libraries print in a ``with`` block, from C as well; what is raised there takes one line elsewhere.

    The streams are those of the whole process, so that only one thread at a time is inside.
    """
    with _muting, redirect_stdout(io.StringIO()):
        try:
            kept = os.dup(2)
        except OSError:  # standard error is closed
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


class ReaderLeft(BaseException):
    """Nobody reads the output any more; handlers of errors do not catch it."""


class _Stream:
    """Stream, or the bytes under one, whose errors are handled where they occur."""

    def __init__(self, stream: Any, failed: Callable[[Any, OSError], None]) -> None:
        self._stream, self._failed = stream, failed

    @property
    def buffer(self) -> _Stream:
        return _Stream(self._stream.buffer, self._failed)

    def write(self, data: Any) -> int:
        with self._handled():
            self._stream.write(data)
        return len(data)

    def writelines(self, lines: Any) -> None:
        with self._handled():
            self._stream.writelines(lines)

    def flush(self) -> None:
        with self._handled():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _handled(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # what is buffered, and all that follows, vanishes: the interpreter writes it once more at its end
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            if isinstance(error, BrokenPipeError):
                raise ReaderLeft from None
            self._failed(self._stream, error)


def _fail(stream: Any, error: OSError) -> None:
    sys.stderr.write(f"tta-restore: standard output: {error.strerror}\n")
    raise SystemExit(1) from None


def _drop(stream: Any, error: OSError) -> None:
    """A full device costs messages, not the work."""


@contextmanager
def _replaced(name: str, failed: Callable[[Any, OSError], None]) -> Iterator[None]:
    """Handle the errors of a standard stream, if it is the one of the process."""
    stream = getattr(sys, name)
    if stream is not getattr(sys, f"__{name}__"):
        yield
        return
    setattr(sys, name, _Stream(stream, failed))
    try:
        yield
    finally:
        setattr(sys, name, stream)


def _open_closed() -> None:
    """Put a file that cannot be written in place of closed standard streams.

    A file that is opened later would take the number of the closed one, and receive what libraries write there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # takes the lowest number that is free; for standard input, an empty file
            os.open(os.devnull, os.O_RDONLY)
        if number and getattr(sys, name) is None:
            stream = open(number, "w", closefd=False)  # noqa: SIM115 (stays open)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def is_closed(stream: Any) -> bool:
    """Return whether nothing can be written to a standard stream."""
    try:
        number = stream.fileno()
    except (AttributeError, OSError):  # not a file of the system
        return False
    try:
        os.write(number, b"")
    except OSError:
        return True
    return False
