"""Load the C++ kernels when they are there, and remember why when they are not."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch


def _load() -> tuple[bool, str]:
    """Return whether the kernels are loaded, and where from or why not."""
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
    """Tell whether the loaded binary holds a kernel called ``name``; one built from older sources may not."""
    return AVAILABLE and torch._C._dispatch_has_kernel_for_dispatch_key(f"tta_restore_cpu::{name}", "CPU")


def instruction_set() -> str:
    """Return the x86-64 level that the kernels picked on this processor, such as ``"x86-64-v3"``."""
    return f"x86-64-v{torch.ops.tta_restore_cpu.isa_level.default()}"
