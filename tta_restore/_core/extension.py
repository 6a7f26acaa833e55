"""Load the C++ kernels if they were built, and keep the reason if they were not."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform

import torch

__all__ = ["AVAILABLE", "DETAIL", "implements", "instruction_set"]


def _load() -> tuple[bool, str]:
    """Return whether the kernels are loaded, and their path or the reason."""
    if os.environ.get("TTA_RESTORE_NO_EXTENSION") == "1":
        return False, "switched off by TTA_RESTORE_NO_EXTENSION=1"
    spec = importlib.util.find_spec("tta_restore._C")
    if spec is None or spec.origin is None:
        return False, "not built; run `make build` or `pip install --no-build-isolation -e .` beside a C++ compiler"
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        return False, f"{spec.origin} does not load: {error}"
    return True, spec.origin


AVAILABLE, DETAIL = _load()

if not AVAILABLE and os.environ.get("TTA_RESTORE_REQUIRE_EXTENSION") == "1":
    raise ImportError(f"tta_restore: TTA_RESTORE_REQUIRE_EXTENSION=1, but the C++ extension is {DETAIL}")


@functools.cache
def implements(name: str) -> bool:
    """Return whether the loaded binary has a kernel called ``name``; a binary of older sources may lack it."""
    return AVAILABLE and torch._C._dispatch_has_kernel_for_dispatch_key(f"tta_restore_cpu::{name}", "CPU")


def instruction_set() -> str:
    """Return the instruction set that the kernels use on this CPU, such as ``"x86-64-v3"`` or ``"aarch64"``."""
    machine = platform.machine()
    if machine.lower() not in ("x86_64", "amd64"):
        return machine  # one form, compiled for the baseline of the architecture
    return f"x86-64-v{torch.ops.tta_restore_cpu.isa_level.default()}"
