"""Write files atomically: a reader sees the old file or the new one, whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends without an error it is renamed to `path`.

    The temporary name is fixed (`.NAME.partial`), so what a killed process left behind is overwritten by the next one;
    of several writers at once, in threads or processes, one waits for the other. Folders above `path` are made. The
    content is on the disk before the name is.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    lock = _locked(partial)
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(lock)


def _locked(path: Path) -> int:
    """Descriptor of the file of this name, made and locked; a killed process leaves no lock behind."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            # whoever held it before may have renamed the file meanwhile
            if fcntl is None or os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        except FileNotFoundError:
            pass
        except OSError:
            return lock  # a file system without locks
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
