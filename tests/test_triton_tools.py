"""The tools for Triton without a GPU: they accept a good kernel and notice a bad one."""

import pytest

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from triton_aot import assert_compiles_without_spills, compile_kernel  # noqa: E402
from triton_interpreter import run_interpreted  # noqa: E402


@triton.jit
def row_sum_kernel(p_x, p_out, n, BLOCK: tl.constexpr):
    o_x = tl.program_id(0) * n + tl.arange(0, BLOCK)
    b_x = tl.load(p_x + o_x, mask=tl.arange(0, BLOCK) < n, other=0.0)
    tl.store(p_out + tl.program_id(0), tl.sum(b_x, 0))


@triton.jit
def hungry_kernel(p_x, p_y, p_out, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    b_x = tl.load(p_x + o)
    b_y = tl.load(p_y + o)
    b_x, b_y = b_x * tl.sum(b_y, 0), b_y * tl.sum(b_x, 0)  # both stay alive until both sums are known
    tl.store(p_out + o, b_x + b_y * tl.max(b_x, 0))


def test_good_kernel_compiles_everywhere():
    found = assert_compiles_without_spills(
        row_sum_kernel, {"p_x": "*fp32", "p_out": "*fp32", "n": "i32"}, {"BLOCK": 1024}, num_warps=4
    )
    assert set(found) == {80, 90, 100}
    assert all(0 < resources.registers <= 255 for resources in found.values())


def test_spills_are_noticed():
    arguments = (dict.fromkeys(("p_x", "p_y", "p_out"), "*fp32"), {"BLOCK": 1024})
    assert_compiles_without_spills(hungry_kernel, *arguments, num_warps=4)
    starved = {"num_warps": 1, "maxnreg": 32}
    assert compile_kernel(hungry_kernel, *arguments, architecture=90, **starved).stack > 0
    with pytest.raises(AssertionError, match="hungry_kernel spills"):
        assert_compiles_without_spills(hungry_kernel, *arguments, **starved)


INTERPRETED = """
import torch, tta_restore
from tta_restore._core import dispatch as _backend
assert _backend.interpreting()
assert _backend.triton_missing() is None
with tta_restore.backend("triton"):
    try:
        tta_restore.ops.self_shift_score(torch.rand(1, 3, 4, 4))
    except tta_restore.BackendUnavailable as error:
        print(error)
"""


def test_interpreter_takes_cpu_tensors_and_stays_honest():
    """An op without a Triton kernel refuses under a forced backend instead of running something else."""
    assert "self_shift_products has no Triton kernel" in run_interpreted(INTERPRETED)


def test_failure_under_the_interpreter_fails_the_test():
    with pytest.raises(pytest.fail.Exception, match="what went wrong"):
        run_interpreted("raise SystemExit('what went wrong')")
