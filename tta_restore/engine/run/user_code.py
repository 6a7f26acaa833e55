"""Import and call user code named ``module:name``; whatever it raises becomes one error with its name."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from tta_restore._core.streams import ReaderLeft

__all__ = ["guarded", "import_named", "is_named", "place_in_user_code", "plugins", "warn_of_namesake"]

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_files: set[str] = set()  # of the modules that the user named


def is_named(text: str) -> bool:
    """Return whether a text has the form ``module.path:name``."""
    return _NAME.fullmatch(text) is not None


def import_named(source: str) -> Any:
    """Return what ``module.path:name`` names, imported from the current folder or the Python path.

    Raises:
        ValueError: the module cannot be imported, or has no such name.
    """
    module, _, name = source.partition(":")
    if module.endswith(".py"):
        raise ValueError(f"{source}: name the module, not its file: {module.removesuffix('.py')}:{name}")
    with _current_folder_importable(), guarded(source, importing=True):
        found: Any = importlib.import_module(module)
    _files.add(str(getattr(found, "__file__", None)))
    for part in name.split("."):
        if not hasattr(found, part):
            near = get_close_matches(part, [known for known in dir(found) if not known.startswith("_")], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{source}: {module} has no {name}{hint}")
        found = getattr(found, part)
    return found


@contextmanager
def guarded(source: str, *, importing: bool = False) -> Iterator[None]:
    """Turn every exception of user code, ``SystemExit`` included, into a ValueError of one line.

    Raises:
        ValueError: with the name of the code and the error.
    """
    try:
        yield
    except SystemExit as error:
        raise ValueError(f"{source} called sys.exit({error.code!r})") from error
    except ImportError as error:
        raise ValueError(f"{source}: {error}") from error
    except (KeyboardInterrupt, GeneratorExit, ReaderLeft):
        raise
    except BaseException as error:  # user code may raise anything
        what = f"{source}: importing it raised" if importing else f"{source} raised"
        first = next(iter(str(error).splitlines()), "")
        raise ValueError(f"{what} {type(error).__name__}: {first}{place_in_user_code(error)}") from error


def place_in_user_code(error: BaseException) -> str:
    """Return the innermost line of a module that the user named, such as " (mine.py, line 7, in Mine.emit)", or ""."""
    place, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename in _files:
            place = f" ({Path(code.co_filename).name}, line {trace.tb_lineno}, in {code.co_qualname})"
        trace = trace.tb_next
    return place


def plugins(group: str) -> dict[str, Callable[[], Any]]:
    """Return the entry points of a group: name -> function that loads it.

    The groups are ``tta_restore.restorers``, ``tta_restore.methods``, ``tta_restore.degradations``,
    ``tta_restore.metrics`` and ``tta_restore.layouts``. What two packages announce under one name raises a ValueError
    when it is loaded.
    """

    def loader(name: str, values: list[str]) -> Callable[[], Any]:
        def load() -> Any:
            if len(values) > 1:
                raise ValueError(f"several plug-ins are called {name!r}: {', '.join(values)}; name one of these")
            with guarded(values[0], importing=True):
                return importlib.metadata.EntryPoint(name, values[0], group).load()

        return load

    return {name: loader(name, values) for name, values in _announced(group).items()}


@cache
def warn_of_namesake(name: str, group: str) -> None:
    """Warn, once, where a package announces something under a built-in name: what is built in is used."""
    if values := _announced(group).get(name):
        warnings.warn(
            f"{name!r} is the built-in one; the plug-in that has the same name is used as {values[0]}", stacklevel=3
        )


@cache
def _announced(group: str) -> dict[str, list[str]]:
    """Return what installed packages announce in a group: name -> different values."""
    found: dict[str, list[str]] = {}
    for point in importlib.metadata.entry_points(group=group):
        values = found.setdefault(point.name, [])
        if point.value not in values:
            values.append(point.value)
    return found


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
