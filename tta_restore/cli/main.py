"""`tta-restore`: parse arguments, call `engine`, return an exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import tta_restore
from tta_restore._core.progress import no_progress
from tta_restore._core.streams import ReaderLeft, run_with_streams
from tta_restore.cli.commands import COMMANDS, Command
from tta_restore.cli.parsing import PROGRAM, Parsed, parse
from tta_restore.engine.run.names import RESULTS_FILE
from tta_restore.engine.run.settings import merge
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.run.user_code import place_in_user_code

__all__ = ["INTERRUPTED", "OK", "SOME_FAILED", "USAGE", "main"]

OK, SOME_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
#: Options that results of `restore` do not depend on.
_NOT_OF_RESULTS = ("inputs", "out", "state", "overwrite", "dry_run", "max_pixels", "keep_going", "device", "progress")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: success; 1: some inputs failed; 2: the command cannot be carried out as given; 130: interrupted, by Ctrl-C,
    SIGTERM or a terminal that was closed; 141: the reader of its output left.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_with_streams(lambda: _main(words))


def _main(words: list[str]) -> int:
    if words[:1] in (["--help"], ["-h"]):
        print(_overview())
        return OK
    if words[:1] == ["--version"]:
        print(f"{PROGRAM} {tta_restore.__version__}")
        return OK
    name, continues, verbose = "", False, "-v" in words or "--verbose" in words
    try:
        with _terminable(), _tracebacks() if verbose else nullcontext():
            name, command, rest = _select(words)
            parsed = parse(name, command, rest)
            continues = command.continues
            return _run(command, parsed)
    except UsageError as error:
        _complain(name, _line(str(error)))
        return USAGE
    except ModuleNotFoundError as error:
        _complain(name, _line(str(error)))
        return USAGE
    except KeyboardInterrupt:
        _complain(name, "interrupted; the same command continues" if continues else "interrupted")
        return INTERRUPTED
    except (SystemExit, ReaderLeft):
        raise
    except BaseException as error:  # the last resort, for what user code raises as well: one line, no traceback
        if verbose:
            raise
        place = place_in_user_code(error)
        _complain(name, f"{type(error).__name__}: {_line(str(error))}{place} (-v shows the traceback)")
        return USAGE if isinstance(error, (ValueError, TypeError, OSError, KeyError)) else SOME_FAILED


def _select(words: Sequence[str]) -> tuple[str, Command, list[str]]:
    """Return the name of the command, with its kind, the command, and the remaining arguments."""
    if not words:
        _refuse("a COMMAND is required")
    chosen, rest = words[0], list(words[1:])
    command = COMMANDS.get(chosen)
    if command is None:
        _refuse(f"there is no command {chosen!r}; there are: {', '.join(COMMANDS)}")
    if isinstance(command, Mapping):
        if rest[:1] in (["--help"], ["-h"]):
            print(_kinds(chosen, command))
            raise SystemExit(OK)
        if not rest or rest[0] not in command:
            got = f", got {rest[0]!r}" if rest else ""
            _refuse(f"{chosen}: expected a KIND, one of {', '.join(command)}{got}")
        return f"{chosen} {rest[0]}", command[rest[0]], rest[1:]
    assert isinstance(command, Command)  # noqa: S101 (narrows the type)
    if "model" in command.positional and rest[-1:] != ["--model"]:  # --model NET, as every other command takes it
        rest = [word.removeprefix("--model=") for word in rest if word != "--model"]
    return chosen, command, rest


def _run(command: Command, parsed: Parsed) -> int:
    """Call the function of the command and return the exit code of what it gives."""
    import importlib

    if parsed.jobs is not None:
        import torch

        torch.set_num_threads(parsed.jobs)
    for name, value in parsed.options.items():
        _expect_not_empty(name, value)
    module, _, function = command.function.partition(":")
    called = getattr(importlib.import_module(module), function)
    options = _without_defaults(parsed.options, command)
    if parsed.quiet:
        options |= _quiet(called, speaks=bool(parsed.options.get("dry_run")))
        if command.config:
            options["config"] = merge(options["config"], {"run": {"progress": False}})
    earlier = _earlier(command, parsed)
    try:
        with no_progress() if parsed.quiet else nullcontext(), _plain_warnings():
            result = called(**options)
    except UsageError:  # nothing was done
        raise
    except BaseException:
        _keep(command, parsed)
        raise
    is_kept = not getattr(result, "has_written", True) or _keep(command, parsed)
    if getattr(result, "kept", 0) and (changed := _changed(earlier, parsed)) and not parsed.quiet:
        print(
            f"note: {result.kept} results were kept that were made with other settings ({', '.join(changed)}): "
            "--overwrite makes them again",
            file=sys.stderr,
        )
    if isinstance(result, str):
        print(result)
    elif hasattr(result, "exit_code") and not parsed.quiet and not parsed.options.get("dry_run"):
        print(_closing(result, parsed.options["out"]), file=sys.stderr)
    return max(int(getattr(result, "exit_code", OK)), OK if is_kept else SOME_FAILED)


def _closing(result: Any, out: Any) -> str:
    """Return the last line of a run: its result, and whether anything was written there."""
    if out is None:  # the function chose where, and named it
        return str(result)
    there = "standard output" if str(out) == "-" else _line(str(out))
    return f"{result}; {'written' if getattr(result, 'has_written', True) else 'nothing written'} to {there}"


def _keep(command: Command, parsed: Parsed) -> bool:
    """Write the configuration next to the results, where there are any; return whether the disk took it."""
    if (
        command.folder
        and parsed.folder is not None
        and str(parsed.folder) != "-"
        and os.path.isdir(parsed.folder)
        and any(parsed.folder.iterdir())
    ):
        from tta_restore.data.io.atomic import atomic_file

        path = parsed.folder / RESULTS_FILE
        try:
            with atomic_file(path) as partial:
                partial.write_text(parsed.text, encoding="utf-8")
        except OSError as error:  # the results are there all the same
            print(f"error: {_line(str(path))}: cannot be written ({error.strerror or error})", file=sys.stderr)
            return False
    return True


def _earlier(command: Command, parsed: Parsed) -> str | None:
    """Return the configuration that lies next to the results, None where there is none that can be read."""
    if not command.folder or parsed.folder is None:
        return None
    from tta_restore.engine.run.outputs import expect_file

    path = parsed.folder / RESULTS_FILE
    if os.path.isdir(path.parent):
        expect_file(path, flag="output")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _changed(earlier: str | None, parsed: Parsed) -> list[str]:
    """Return the names of the settings on which results depend and that differ from an earlier configuration."""
    import yaml

    if earlier is None:
        return []
    try:
        before, now = yaml.safe_load(earlier), yaml.safe_load(parsed.text)
    except yaml.YAMLError:
        return []
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return []
    names = (name for name in (*now, *(name for name in before if name not in now)) if name not in _NOT_OF_RESULTS)
    return [name for name in names if before.get(name) != now.get(name)]


def _without_defaults(options: Mapping[str, Any], command: Command) -> dict[str, Any]:
    """Options that were given or have a default; those that are None are left to the function."""
    found = {name: value for name, value in options.items() if value is not None and not name.endswith("_set")}
    return {name: value for name, value in found.items() if value != [] or name not in command.positional}


def _quiet(function: Any, *, speaks: bool) -> dict[str, Any]:
    """Return the options that limit the messages of a function to errors; ``speaks``: its messages are its result."""
    import inspect

    takes = inspect.signature(function).parameters
    options: dict[str, Any] = {"progress": False} if "progress" in takes else {}
    return options | ({"say": _say_errors} if "say" in takes and not speaks else {})


def _say_errors(line: str) -> None:
    if line.startswith(("error:", "warning:")):
        print(_line(line), file=sys.stderr)


def _expect_not_empty(name: str, value: Any) -> None:
    """Refuse an empty argument, which an unset variable of the shell gives and a path would take for ``.``."""
    if value == "" or (isinstance(value, (list, tuple)) and "" in value):
        raise UsageError(f"--{name.replace('_', '-')}: expected a value, got an empty argument")


@contextmanager
def _tracebacks() -> Iterator[None]:
    """Show on stderr what is logged of errors that end one input only."""
    import logging

    logger, handler = logging.getLogger("tta_restore.engine"), logging.StreamHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings as lines like the others, without the place in the code that they come from."""
    import warnings

    from tqdm import tqdm

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        tqdm.write(f"warning: {_line(str(message))}", file=sys.stderr)  # lifts a progress bar for the line

    before, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = before


@contextmanager
def _terminable() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP as Ctrl-C while a command runs, where this is the main thread."""
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    numbers = [
        getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
    ]  # Windows has no SIGHUP
    handlers = {number: signal.getsignal(number) for number in numbers}
    # left alone: ignored signals, as by nohup, and handlers that Python did not set and could not set again
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _overview() -> str:
    lines = [
        f"usage: {PROGRAM} [--help] [--version] COMMAND ...",
        "",
        "Test-time adaptation for any image or video restorer.",
        "",
        "commands:",
    ]
    width = max(map(len, COMMANDS))
    for name, command in COMMANDS.items():
        summary = command.summary if isinstance(command, Command) else f"train your own networks: {', '.join(command)}"
        lines.append(f"  {name:{width}}  {summary}")
    return "\n".join([*lines, "", f"{PROGRAM} COMMAND --help describes a command."])


def _kinds(name: str, kinds: Mapping[str, Command]) -> str:
    width = max(map(len, kinds))
    lines = [f"usage: {PROGRAM} {name} KIND [options]", "", "kinds:"]
    lines += [f"  {kind:{width}}  {command.summary}" for kind, command in kinds.items()]
    return "\n".join([*lines, "", f"{PROGRAM} {name} KIND --help describes a kind."])


def _refuse(message: str) -> Any:
    print(f"{PROGRAM}: error: {message}; see {PROGRAM} --help", file=sys.stderr)
    raise SystemExit(USAGE)


def _complain(name: str, message: str) -> None:
    print(f"{PROGRAM} {name}: {message}" if name else f"{PROGRAM}: {message}", file=sys.stderr)


def _line(text: str) -> str:
    """Return one line of a message, with control characters escaped."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
