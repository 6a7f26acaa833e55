"""Write files atomically: a reader sees the old file or the new one, whole."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["atomic_file", "exclusive_lock", "hidden_path", "is_text"]

_LONGEST_NAME = 240  # bytes; file systems take 255, the affixes need 9


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; when the block ends without an error it is renamed to `path`.

    The temporary name is fixed (`.NAME.partial`), so what a killed process left behind is overwritten by the next one.
    Of several writers at once, in threads or processes, one waits for the other. Missing folders are made. The content
    is on the disk before the name is. The mode is that of the file that is replaced, else what the umask leaves,
    whatever the writer inside the block set.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = hidden_path(path, "partial")
    lock = _open_locked(partial)
    try:
        mode = stat.S_IMODE(os.fstat(lock).st_mode)
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        _set_mode(partial, path, mode)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(lock)


@contextmanager
def exclusive_lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes that ask for the same lock from a file or folder while the block runs.

    The lock is a file next to `path` (`.NAME.lock`), removed at the end; a killed process leaves no lock behind.
    Where the system has no locks, nothing is kept out.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the lock file cannot be made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    name = hidden_path(path, "lock")
    descriptor = _open_locked(name, wait=False)
    try:
        yield
    finally:
        name.unlink(missing_ok=True)
        os.close(descriptor)


def hidden_path(path: Path, suffix: str) -> Path:
    """Return the path of a file or folder that accompanies another one: `.NAME.suffix`, in the same folder.

    Of a name that leaves no room for the affixes, or that is no text and that libraries refuse, its checksum is taken.
    """
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME or not is_text(path):
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.with_name(f".{name}.{suffix}")


def is_text(path: Path) -> bool:
    """Return whether a path is text that can be encoded as UTF-8, and no bytes of another encoding."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _set_mode(partial: Path, path: Path, mode: int) -> None:
    with suppress(OSError):  # a new file
        mode = stat.S_IMODE(path.stat().st_mode)
    with suppress(OSError):  # a file system without modes
        os.chmod(partial, mode)


def _open_locked(path: Path, *, wait: bool = True) -> int:
    """Return a descriptor of the file, made and locked; a killed process leaves no lock behind."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have renamed or removed the file meanwhile.
            if fcntl is None or os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(lock)
            raise
        except OSError:
            return lock  # a file system without locks
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
