"""Run a function of a test in a new interpreter."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch


def in_new_interpreter(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function of a test module returns in a new interpreter, or raise what it raises.

    Children of a process in which torch has started threads for autograd cannot differentiate: tests that fork need a
    process in which no earlier test has run.
    """
    # one thread, as in the tests: children of a process with OpenMP's threads would wait for ever
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (1,)) as pool:
        return pool.apply(function, arguments)
