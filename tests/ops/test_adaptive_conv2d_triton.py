"""The Triton kernels of per-pixel convolution: results under the interpreter, and compiled code for absent GPUs."""

import pytest
import torch

pytest.importorskip("triton")
from triton_interpreter import interprets_loops, run_interpreted
from triton_launches import absent_device

from tta_restore.ops.adaptive_conv2d import triton as launchers

CASES = """
import torch, tta_restore
from _compare import TOLERANCES, assert_agrees
from tta_restore import ops

def conv(**options):
    return lambda x, kernels: ops.adaptive_conv2d(x, kernels, **options)

def upsample(**options):
    return lambda x, kernels: ops.adaptive_upsample(x, kernels, **options)

CASES = [  # function, frames, channels of the kernels, sides of the output, dtype, layout of the kernels
    (conv(kernel_size=3), (1, 2, 4, 37), 18, (4, 37), torch.float32, "contiguous"),
    (conv(kernel_size=5, groups=1, padding_mode="reflect"), (2, 11, 6, 7), 25, (6, 7), torch.float32, "channels_last"),
    (conv(kernel_size=3, groups=2, stride=2, dilation=2, padding_mode="circular"), (1, 4, 9, 8), 18, (5, 4),
     torch.float16, "sliced"),
    (conv(kernel_size=3, stride=3, padding_mode="zeros"), (1, 1, 7, 5), 9, (3, 2), torch.float32, "contiguous"),
    (conv(kernel_size=1), (2, 1, 1, 1), 1, (1, 1), torch.float32, "contiguous"),
    (upsample(kernel_size=3, scale=2), (1, 3, 5, 4), 9, (10, 8), torch.float32, "contiguous"),
    (upsample(kernel_size=3, scale=3, groups=None, padding_mode="replicate", normalize="sum"), (1, 2, 3, 4), 18,
     (9, 12), torch.float32, "channels_last"),
]

def draw(shape, channels, sides, dtype, layout, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    b, c = shape[:2]
    x = torch.rand(shape, generator=generator).to(device, dtype)
    kernels = (torch.rand(b, channels, *sides, generator=generator) + 0.1).to(device, dtype)
    if layout == "channels_last":
        kernels = kernels.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        kernels = torch.cat([kernels, kernels], 3)[..., : sides[1]]
    upstream = torch.rand(b, c, *sides, generator=generator).to(device, dtype)
    return x, kernels, upstream

def derivatives(function, x, kernels, upstream):
    x, kernels = x.detach().requires_grad_(), kernels.detach().requires_grad_()
    out = function(x, kernels)
    first = torch.autograd.grad(out, (x, kernels), upstream, create_graph=True)
    if out.shape[-1] > 20:  # once: second derivatives run the same kernels, slowly here
        return out, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), (x, kernels))
    return out, *first

def check(device):
    for function, *sample in CASES:
        dtype = sample[3]
        tensors = draw(*sample, device=device)
        with tta_restore.backend("triton"):
            found = derivatives(function, *tensors)
            again = derivatives(function, *tensors) if device != "cpu" else found
        with tta_restore.backend("reference"):
            expected = derivatives(function, *(t.double() for t in tensors))
        for got, same, want in zip(found[:3], again, expected, strict=False):
            assert torch.equal(got, same)
            assert_agrees(got, want, tolerance=TOLERANCES[dtype])
        for got, want in zip(found[3:], expected[3:], strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
"""
namespace = {}
exec(CASES, namespace)


@pytest.mark.thorough
@interprets_loops
def test_results_under_the_interpreter():
    assert run_interpreted(CASES + "check('cpu')\nprint('agrees')").strip() == "agrees"


@pytest.mark.gpu
def test_results_on_the_device():
    namespace["check"]("cuda")


def launch_all(x, kernels, sides, *options, architecture=90):
    b, c, h, w = x.shape
    g = x.new_empty(b, c, *sides)
    with absent_device(architecture) as found:
        launchers.adaptive_conv2d(x, kernels, *options)
        launchers.adaptive_conv2d_grad_x(g, kernels, *options, h, w)
        launchers.adaptive_conv2d_grad_kernels(g, x, *options)
    return found


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_launches_compile_without_spills(dtype, architecture):
    for size, groups in ((3, 64), (5, 1), (11, 32)):
        x, kernels = torch.empty(1, 64, 12, 20, dtype=dtype), torch.empty(1, groups * size**2, 12, 20, dtype=dtype)
        found = launch_all(x, kernels, (12, 20), size, groups, 1, 1, 1, 2, architecture=architecture)
        assert len(found) == 3
        assert not any(used.stack or used.local for forms in found.values() for used in forms)


def test_a_frame_of_one_pixel_and_many_frames_compile():
    x, kernels = torch.empty(1, 1, 1, 1), torch.empty(1, 1, 1, 1)
    assert len(launch_all(x, kernels, (1, 1), 1, 1, 1, 1, 1, 0)) == 3
    x, kernels = torch.empty(30000, 3, 2, 2), torch.empty(30000, 27, 2, 2)
    assert len(launch_all(x, kernels, (2, 2), 3, 3, 1, 1, 1, 2)) == 3


def test_launches_enter_the_device_of_their_tensors(monkeypatch):
    entered = []
    original = torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: entered.append(tensor) or original(tensor))
    launch_all(torch.empty(1, 1, 4, 5), torch.empty(1, 9, 4, 5), (4, 5), 3, 1, 1, 1, 1, 2)
    assert len(entered) == 3


def test_a_frame_beyond_32_bit_offsets_is_refused():
    x, kernels = torch.empty(1, 1, 2**16, 2**15, device="meta"), torch.empty(1, 1, 2**16, 2**15, device="meta")
    with pytest.raises(ValueError, match=r"fewer than 2\^31 pixels, got H, W = 65536, 32768"):
        launchers.adaptive_conv2d(x, kernels, 1, 1, 1, 1, 1, 2)
