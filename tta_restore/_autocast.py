"""The dtype that autocast asks for on a device, for devices of any kind."""

from __future__ import annotations

import torch


@torch.compiler.assume_constant_result  # older versions of torch.compile cannot trace it
def _knows_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype of the autocast region around this call; None outside of one, and on devices that know none (meta)."""
    if not _knows_autocast(device_type) or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)
