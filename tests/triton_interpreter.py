"""Run a program with Triton's interpreter, in a new process: the switch is read when triton is imported.

About 20 ms per program instance of a kernel: keep grids to a few dozen.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import triton
from _fresh import run_program

VERSIONS = [tuple(int(part) for part in package.__version__.split(".")[:2]) for package in (triton, numpy)]
interprets_loops = pytest.mark.skipif(
    VERSIONS[0] < (3, 7) and VERSIONS[1] >= (2, 4),
    reason="Triton 3.6 beside NumPy 2.4 cannot interpret a loop whose bound is no constant",
)


def run_interpreted(program: str, *, timeout: float = 300) -> str:
    """Run Python source in which ``tta_restore.backend("triton")`` takes CPU tensors; return what it prints.

    ``_compare`` and ``_base`` can be imported. The test fails with the program's own words when it exits with an error.
    """
    start = "import triton_interpreter\ntriton_interpreter.hasten()\n"
    run = run_program(start + program, timeout=timeout, TRITON_INTERPRET="1")
    if run.returncode:
        pytest.fail(f"under the interpreter:\n{run.stdout}{run.stderr}", pytrace=False)
    return run.stdout


def hasten() -> None:
    """Spare the interpreter, in a process that does nothing else, two thirds of its time.

    It checks every 32-bit sum and product for overflow, and replaces the functions of ``triton.language`` at every call
    of a device function.
    """
    from triton.runtime import interpreter

    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    replace, replaced = interpreter._patch_lang, set()

    def replace_once(function: Any) -> SimpleNamespace:
        names = frozenset(n for n, value in function.__globals__.items() if value is triton.language)
        if names not in replaced:
            replace(function)
            replaced.add(names)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = replace_once
