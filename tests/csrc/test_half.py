"""Half-precision conversion in the C++ kernels: every float16 and bfloat16, and floats at every rounding edge."""

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).parents[2] / "csrc"
PROGRAM = """
#include "half.h"
template <typename T> static void run(const float* in, T* stored, const T* half, float* loaded, int64_t n, int64_t m) {
  tta::store_values(in, n, stored);
  tta::load_values(half, m, loaded);
}
#define EXPORT(name, T)                                                                                  \\
  extern "C" void name(const float* in, T* stored, const T* half, float* loaded, int64_t n, int64_t m) { \\
    run(in, stored, half, loaded, n, m);                                                                 \\
  }
EXPORT(float16, tta::Float16)
EXPORT(bfloat16, tta::BFloat16)
"""

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="compiles a header with g++")


def supports(level):
    return level == "v2" or {"v3": "f16c", "v4": "avx512f"}[level] in Path("/proc/cpuinfo").read_text()


@pytest.fixture(scope="module", params=["v2", "v3", "v4"])
def library(request, tmp_path_factory):
    """Loops of every instruction set: v3 and v4 convert float16 by F16C."""
    if platform.machine() != "x86_64" or not supports(request.param):
        pytest.skip("needs this instruction set")
    folder = tmp_path_factory.mktemp("half")
    (folder / "half.cpp").write_text(PROGRAM)
    flags = [
        f"-march=x86-64-{request.param}",
        "-std=c++20",
        "-O3",
        "-fno-trapping-math",
        "-shared",
        "-fPIC",
        f"-I{CSRC}",
    ]
    subprocess.run(["g++", *flags, "half.cpp", "-o", "half.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "half.so"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounds_and_widens_as_torch_does(library, dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    wide = every.float()
    # each value, halfway to its neighbor, and just beside that
    halfway = (wide + wide.roll(1)) / 2
    infinity = torch.full_like(halfway, float("inf"))
    floats = torch.cat((wide, halfway, torch.nextafter(halfway, infinity), torch.nextafter(halfway, -infinity)))
    floats = torch.cat((floats, torch.tensor([65519.99, 65520.0, 3.4e38, 1e-45, -1e-45, 2.9e-8, 2.99e-8])))
    stored, loaded = torch.zeros_like(floats, dtype=dtype), torch.zeros_like(wide)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (floats, stored, every, loaded)]
    getattr(library, str(dtype).removeprefix("torch."))(
        *pointers, ctypes.c_int64(floats.numel()), ctypes.c_int64(every.numel())
    )
    expected = floats.to(dtype)
    nan = expected.isnan()
    assert torch.equal(stored.isnan(), nan)
    assert torch.equal(stored[~nan].view(torch.int16), expected[~nan].view(torch.int16))
    nan = wide.isnan()
    assert torch.equal(loaded.isnan(), nan)
    assert torch.equal(loaded[~nan].view(torch.int32), wide[~nan].view(torch.int32))
