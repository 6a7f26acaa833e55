"""Run functions and programs of tests in new processes.

They are forked from a process that has imported parts of torch and done nothing else, so that each starts in a moment
and knows nothing of earlier tests.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import torch

_context = multiprocessing.get_context("forkserver")
# The first optimizer of a process imports torch._dynamo. Half of that import is the module below; the whole would also
# import triton, before a child can set TRITON_INTERPRET.
_context.set_forkserver_preload(["torch", "torch.distributed.fsdp"])


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function of a test module returns in a new process, or raise what it raises.

    Children of a process in which torch has started threads for autograd cannot differentiate: tests that fork need a
    process in which no earlier test has run.
    """
    # one thread, as in the tests: children of a process with OpenMP's threads would wait for ever
    with _context.Pool(1, torch.set_num_threads, (1,)) as pool:
        return pool.apply(function, arguments)


def run_program(
    program: str, *words: Any, folder: Path | None = None, timeout: float = 300, **environment: str
) -> CompletedProcess[str]:
    """Run Python source as ``python -c`` does, in a new process with further variables in its environment.

    ``PYTHONPATH`` among them comes before the paths of the tests.
    """
    with tempfile.TemporaryDirectory() as outputs:
        out, err = Path(outputs, "out"), Path(outputs, "err")
        with started_program(program, *words, folder=folder, outputs=(out, err), **environment) as process:
            process.join(timeout)
        code = process.exitcode
        return CompletedProcess([program, *words], -9 if code is None else code, out.read_text(), err.read_text())


def run_processes(program: str, *words: Any, count: int = 2, timeout: float = 300) -> None:
    """Run Python source in several processes that know of each other as ``torchrun`` tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    with contextlib.ExitStack() as stack:
        outputs = [Path(stack.enter_context(tempfile.TemporaryDirectory()), "out") for _ in range(count)]
        started = [
            stack.enter_context(
                started_program(program, *words, outputs=(out, out), **shared, RANK=str(rank), LOCAL_RANK=str(rank))
            )
            for rank, out in enumerate(outputs)
        ]
        for process, out in zip(started, outputs, strict=True):
            process.join(timeout)
            assert process.exitcode == 0, out.read_text()[-2000:]


@contextlib.contextmanager
def started_program(
    program: str, *words: Any, folder: Path | None = None, outputs: tuple[Path, Path] | None = None, **environment: str
) -> Iterator[BaseProcess]:
    """Start Python source as :func:`run_program` does, and kill the process at the end if it still runs."""
    process = _context.Process(target=_run, args=(program, [str(word) for word in words], folder, outputs, environment))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _run(
    program: str,
    words: list[str],
    folder: Path | None,
    outputs: tuple[Path, Path] | None,
    environment: Mapping[str, str],
) -> None:
    for descriptor, path in zip((1, 2), outputs or (Path(os.devnull),) * 2, strict=True):
        with path.open("ab") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = ["-c", *words]
    if folder is not None:
        os.chdir(folder)
    sys.path.insert(0, "")
    torch.set_num_threads(1)
    exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
