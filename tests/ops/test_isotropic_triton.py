"""The Triton kernels of the isotropic blur: results under the interpreter, and compiled code for absent GPUs."""

import pytest
import torch

pytest.importorskip("triton")
from triton_aot import assert_compiles_without_spills
from triton_interpreter import interprets_loops, run_interpreted
from triton_launches import absent_device

from tta_restore.ops.isotropic import triton as launchers

PROGRAM = """
import torch, tta_restore
from _compare import TOLERANCES, assert_agrees
from tta_restore import ops
from tta_restore.ops.isotropic import triton as launchers
launchers._BAND_BYTES = 1  # bands of 16 rows: the frame has two, whose kernels reach into each other
generator = torch.Generator().manual_seed(0)
for sizes, shape, dtype in (((3, 5), (1, 2, 18, 7), torch.float32), ((3, 1), (2, 1, 3, 5), torch.float16)):
    channels = sum((k + 1) // 2 for k in sizes)
    b, c, h, w = shape
    tensors = [
        torch.rand(shape, generator=generator),
        torch.randn(b, channels, h, w, generator=generator) * 2,
        torch.rand(b, 1 + len(sizes), h, w, generator=generator),
    ]
    tensors = [t.to(dtype) for t in tensors]
    upstream = torch.rand(shape, generator=generator)

    def derivatives(dtype, backend):
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        with tta_restore.backend(backend):
            out = ops.isotropic_reblur(*leaves, kernel_sizes=sizes)
            return out, *torch.autograd.grad(out, leaves, upstream.to(dtype))

    for got, want in zip(derivatives(dtype, "triton"), derivatives(torch.float64, "reference"), strict=True):
        assert got.dtype == dtype
        assert_agrees(got, want, tolerance=TOLERANCES[dtype])
print("agrees")
"""


@interprets_loops
def test_results_under_the_interpreter():
    assert run_interpreted(PROGRAM).strip() == "agrees"


# The default sizes take a minute or more of compilation for each type.
@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [((3,), "bf16"), *(pytest.param((3, 5, 7, 9, 11, 13, 15), t, marks=pytest.mark.slow) for t in ("fp32", "bf16"))],
)
def test_compiles_without_spills(sizes, dtype):
    tables = launchers._tables(sizes)
    block, ints = {"BLOCK": launchers._OPTIONS["BLOCK"]}, dict.fromkeys(("C", "H", "W"), "i32")
    tensors = dict.fromkeys(("p_image", "p_seeds", "p_weights", "p_out"), f"*{dtype}")
    constants = {"SEEDS": sum((k + 1) // 2 for k in sizes), **tables, **block}
    assert_compiles_without_spills(launchers.reblur_kernel, {**tensors, **ints}, constants, num_warps=4)
    del tensors["p_out"]
    for name in ("p_grad", "p_grad_seeds", "p_grad_weights"):
        tensors[name] = f"*{dtype}"
    assert_compiles_without_spills(launchers.kernel_gradients_kernel, {**tensors, **ints}, constants, num_warps=4)
    rows = dict.fromkeys(("row", "rows", "H", "W"), "i32")
    kernels = {"p_seeds": f"*{dtype}", "p_weights": f"*{dtype}", "p_coefficients": "*fp32"}
    assert_compiles_without_spills(launchers.coefficients_kernel, {**kernels, **rows}, constants, num_warps=4)
    images = {"p_grad": f"*{dtype}", "p_coefficients": "*fp32", "p_grad_image": f"*{dtype}"}
    numbers = dict.fromkeys(("first", "count", "row", "rows", "C", "H", "W"), "i32")
    constants = {"RADIUS": max(sizes) // 2, **block}
    assert_compiles_without_spills(launchers.image_gradient_kernel, {**images, **numbers}, constants, num_warps=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_launches_compile_without_spills(dtype, generator):
    """As a call hands them over, on H100 and H200."""
    image, seeds, weights = (torch.rand(2, c, 12, 20, generator=generator).to(dtype) for c in (3, 5, 3))
    with absent_device() as found:
        launchers.isotropic_reblur(image, seeds, weights, (3, 5))
        launchers.isotropic_reblur_backward(image, image, seeds, weights, (3, 5), True, True)
    kernels = {"reblur_kernel", "kernel_gradients_kernel", "coefficients_kernel", "image_gradient_kernel"}
    assert found.keys() == kernels
    assert not any(used.stack or used.local for forms in found.values() for used in forms)
