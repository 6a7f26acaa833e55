"""The Triton kernels of the isotropic blur: results under the interpreter, and compiled code for absent GPUs."""

import pytest
import torch
from _compare import TOLERANCES, assert_agrees

import tta_restore
from tta_restore import ops

pytest.importorskip("triton")
from triton_aot import ARCHITECTURES
from triton_interpreter import interprets_loops, run_interpreted
from triton_launches import absent_device

from tta_restore.ops.isotropic import triton as launchers

PROGRAM = """
import torch, tta_restore
from _compare import TOLERANCES, assert_agrees
from tta_restore import ops
from tta_restore.ops.isotropic import triton as launchers
launchers._BAND_BYTES, launchers._LEAST_ROWS = 1, 16  # the first frame has two bands, which share rows
generator = torch.Generator().manual_seed(0)
for sizes, shape, dtype in (
    ((3, 5), (1, 2, 18, 7), torch.float32), ((3, 1), (2, 1, 3, 5), torch.float16), ((3,), (2, 2, 1, 1), torch.float32)
):
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

def image_gradient(backend):
    image, seeds, weights = torch.ones(1, 1, 3, 3, requires_grad=True), torch.zeros(1, 2, 3, 3), torch.ones(1, 2, 3, 3)
    weights[..., 0, 1] = torch.inf
    with tta_restore.backend(backend):
        return torch.autograd.grad(ops.isotropic_reblur(image, seeds, weights, kernel_sizes=(3,)).sum(), image)[0]

assert_agrees(image_gradient("triton"), image_gradient("reference"))  # infinite at the border, not NaN
print("agrees")
"""


@pytest.mark.thorough
@interprets_loops
def test_results_under_the_interpreter():
    assert run_interpreted(PROGRAM).strip() == "agrees"


def launch_all(shape, sizes, dtype=torch.float32, architecture=90):
    b, _, h, w = shape
    image, seeds = torch.empty(shape, dtype=dtype), torch.empty(b, sum((k + 1) // 2 for k in sizes), h, w, dtype=dtype)
    weights = torch.empty(b, 1 + len(sizes), h, w, dtype=dtype)
    with absent_device(architecture) as found:
        launchers.isotropic_reblur(image, seeds, weights, sizes)
        launchers.isotropic_reblur_backward(image, image, seeds, weights, sizes, True, True)
    return found


KERNELS = {f"{name}_kernel" for name in ("reblur", "correlation", "kernel_gradients", "coefficients", "image_gradient")}


# The default sizes take half a minute of compilation for each type.
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        ((3, 5), torch.float32),
        ((3, 5), torch.bfloat16),
        *(
            pytest.param((3, 5, 7, 9, 11, 13, 15), dtype, marks=pytest.mark.slow)
            for dtype in (torch.float32, torch.bfloat16)
        ),
    ],
    ids=str,
)
def test_compiles_without_spills(sizes, dtype, architecture):
    """As a call hands the kernels over."""
    found = launch_all((1, 3, 40, 200), sizes, dtype, architecture)
    assert found.keys() == KERNELS
    assert not any(used.stack or used.local for forms in found.values() for used in forms)


def test_a_frame_of_one_pixel_compiles():
    """Triton turns arguments that are 1 into compile-time numbers, which have no dtype."""
    assert launch_all((2, 3, 1, 1), (3,)).keys() == KERNELS


def test_more_frames_than_a_second_grid_axis_holds():
    launch_all((30000, 3, 2, 2), (3,))


def test_bands_share_one_compiled_form(monkeypatch):
    """Bands differ in their first row and in their number of rows, also in whether these are 1 or divide by 16."""
    monkeypatch.setattr(launchers, "_BAND_BYTES", 1)
    monkeypatch.setattr(launchers, "_LEAST_ROWS", 16)
    found = launch_all((1, 1, 33, 21), (3,))
    assert {name: len(forms) for name, forms in found.items()} == dict.fromkeys(found, 1)


def test_launches_enter_the_device_of_their_tensors(monkeypatch):
    """Without it, tensors on cuda:1 are launched on the current device, which cannot read them."""
    entered = []
    original = torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: entered.append(tensor.shape) or original(tensor))
    launch_all((1, 3, 4, 5), (3,))
    assert entered == [(1, 3, 4, 5)] * 2


def test_a_frame_beyond_32_bit_offsets_is_refused():
    image, seeds, weights = (torch.empty(1, c, 2**16, 2**15, device="meta") for c in (1, 2, 2))
    with pytest.raises(ValueError, match=r"fewer than 2\^31 pixels in image \(B, C, H, W\), got H, W = 65536, 32768"):
        launchers.isotropic_reblur(image, seeds, weights, (3,))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((1, 3, 120, 168), (3, 5, 7, 9, 11, 13, 15)),
        ((2, 2, 150, 40), (3, 1)),
        ((3, 3, 1, 1), (3,)),
        ((2, 1, 1, 9), (5,)),
    ],
    ids=str,
)
def test_kernels_equal_the_reference(shape, sizes, dtype, generator):
    b, _, h, w = shape
    image, upstream = (torch.rand(shape, generator=generator) for _ in range(2))
    seeds = torch.randn(b, sum((k + 1) // 2 for k in sizes), h, w, generator=generator)
    weights = torch.rand(b, 1 + len(sizes), h, w, generator=generator)
    tensors = [t.cuda().to(dtype) for t in (image, seeds, weights, upstream)]

    def derivatives(backend, tensors):
        *leaves, upstream = tensors
        leaves = [t.detach().clone().requires_grad_() for t in leaves]
        with tta_restore.backend(backend):
            out = ops.isotropic_reblur(*leaves, kernel_sizes=sizes)
            return out, *torch.autograd.grad(out, leaves, upstream)

    found, again = derivatives("triton", tensors), derivatives("triton", tensors)
    expected = derivatives("reference", [t.double() for t in tensors])
    for got, same, want in zip(found, again, expected, strict=True):
        assert torch.equal(got, same)
        assert_agrees(got, want, tolerance=TOLERANCES[dtype])


@pytest.mark.gpu
def test_more_frames_than_a_second_grid_axis_holds_on_the_device():
    image, seeds, weights = (torch.rand(30000, c, 2, 2, device="cuda") for c in (3, 2, 2))
    with tta_restore.backend("triton"):
        found = ops.isotropic_reblur(image, seeds, weights, kernel_sizes=(3,))
    with tta_restore.backend("reference"):
        assert_agrees(found, ops.isotropic_reblur(image.double(), seeds.double(), weights.double(), kernel_sizes=(3,)))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_of_another_than_the_current_device():
    image, seeds, weights = (torch.rand(1, c, 8, 8, device="cuda:1").requires_grad_() for c in (3, 2, 2))
    with tta_restore.backend("triton"):
        ops.isotropic_reblur(image, seeds, weights, kernel_sizes=(3,)).sum().backward()
    torch.cuda.synchronize("cuda:1")
    assert all(t.grad.isfinite().all() for t in (image, seeds, weights))
