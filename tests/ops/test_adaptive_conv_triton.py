"""The Triton kernels: results in the interpreter and on a GPU, spills when compiled for GPUs that are not there."""

import os
from dataclasses import dataclass, field, replace

import pytest
import torch
from _base import random
from _compare import TOLERANCES, assert_agrees

import tta_restore
from tta_restore import ops

triton = pytest.importorskip("triton")
from triton_aot import assert_compiles_without_spills  # noqa: E402
from triton_interpreter import interprets_loops, run_interpreted  # noqa: E402
from triton_launches import absent_device  # noqa: E402

from tta_restore.ops.adaptive_conv import triton as launchers  # noqa: E402
from tta_restore.ops.adaptive_conv import triton_kernels as kernels  # noqa: E402


@dataclass(frozen=True)
class Case:
    op: str
    shape: tuple[int, int, int, int]
    steps: int
    taps: int
    features: int = 0
    options: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


# Small: the interpreter takes seconds. More than one block of pixels, borders that meet, groups of channels and depth.
SMALL = [
    Case("sac", (1, 2, 5, 7), 1, 3),
    Case("iac", (2, 2, 3, 5), 2, 3),
    Case("iac", (1, 1, 2, 3), 2, 5, options={"horizontal": "vertical", "activate_last": False}),
    Case("iac", (1, 1, 1, 1), 1, 7, options={"negative_slope": 0.0}),
    Case("iac", (1, 2, 3, 5), 2, 3, dtype=torch.bfloat16),
    # H * W divides by 8: all steps in one launch
    Case("iac", (2, 2, 5, 8), 3, 3),
    Case("iac", (1, 1, 12, 6), 3, 3, options={"horizontal": "vertical", "activate_last": False}),
    Case("iac", (1, 2, 2, 72), 2, 3, options={"activate_last": False}, dtype=torch.bfloat16),
    Case("iac", (1, 1, 8, 1), 3, 3, options={"horizontal": "vertical"}),
    Case("iac", (1, 2, 1, 24), 2, 1, dtype=torch.float16),
    Case("sac", (1, 2, 12, 12), 1, 3),
    Case("iac_from_features", (2, 2, 3, 5), 2, 3, 5),
    Case("iac_from_features", (1, 1, 4, 6), 2, 3, 3, {"horizontal": "vertical", "activate_last": False}),
    Case("iac_from_features", (1, 2, 4, 12), 2, 3, 20, dtype=torch.float16),
    Case("iac_from_features", (1, 3, 1, 1), 1, 1, 2, dtype=torch.float16),
]
LARGE = [
    Case("sac", (2, 16, 70, 105), 1, 3),
    *(
        Case(op, shape, steps, taps, features, options, dtype)
        for op, features in (("iac", 0), ("iac_from_features", 96))
        for shape, steps, taps, options in (
            ((1, 128, 70, 105), 17, 3, {}),
            ((1, 128, 72, 105), 17, 3, {}),  # one launch on devices of up to 170 multiprocessors
            ((2, 64, 24, 61), 4, 3, {"horizontal": "vertical", "activate_last": False}),
            ((2, 40, 33, 61), 4, 5, {"horizontal": "vertical"}),
            ((1, 3, 128, 128), 5, 7, {"activate_last": False}),
            ((3, 5, 2, 1), 2, 9, {}),
        )
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ),
]


def tensors(case, device):
    """Filters around the identity: neither cancelling nor dying out."""
    generator = torch.Generator().manual_seed(0)
    b, c, h, w = case.shape

    def near_identity(tensor, axis):
        count = case.steps * 2 * c
        taps = tensor.narrow(axis, 0, count * case.taps).unflatten(axis, (count, case.taps))
        taps.select(axis + 1, case.taps // 2).add_(1)
        return tensor

    def rand(*shape):
        return random(*shape, generator=generator, low=-0.3, high=0.3)

    x, rows = rand(b, c, h, w) + 0.7, case.steps * c * (2 * case.taps + (case.op != "sac"))
    if case.features:
        made = (
            x, rand(b, case.features, h, w), rand(rows, case.features) / case.features, near_identity(rand(rows), 0)
        )  # fmt: skip
    else:
        filters = near_identity(rand(b, rows, h, w), 1)
        made = (x, *filters.chunk(2, 1)) if case.op == "sac" else (x, filters)
    return [tensor.to(device, case.dtype) for tensor in made]


def derivatives(case, made, wanted=None):
    options = {} if case.op == "sac" else {"num_steps": case.steps, "kernel_size": case.taps, **case.options}
    leaves = [t.detach().clone().requires_grad_(wanted is None or i in wanted) for i, t in enumerate(made)]
    out = getattr(ops, case.op)(*leaves, **options)
    weights = torch.linspace(0.1, 1, out.numel(), dtype=torch.float64, device=out.device).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, [leaf for leaf in leaves if leaf.requires_grad], weights)]


def check(case, device="cpu"):
    """Forward and backward equal the reference in float64; each gradient alone is the same; twice is the same bits."""
    made = tensors(case, device)
    with tta_restore.backend("triton"):
        found = derivatives(case, made)
        again = derivatives(case, made) if device != "cpu" else found  # the interpreter knows no other order
        alone = derivatives(case, made, wanted=(0,))
        empty = derivatives(case, [t[:0] if t.ndim == 4 else t for t in made])
    with tta_restore.backend("reference"):
        expected = derivatives(case, [t.double() for t in made])
    tolerance = TOLERANCES[case.dtype]
    if made[0].numel() < 64:  # of a few values the mean error is no smaller than the largest
        tolerance = replace(tolerance, norm=tolerance.element, bias=tolerance.element)
    for i, (got, want) in enumerate(zip(found, expected, strict=True)):
        assert got.dtype == case.dtype
        assert_agrees(got, want, what=f"{case} {i}", tolerance=tolerance)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert_agrees(alone[1], expected[1], what=f"{case} alone", tolerance=tolerance)
    assert empty[0].shape == (0, *found[0].shape[1:])
    assert not any(gradient.any() for gradient in empty[1:])


def check_states(b, c, h, w):
    """The backward pass is the same whether the forward one saved its states, as for large frames, or not."""
    case = Case("iac", (b, c, h, w), 3, 3)
    x, filters = tensors(case, "cpu")
    options = 3, 3, 0.1, True, True
    out, states = launchers.iac(x, filters, *options, True)
    _, none = launchers.iac(x, filters, *options, False)
    assert states.shape == (b, 2, c, h, w)
    assert none.numel() == 0
    saved, again = (launchers.iac_backward(torch.ones_like(out), x, filters, s, *options, True) for s in (states, none))
    assert all(torch.equal(a, b) for a, b in zip(saved, again, strict=True))
    if c == 1:
        return
    # Of channels_last filters, states and gradients have adjacent channels.
    last = filters.contiguous(memory_format=torch.channels_last)
    _, moved = launchers.iac(x, last, *options, True)
    assert torch.equal(moved, states)
    assert moved.stride(2) == 1
    found = launchers.iac_backward(torch.ones_like(out), x, last, moved, *options, True)
    assert found[1].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(found, saved, strict=True))


def check_second_order_of_one_step():
    """The second derivative of iac_from_features calls iac_backward without states, of which one step has none."""
    x, filters = tensors(Case("iac", (1, 2, 5, 7), 1, 3), "cpu")
    options = 1, 3, 0.1, True, True
    found = launchers.iac_backward(x, x, filters, x.new_empty(0), *options, True)
    with tta_restore.backend("reference"):
        expected = torch.ops.tta_restore.iac_backward(x, x, filters, x.new_empty(0), *options, True)
    for got, want in zip(found, expected, strict=True):
        assert_agrees(got, want.double())


INTERPRETED = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import torch
torch.set_num_threads(1)
import test_adaptive_conv_triton as tests
tests.launchers.STEP["BLOCK"], tests.launchers.CHANNEL["BLOCK"], tests.launchers.CHANNEL_BACKWARD["BLOCK"] = 32, 64, 64
for case in tests.SMALL:
    tests.check(case)
    print(case)
tests.check_states(1, 2, 3, 5)
tests.check_states(2, 1, 4, 6)
tests.check_second_order_of_one_step()
"""


@pytest.mark.thorough
@interprets_loops
def test_interpreted_kernels_equal_the_reference():
    assert run_interpreted(INTERPRETED).count("Case") == len(SMALL)


@pytest.mark.gpu
@pytest.mark.parametrize("case", LARGE, ids=lambda c: f"{c.op}-{'x'.join(map(str, c.shape))}-{c.taps}-{c.dtype}")
def test_kernels_equal_the_reference(case):
    check(case, "cuda")


@pytest.mark.gpu
def test_predicted_filters_exist_for_one_step_on_the_device():
    """Forward needs one step's filters and a few planes; backward the states of all steps and these with a gradient."""
    case = Case("iac_from_features", (1, 128, 140, 210), 17, 3, 128, dtype=torch.bfloat16)
    x, *predictor = (t.requires_grad_() for t in tensors(case, "cuda"))
    filters = 17 * 128 * 7 * 140 * 210 * 2

    def peak(call):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, result

    forward, out = peak(lambda: ops.iac_from_features(x, *predictor, num_steps=17))
    assert forward < filters / 5
    backward, _ = peak(lambda: out.sum().backward())
    assert backward < 0.7 * filters


@pytest.mark.gpu
def test_offsets_beyond_32_bits_on_the_device():
    """The last frame of filters that have more than 2^31 values."""
    frames, n, c, h, w = 3, 17, 128, 210, 280
    filters = torch.zeros(frames, n * c * 7, h, w, dtype=torch.bfloat16, device="cuda")
    assert filters.numel() > 2**31
    filters[-1].uniform_(-0.5, 0.5, generator=torch.Generator("cuda").manual_seed(0))
    x = torch.rand(frames, c, h, w, device="cuda", generator=torch.Generator("cuda").manual_seed(1)).bfloat16()

    def call(x, filters):
        leaf = x.detach().clone().requires_grad_()
        out = ops.iac(leaf, filters, num_steps=n)
        return out[-1:], torch.autograd.grad(out, leaf, torch.ones_like(out))[0][-1:]

    for got, want in zip(call(x, filters), call(x[-1:], filters[-1:].clone()), strict=True):
        assert want.any()
        assert torch.equal(got, want)


@pytest.mark.gpu
def test_second_order_on_the_device():
    case = Case("iac", (1, 4, 9, 11), 3, 3)
    made = tensors(case, "cuda")

    def second(tensors):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        total = ops.iac(*leaves, num_steps=3).square().sum()
        first = torch.autograd.grad(total, leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for got, want in zip(second(made), second([t.double().cpu() for t in made]), strict=True):
        assert_agrees(got, want)


KERNELS = {
    "step": kernels.step_kernel,
    "rows_backward": kernels.rows_backward_kernel,
    "columns_backward": kernels.columns_backward_kernel,
}
STORED = {"p_vertical", "p_horizontal", "p_bias"}
STORED |= {"p_grad_vertical", "p_grad_horizontal", "p_grad_bias"}


def compile_everywhere(kernel, dtype, taps, **changes):
    """With strides and sizes of which nothing is known to divide by 16, which takes most registers."""
    kernel, constants = KERNELS[kernel], {"KS": taps, **changes}
    signature = {}
    for name in kernel.arg_names:
        if name.startswith("p_"):
            signature[name] = f"*{dtype}" if name in STORED else "*fp32"
        elif name.endswith("slope"):
            signature[name] = "fp32"
        elif not name.isupper() or name in "CHW":
            signature[name] = "i64" if name.endswith("_frame") else "i32"
    settings = dict(launchers.STEP)
    options = {"num_warps": settings.pop("num_warps")}
    flags = {"TAPS": True, "OWN": True, "BIAS": True, **settings, **constants}
    constants = {name: flags[name] for name in kernel.arg_names if name in flags}
    return assert_compiles_without_spills(kernel, signature, constants, **options)


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_no_spills(kernel):
    """On A100, H100 and H200, B200, in the dtype and size that matter most."""
    found = compile_everywhere(kernel, "bf16", 3)
    assert all(0 < resources.registers <= 255 for resources in found.values())


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_sizes_of_one_compile(kernel):
    """Triton makes constants of arguments that are 1."""
    compile_everywhere(kernel, "fp32", 1, C=1, H=1, W=1)


@pytest.mark.slow
@pytest.mark.parametrize("taps", [3, 5, 7])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("kernel", "changes"),
    [
        ("step", {}),
        ("step", {"BIAS": False}),
        ("rows_backward", {}),
        ("columns_backward", {}),
        ("columns_backward", {"OWN": False}),
        ("columns_backward", {"TAPS": False}),
    ],
    ids=str,
)
def test_no_spills_in_any_form(kernel, dtype, taps, changes):
    compile_everywhere(kernel, dtype, taps, **changes)


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_steps_in_one_launch_compile_without_spills(dtype, taps, architecture):
    """In the size that matters most; with states and without, with one step of given taps."""
    x, filters = torch.empty(1, 128, 140, 210, dtype=dtype), torch.empty(1, 1, 1, 1, dtype=dtype)
    filters, states = filters.expand(1, 2 * 128 * (2 * taps + 1), 140, 210), torch.empty(1, 1, 128, 140, 210)
    with absent_device(architecture) as found:
        steps = launchers._Steps(x, (filters, filters, filters), taps, True, [0.1, 1.0])
        steps.forward(x, x, states)
        steps.forward(x, x)
        one = launchers._Steps(x, (filters, filters, None), taps, True, [1.0])
        one.forward(x, x)
        if taps == 3:
            steps.backward(x, x, states, states[0], x, (filters, filters, filters))
            steps.backward(x, x, states, None, x, None)
            steps.own = False
            steps.backward(x, x, states, states[0], x, (filters, filters, filters))
    forms = {"channel_kernel": 3} | ({"channel_backward_kernel": 3} if taps == 3 else {})
    assert {name: len(used) for name, used in found.items()} == forms
    assert not any(used.stack or used.local for forms in found.values() for used in forms)


@pytest.mark.parametrize(
    ("width", "kernels"), [(20, ("channel", "channel_backward")), (21, ("step", "rows_backward", "columns_backward"))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_launches_compile_without_spills(dtype, width, kernels, generator):
    """As a call hands them over, on H100 and H200; all steps are one launch where H * W divides by 8."""
    steps, channels, features = 2, 32, 48

    def rand(*planes):
        return random(*planes, generator=generator).to(dtype)

    x, grad, filters = (rand(2, c, 12, width) for c in (channels, channels, steps * 7 * channels))
    states = rand(2, steps - 1, channels, 12, width).float()
    predictor = rand(2, features, 12, width), rand(steps * 7 * channels, features), rand(steps * 7 * channels)
    taps = rand(2, 3 * channels, 12, width), rand(2, 3 * channels, 12, width)
    with absent_device() as found:
        launchers.sac(x, *taps)
        launchers.sac_backward(grad, x, *taps, True)
        for activate_last, own in ((True, True), (False, False)):
            options = (steps, 3, 0.1, activate_last, own)
            launchers.iac(x, filters, *options, True)
            launchers.iac_backward(grad, x, filters, states, *options, True)
            launchers.iac_backward(grad, x, filters, states, *options, False)
            launchers.iac_from_features(x, *predictor, *options)
            launchers.iac_from_features_backward(grad, x, *predictor, *options, True, True)
    assert found.keys() <= {f"{name}_kernel" for name in kernels}
    assert not any(used.stack or used.local for forms in found.values() for used in forms)


def test_steps_sizes_and_channels_share_one_compiled_form():
    """1, 16 and others: Triton makes forms of their own for such numbers unless told otherwise."""
    with absent_device() as found:
        for steps, (h, w) in ((2, (8, 3)), (16, (16, 9)), (17, (40, 3))):
            x, filters = (torch.empty(2, c, h, w, dtype=torch.float16) for c in (3, steps * 21))
            launchers.iac(x, filters, steps, 3, 0.1, True, True, False)
            launchers.iac_backward(x, x, filters, torch.empty(2, steps - 1, 3, h, w), steps, 3, 0.1, False, True, True)
    assert {name: len(forms) for name, forms in found.items()} == {"channel_kernel": 1, "channel_backward_kernel": 1}


def test_channels_must_fill_the_device(monkeypatch):
    class Properties:
        multi_processor_count = 132

    class Frame:
        is_cuda, device = True, None

        def __init__(self, *shape):
            self.shape = shape

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    fills = [launchers._fills_device(Frame(b, c, 1, 1)) for b, c in ((1, 128), (1, 64), (1, 140), (2, 128), (9, 140))]
    assert fills == [True, False, False, True, True]


def test_a_frame_beyond_32_bit_offsets_is_refused():
    frame = torch.empty(1, 1, 2**16, 2**15, device="meta")
    with pytest.raises(ValueError, match=r"fewer than 2\^31 pixels in x \(B, C, H, W\), got H, W = 65536, 32768"):
        launchers.sac(frame, frame.expand(1, 3, -1, -1), frame.expand(1, 3, -1, -1))
