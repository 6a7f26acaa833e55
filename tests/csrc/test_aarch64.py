"""C++ kernels on aarch64: cross-compiled without libtorch, run in an emulator."""

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC, PROGRAM = Path(__file__).parents[2] / "csrc", Path(__file__).parent / "kernels_check.cpp"
COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


@pytest.mark.slow
@pytest.mark.skipif(not (COMPILER and EMULATOR), reason="needs aarch64-linux-gnu-g++ and qemu-aarch64")
def test_kernels_on_aarch64(tmp_path):
    """All float16 values, and iac in every dtype and memory format against a loop in double."""
    includes = [f"-I{CSRC}", f"-I{CSRC}/ops/cpu/adaptive_conv"]
    flags = ["-static", "-O2", "-std=c++20", "-DTTA_ISA=v2", "-fno-trapping-math", "-fno-math-errno"]
    program = tmp_path / "kernels_check"
    subprocess.run([COMPILER, *flags, *includes, PROGRAM, "-o", program], check=True)
    run = subprocess.run([EMULATOR, program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:]
