"""The rule of ``--device``: the requested device, otherwise CUDA if present, otherwise the CPU; and its memory."""

from __future__ import annotations

import os

import torch

from tta_restore.engine.run.usage import UsageError

__all__ = ["physical_memory", "resolve_device"]


def physical_memory() -> int | None:
    """Return the bytes of memory of this machine; None where it cannot be asked, as on Windows."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


def resolve_device(device: str | torch.device | None = None) -> str:
    """Return the name of the device that a command runs on.

    Args:
        device: such as "cpu" or "cuda:1"; None takes a CUDA device where there is one.

    Raises:
        UsageError: there is no such device.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"--device {device}: expected a device such as cpu or cuda:0") from error
    if chosen.type == "meta":  # tensors without values
        raise UsageError(f"--device {device}: expected a device such as cpu or cuda:0")
    try:
        torch.empty(0, device=chosen)
    except Exception as error:  # every backend has its own for a device that it lacks
        first = next(iter(str(error).splitlines()), "").split(". ")[0]
        if "aten::" in first:  # the dispatcher's words for a backend that this torch was built without
            first = f"this build of torch has no {chosen.type}"
        raise UsageError(f"--device {device}: {first or type(error).__name__}") from error
    return str(device)
