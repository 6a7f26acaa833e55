"""The Triton kernels of the product convolution: results under the interpreter, and compiled code for absent GPUs."""

import pytest
import torch

pytest.importorskip("triton")
from triton_interpreter import interprets_loops, run_interpreted
from triton_launches import absent_device

from tta_restore.ops.product_conv import reference
from tta_restore.ops.product_conv import triton as launchers

PROGRAM = """
import torch, tta_restore
from _compare import TOLERANCES, assert_agrees
from tta_restore import ops
from tta_restore.ops.product_conv import triton as launchers

CASES = [  # frames, R, frames and channels with kernels of their own, K, padding, dtype, layout of frames and weights
    ((1, 2, 9, 37), 2, (1, 1), 3, "reflect", torch.float32, "contiguous"),
    ((1, 5, 6, 7), 9, (1, 1), 3, "zeros", torch.float32, "channels_last"),
    ((2, 2, 7, 5), 3, (2, 2), 5, "replicate", torch.float16, "sliced"),
    ((1, 1, 1, 1), 1, (1, 1), 1, "reflect", torch.float32, "contiguous"),
    ((1, 2, 1, 1), 1, (1, 2), 3, "replicate", torch.float32, "contiguous"),
    ((2, 2, 9, 8), 2, (2, 1), 3, "circular", torch.bfloat16, "sliced"),
]

def laid_out(t, layout):
    if layout == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    return torch.cat([t, t], 3)[..., : t.shape[3]] if layout == "sliced" else t

def draw(shape, count, own, size, _, dtype, layout, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    (b, c, h, w), (frames, channels) = shape, own
    made = [
        torch.rand(shape, generator=generator),
        torch.rand(frames, count, channels, size, size, generator=generator) - 0.2,
        torch.rand(frames, count, h, w, generator=generator) + 0.1,
        torch.rand(shape, generator=generator),
    ]
    x, kernels, weights, upstream = (t.to(device, dtype) for t in made)
    return laid_out(x, layout), kernels, laid_out(weights, layout), upstream

def derivatives(x, kernels, weights, upstream, adjoint, padding_mode, second):
    leaves = [t.detach().requires_grad_() for t in (x, kernels, weights)]
    out = ops.product_conv2d(*leaves, adjoint=adjoint, padding_mode=padding_mode)
    first = torch.autograd.grad(out, leaves, upstream, create_graph=second)
    return [out, *first, *(torch.autograd.grad(sum(g.square().sum() for g in first), leaves) if second else ())]

def check(device):
    for n, sample in enumerate(CASES):
        padding_mode, dtype = sample[4:6]
        for adjoint in (False, True):
            tensors = draw(*sample, device=device)
            with tta_restore.backend("triton"):
                found = derivatives(*tensors, adjoint, padding_mode, second=n == 0)
                again = derivatives(*tensors, adjoint, padding_mode, second=n == 0) if device != "cpu" else found
            with tta_restore.backend("reference"):
                expected = derivatives(*(t.double() for t in tensors), adjoint, padding_mode, second=n == 0)
            for i, (got, same, want) in enumerate(zip(found, again, expected, strict=True)):
                assert torch.equal(got, same)
                assert_agrees(got, want, what=f"{sample} {adjoint} {i}", tolerance=TOLERANCES[dtype])

def check_parts():
    "More pixels than a program sums, and beyond the sizes of the kernels, the reference."
    launchers._SUMMED_PIXELS = 64
    for size in (3, 13):
        sample = (1, 2, 14, 15), 2, (1, 2), size, "zeros", torch.float32, "contiguous"
        tensors = draw(*sample)
        with tta_restore.backend("triton"):
            found = derivatives(*tensors, False, "zeros", False)
        with tta_restore.backend("reference"):
            expected = derivatives(*(t.double() for t in tensors), False, "zeros", False)
        for got, want in zip(found, expected, strict=True):
            assert_agrees(got, want)
"""
CALLS = """
check("cpu")
check_parts()
empty = [t.requires_grad_() for t in (torch.zeros(0, 2, 4, 5), torch.zeros(1, 3, 1, 3, 3), torch.zeros(1, 3, 4, 5))]
with tta_restore.backend("triton"):
    out = ops.product_conv2d(*empty)
    assert out.shape == (0, 2, 4, 5)
    assert not any(g.any() for g in torch.autograd.grad(out.sum(), empty))
    try:
        ops.product_conv2d(torch.zeros(1, 2, 4, 5), torch.zeros(1, 3, 1, 2, 2), torch.zeros(1, 3, 4, 5))
    except ValueError as error:
        print("K odd" in str(error))
"""


@pytest.mark.thorough
@interprets_loops
def test_results_under_the_interpreter():
    assert run_interpreted(PROGRAM + CALLS).strip() == "True"


@pytest.mark.gpu
def test_results_on_the_device():
    namespace = {}
    exec(PROGRAM, namespace)
    namespace["check"]("cuda")


def launch_all(shape, count, channels, size, dtype=torch.float32, architecture=90):
    b, c, h, w = shape
    g, weights = torch.empty(shape, dtype=dtype), torch.empty(1, count, h, w, dtype=dtype).expand(b, -1, -1, -1)
    padded = torch.empty(b, c, h + size - 1, w + size - 1, dtype=dtype)
    kernels = torch.empty(1, count, channels, size, size, dtype=dtype).expand(b, -1, c, -1, -1)
    with absent_device(architecture) as found:
        launchers.product_conv2d(padded, kernels, weights)
        launchers.product_conv2d_adjoint(g, kernels, weights)
        launchers.product_conv2d_grad_kernels(g, padded, weights)
        launchers.product_conv2d_grad_weights(g, padded, kernels)
    return found


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_launches_compile_without_spills(dtype, architecture):
    for count, channels, size in ((6, 1, 3), (16, 3, 5), (8, 3, 7)):
        found = launch_all((1, 3, 12, 20), count, channels, size, dtype, architecture)
        assert {name: len(forms) for name, forms in found.items()} == {
            "mix_kernel": 2, "grad_kernels_kernel": 1, "grad_weights_kernel": 1
        }  # fmt: skip
        assert not any(used.stack or used.local for forms in found.values() for used in forms)


@pytest.mark.parametrize("size", [9, 11])
def test_the_largest_sizes_compile_without_spills(size, monkeypatch):
    ran = []
    monkeypatch.setattr(reference, "product_conv2d_grad_kernels", lambda *tensors: ran.append(tensors))
    found = launch_all((1, 3, 12, 20), 6, 3, size)
    assert found.keys() == {"mix_kernel", "grad_weights_kernel"}
    assert len(ran) == 1
    assert not any(used.stack or used.local for forms in found.values() for used in forms)


def test_a_frame_of_one_pixel_and_many_frames_compile():
    assert len(launch_all((1, 1, 1, 1), 1, 1, 1)) == 3
    launch_all((30000, 3, 2, 2), 2, 3, 3)


def test_numbers_of_channels_and_kernels_share_one_compiled_form():
    """1, 16 and others: Triton makes forms of their own for such numbers unless told otherwise."""
    counts = [(c, count) for c in (4, 16, 20) for count in (16, 24, 40)]
    tensors = [(torch.empty(1, c, 6, 7), torch.empty(1, n, 1, 3, 3), torch.empty(1, n, 4, 5)) for c, n in counts]
    with absent_device() as found:
        for x, kernels, weights in tensors:
            kernels = kernels.expand(1, -1, x.shape[1], -1, -1)
            g = x[..., :4, :5]
            launchers.product_conv2d(x, kernels, weights)
            launchers.product_conv2d_grad_kernels(g, x, weights)
            launchers.product_conv2d_grad_weights(g, x, kernels)
    assert {name: len(forms) for name, forms in found.items()} == dict.fromkeys(found, 1)


def test_launches_enter_the_device_of_their_tensors(monkeypatch):
    entered = []
    original = torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: entered.append(tensor) or original(tensor))
    launch_all((1, 1, 4, 5), 1, 1, 3)
    assert len(entered) == 4


def test_a_frame_beyond_32_bit_offsets_is_refused():
    x, kernels = torch.empty(1, 1, 2**16, 2**15, device="meta"), torch.empty(1, 1, 1, 1, 1, device="meta")
    with pytest.raises(ValueError, match=r"fewer than 2\^31 pixels, got H, W = 65536, 32768"):
        launchers.product_conv2d(x, kernels, x)
