"""Launch Triton kernels on an absent GPU: compiled from the arguments of the launchers, and never run.

Where `triton_aot.py` compiles a kernel from a signature, this goes the way of a user's call: the launcher's arguments,
constants and options, and what Triton concludes from their values. What is computed stays unwritten.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton_aot import Resources, resources

_NUMBER = 99  # Triton keeps compiled kernels by the number of their device; no machine has so many


class _AbsentDevice:
    """What Triton asks of a driver before and during a launch."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self.found: dict[str, list[Resources]] = defaultdict(list)
        self.utils = self

    def get_current_device(self) -> int:
        return _NUMBER + self.architecture

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", self.get_current_device())

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10, "multiprocessor_count": 132, "max_num_regs": 65536, "warpSize": 32}

    def load_binary(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        """Read what a compiled kernel uses; module, function, registers, spills and threads as Triton wants them."""
        used = resources(cubin, shared)
        self.found[name].append(used)
        return 1, 1, used.registers, 0, 1024

    def unload_module(self, module: int) -> None:
        """Nothing was loaded."""

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """Check the grid as a device does, and run nothing."""

        def launch(grid_x: int, grid_y: int, grid_z: int, *args: Any) -> None:
            if grid_x >= 2**31 or max(grid_y, grid_z) > 65535:
                raise RuntimeError(f"invalid argument: a grid of {grid_x} x {grid_y} x {grid_z} blocks")

        return launch


@contextmanager
def absent_device(architecture: int = 90) -> Iterator[dict[str, list[Resources]]]:
    """Let launches with CPU tensors compile for a device; gives what every form of every kernel uses, by name."""
    device, before = _AbsentDevice(architecture), driver._active
    driver.set_active(device)
    try:
        yield device.found
    finally:
        driver._active = before  # reset_active wants a device that is there
