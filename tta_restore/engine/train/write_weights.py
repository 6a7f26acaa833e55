"""Weights of a small network, and beside them a log with what they come from."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tta_restore import __version__

__all__ = ["write_weights"]


def write_weights(net: nn.Module, path: Path, log: dict[str, Any], *, start: float) -> None:
    """Write a safetensors file, and a JSON file with the log, the time since ``start``, and the machine."""
    save_file(net.state_dict(), path)
    machine = {
        "seconds": round(time.time() - start, 1),
        "processor_seconds": round(time.process_time(), 1),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "tta_restore": __version__,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
    }
    path.with_suffix(".json").write_text(json.dumps(log | machine, indent=1) + "\n")
