"""Run a program with Triton's interpreter, in a new process: the switch is read when triton is imported.

About 50 ms per program instance of a kernel: keep grids to a few dozen.
"""

from __future__ import annotations

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
    run = run_program(program, timeout=timeout, TRITON_INTERPRET="1")
    if run.returncode:
        pytest.fail(f"under the interpreter:\n{run.stdout}{run.stderr}", pytrace=False)
    return run.stdout
