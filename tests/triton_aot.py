"""Compile Triton kernels for GPUs that are not there, and read what the compiled code uses.

It proves that a kernel compiles for a generation of devices and does not spill registers to memory. It proves nothing
about results (the interpreter does: `triton_interpreter.py`), races or speed.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 90, 100)  # A100, H100 and H200, B200
_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Resources:
    """What one thread (registers, stack, local, in bytes but for the first) and one block (shared) use."""

    registers: int
    stack: int
    local: int
    shared: int


def compile_kernel(
    kernel: Any, signature: dict[str, str], constants: dict[str, Any], *, architecture: int, **options: Any
) -> Resources:
    """Compile for one compute capability, such as 90.

    Args:
        kernel: the ``@triton.jit`` function.
        signature: type of every run-time argument, such as ``{"x": "*fp32", "n": "i32"}``.
        constants: value of every ``tl.constexpr`` argument.
        architecture: compute capability times ten.
        options: ``num_warps``, ``num_stages``.
    """
    complete = {**signature, **dict.fromkeys(constants, "constexpr")}
    order = {name: complete[name] for name in kernel.arg_names}
    source = ASTSource(kernel, signature=order, constexprs=constants)
    # Triton warns where fusion of multiply and add is left to its changing default; launchers name it as well.
    options = {"enable_fp_fusion": True, **options}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    return resources(compiled.asm["cubin"], compiled.metadata.shared)


def assert_compiles_without_spills(
    kernel: Any, signature: dict[str, str], constants: dict[str, Any], **options: Any
) -> dict[int, Resources]:
    """Compile for every architecture; fail when one of them keeps registers in memory."""
    found = {a: compile_kernel(kernel, signature, constants, architecture=a, **options) for a in ARCHITECTURES}
    spilling = {a: r for a, r in found.items() if r.stack or r.local}
    assert not spilling, f"{kernel.__name__} spills: {spilling}"
    return found


def resources(cubin: bytes, shared: int) -> Resources:
    """Read what a compiled kernel with so much shared memory uses."""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [_CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    numbers = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return Resources(numbers["REG"], numbers["STACK"], numbers["LOCAL"], shared)
