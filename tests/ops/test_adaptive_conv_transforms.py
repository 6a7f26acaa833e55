"""Adaptive convolutions under torch.func, vmap, export; any shape, threads, instruction set; bounded memory."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from _base import needs_extension, random
from _compare import TOLERANCES, assert_agrees, assert_same_bits_for_threads
from _fresh import run_program
from hypothesis import given, settings
from hypothesis import strategies as st

import tta_restore
from tta_restore import ops


def draw(b, c, h, w, n, k, d, *, seed, dtype=torch.float64):
    """Tensors of all three functions: x, features, weight, bias, filters."""
    generator = torch.Generator().manual_seed(seed)
    rows = n * c * (2 * k + 1)
    # Filters around the identity: values that neither cancel nor die out, which no relative tolerance would allow for.
    shapes, lows = [(b, c, h, w), (b, d, h, w), (rows, d), (rows,), (b, rows, h, w)], [-0.3, 0, -0.3, -0.3, -0.3]
    x, features, weight, bias, filters = (
        random(*shape, generator=generator, low=low, high=max(-low, 0.3))
        for shape, low in zip(shapes, lows, strict=True)
    )
    taps = n * 2 * c
    bias[: taps * k].view(taps, k)[:, k // 2] += 1
    filters[:, : taps * k].unflatten(1, (taps, k))[:, :, k // 2] += 1
    return [tensor.to(dtype) for tensor in (x + 0.7, features, weight / d, bias, filters)]


def derivatives(function, *tensors):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]  # a clone would lose the layout
    out = function(*leaves)
    # Every dtype has multiples of 1/128 up to 1, so that both sides of a comparison get the same upstream gradient.
    weights = torch.linspace(0.1, 1, out.numel(), dtype=torch.float64).mul(128).round().div(128)
    weights = weights.view(out.shape).to(out.dtype)
    return out, *torch.autograd.grad(out, leaves, weights)


@pytest.mark.thorough
@settings(max_examples=100)
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 4), st.integers(1, 12), st.integers(1, 40)),
    steps=st.integers(1, 4),
    taps=st.sampled_from([1, 3, 5, 7, 9]),
    features=st.integers(1, 20),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    horizontal=st.sampled_from(["own", "vertical"]),
    activate_last=st.booleans(),
    layout=st.sampled_from(["contiguous", "channels_last", "cut", "expanded"]),
    seed=st.integers(0, 99),
)
def test_any_shape_layout_and_dtype(shape, steps, taps, features, dtype, horizontal, activate_last, layout, seed):
    x, h, weight, bias, filters = draw(*shape, steps, taps, features, seed=seed, dtype=dtype)
    if layout == "channels_last":
        x, h, filters = (t.contiguous(memory_format=torch.channels_last) for t in (x, h, filters))
    elif layout == "cut":
        x, filters = (torch.nn.functional.pad(t, (1, 2, 2, 1))[:, :, 2:-1, 1:-2] for t in (x, filters))
        weight = torch.nn.functional.pad(weight, (0, 1))[:, :-1]
    elif layout == "expanded":
        x, h = x[:, :1].expand(shape), h[:, :, :1].expand(-1, -1, shape[2], -1)
    options = {"num_steps": steps, "kernel_size": taps, "horizontal": horizontal, "activate_last": activate_last}
    # Of a few values, or of one, the mean error is no smaller than the largest.
    tolerance = TOLERANCES[dtype]
    tolerance = replace(tolerance, norm=tolerance.element, bias=tolerance.element)
    for function, tensors in ((ops.iac, (x, filters)), (ops.iac_from_features, (x, h, weight, bias))):
        found = derivatives(lambda *t, f=function: f(*t, **options), *tensors)
        with tta_restore.backend("reference"):
            expected = derivatives(lambda *t, f=function: f(*t, **options), *(t.double() for t in tensors))
        for got, want in zip(found, expected, strict=True):
            assert got.dtype == dtype
            assert_agrees(got, want, what=function.__name__, tolerance=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("taps", [3, 5, 7])
def test_frames_around_the_width_of_vectors(taps, dtype):
    """The forward sweep keeps whole vectors from one pixel to the next: rows that just fill some, or just do not."""
    summed_in = torch.promote_types(dtype, torch.float32)
    for height, width in [*((3, width) for width in range(5, 67)), (1, 48), (2, 97), (5, 105), (95, 97)]:
        x, *_, filters = draw(1, 2, height, width, 2, taps, 1, seed=width, dtype=dtype)
        options = {"num_steps": 2, "kernel_size": taps}
        found = ops.iac(x, filters, **options)
        with tta_restore.backend("reference"):
            expected = ops.iac(x.double(), filters.double(), **options)
        rounding = 4 * torch.finfo(summed_in).eps * expected.abs().max() + torch.finfo(dtype).eps * expected.abs()
        assert ((found - expected).abs() <= rounding).all(), (height, width)


@pytest.mark.parametrize("horizontal", ["own", "vertical"])
@pytest.mark.parametrize("activate_last", [True, False])
@pytest.mark.parametrize("taps", [1, 3, 5])
def test_second_order_kernel_equals_its_definition(horizontal, activate_last, taps):
    x, h, weight, bias, filters = draw(2, 3, 9, 70, 3, taps, 4, seed=taps)
    options = {"num_steps": 3, "kernel_size": taps, "horizontal": horizontal, "activate_last": activate_last}

    def second(function, *tensors):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        total = function(*leaves, **options).square().sum()
        first = torch.autograd.grad(total, leaves, create_graph=True)
        weights = [torch.linspace(-1, 1, g.numel(), dtype=g.dtype).view(g.shape) for g in first]
        return torch.autograd.grad(first, leaves, weights)

    for function, tensors in ((ops.iac, (x, filters)), (ops.iac_from_features, (x, h, weight, bias))):
        found = second(function, *tensors)
        with tta_restore.backend("reference"):
            expected = second(function, *tensors)
        for got, want in zip(found, expected, strict=True):
            assert_agrees(got, want, what=function.__name__)


def test_second_order_in_half_precision():
    """Half types pass through float32 and come back as half types."""
    x, *_, filters = draw(1, 2, 5, 6, 2, 3, 1, seed=0, dtype=torch.bfloat16)

    def penalty(x, filters):
        leaf = x.detach().clone().requires_grad_()
        weights = filters.detach().clone().requires_grad_()
        (first,) = torch.autograd.grad(ops.iac(leaf, weights, num_steps=2).sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), weights)[0]

    found = penalty(x, filters)
    assert found.dtype == torch.bfloat16
    assert_agrees(found, penalty(x.double(), filters.double()), tolerance=TOLERANCES[torch.bfloat16])


def call_iac(x, filters):
    return ops.iac(x, filters, num_steps=2)


def call_features(x, features, weight, bias):
    return ops.iac_from_features(x, features, weight, bias, num_steps=2)


def call_sac(x, filters):
    return ops.sac(x, filters[:, :6], filters[:, 6:12])


def argument_sets(count, seed=0):
    """`count` independent sets of (x, features, weight, bias, filters), stacked."""
    sets = [draw(2, 2, 4, 5, 2, 3, 3, seed=seed + i) for i in range(count)]
    return [torch.stack(tensors) for tensors in zip(*sets, strict=True)]


@pytest.mark.parametrize(
    ("function", "picked", "in_dims"),
    [
        (call_iac, (0, 4), (0, 0)),
        (call_iac, (0, 4), (0, None)),
        (call_iac, (0, 4), (None, 0)),
        (call_sac, (0, 4), (0, 0)),
        (call_features, (0, 1, 2, 3), (0, 0, 0, 0)),
        (call_features, (0, 1, 2, 3), (0, 0, None, None)),
        (call_features, (0, 1, 2, 3), (None, None, 0, None)),
    ],
)
def test_vmap(function, picked, in_dims):
    """Results, gradients and gradients of gradients of stacked calls equal those of a loop."""
    stacked = argument_sets(3)
    tensors = [stacked[i] if dim == 0 else stacked[i][0] for i, dim in zip(picked, in_dims, strict=True)]

    def loop(f):
        rows = [f(*(t[i] if dim == 0 else t for t, dim in zip(tensors, in_dims, strict=True))) for i in range(3)]
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    every = tuple(range(len(tensors)))
    first = torch.func.grad(lambda *t: function(*t).square().sum(), argnums=every)

    def penalty(*t):
        return sum(g.square().sum() for g in first(*t))

    for f in (lambda *t: (function(*t),), first, torch.func.grad(penalty, argnums=every)):
        found = torch.func.vmap(f, in_dims)(*tensors)
        for got, want in zip(found, loop(f), strict=True):
            assert_agrees(got, want)


def test_vmap_over_another_axis():
    x, *_, filters = argument_sets(3)
    found = torch.func.vmap(call_iac, in_dims=(2, 1), out_dims=3)(x.movedim(0, 2), filters.movedim(0, 1))
    expected = torch.stack([call_iac(x[i], filters[i]) for i in range(3)], 3)
    assert_agrees(found, expected)


@pytest.mark.parametrize(
    ("function", "picked"), [(call_iac, (0, 4)), (call_sac, (0, 4)), (call_features, (0, 1, 2, 3))]
)
def test_func_grad_twice(function, picked):
    tensors = [argument_sets(1)[i][0] for i in picked]
    every = tuple(range(len(tensors)))

    def penalty(*t):
        first = torch.func.grad(lambda *s: function(*s).square().sum(), argnums=every)(*t)
        return sum(g.square().sum() for g in first)

    found = torch.func.grad(penalty, argnums=every)(*tensors)
    leaves = [t.clone().requires_grad_() for t in tensors]
    first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
    expected = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    for got, want in zip(found, expected, strict=True):
        assert_agrees(got, want)


@pytest.mark.parametrize(
    ("function", "picked"), [(call_iac, (0, 4)), (call_sac, (0, 4)), (call_features, (0, 1, 2, 3))]
)
def test_export(function, picked):
    """The op stays one node, and the exported program serves other frame sizes."""

    class Wrapper(torch.nn.Module):
        def forward(self, *tensors):
            return function(*tensors)

    tensors = tuple(argument_sets(1)[i][0] for i in picked)
    height, width = torch.export.Dim("height", min=2, max=64), torch.export.Dim("width", min=2, max=64)
    shapes = {"tensors": tuple({2: height, 3: width} if t.ndim == 4 else {} for t in tensors)}
    program = torch.export.export(Wrapper(), tensors, dynamic_shapes=shapes)
    ours = [node for node in program.graph.nodes if "tta_restore" in str(node.target)]
    assert len(ours) == 1
    larger = tuple(torch.nn.functional.pad(t, (0, 2, 0, 3), value=0.5) if t.ndim == 4 else t for t in tensors)
    assert_agrees(program.module()(*larger), function(*larger))


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "steps", "taps"),
    [
        ((2, 37, 9, 23), 3, 3),
        ((1, 32, 1, 5), 2, 3),
        ((1, 64, 33, 1), 2, 3),
        ((1, 3, 7, 5), 2, 3),
        ((1, 40, 6, 9), 2, 5),
        ((1, 19, 5, 11), 3, 7),
        ((1, 130, 3, 4), 2, 3),
        ((1, 40, 6, 9), 2, 9),
        ((1, 8, 3, 1), 2, 7),
        ((1, 8, 3, 2), 2, 7),
    ],
)
@pytest.mark.parametrize("horizontal", ["own", "vertical"])
def test_channels_last_filters_give_the_same_result(shape, steps, taps, dtype, horizontal, generator):
    """Enough channels for the kernel that reads them in place (3, 5, 7 taps), and too few; also slices of channels."""
    b, c, h, w = shape
    x = random(b, c, h, w, generator=generator).to(dtype)
    filters = (random(b, steps * c * (2 * taps + 1), h, w, generator=generator) - 0.3).to(dtype)
    options = {"num_steps": steps, "kernel_size": taps, "horizontal": horizontal}
    with tta_restore.backend("cpu"):
        expected = ops.iac(x, filters, **options)
        for made in (filters, torch.cat([filters[:, :5], filters, filters[:, :3]], 1)):
            last = made.contiguous(memory_format=torch.channels_last)
            if made is not filters:
                last = last[:, 5:-3]
            found = ops.iac(x.contiguous(memory_format=torch.channels_last), last, **options)
            assert found.is_contiguous()
            assert_agrees(found, expected, tolerance=TOLERANCES[dtype])
            states = torch.ops.tta_restore_cpu.iac(x, last, steps, taps, 0.1, True, horizontal == "own", True)[1]
            same = torch.ops.tta_restore_cpu.iac(x, filters, steps, taps, 0.1, True, horizontal == "own", True)[1]
            assert states.shape == same.shape
            torch.testing.assert_close(states, same, rtol=1e-5, atol=1e-5)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("taps", [3, 5, 9])
def test_sac_reads_taps_in_any_layout(taps, dtype, generator):
    x = random(2, 21, 6, 9, generator=generator).to(dtype)
    both = (random(2, 2 * 21 * taps, 8, 12, generator=generator) - 0.3).to(dtype)
    last = both.contiguous(memory_format=torch.channels_last)
    cropped = (
        both[:, :, 1:-1, 2:-1],
        last[:, :, 1:-1, 2:-1],
        last[:, :, :6, :9].contiguous(memory_format=torch.channels_last),
    )
    with tta_restore.backend("cpu"):
        for made in cropped:
            expected = derivatives(ops.sac, x, *(t.contiguous() for t in made.chunk(2, 1)))
            for found in (
                derivatives(ops.sac, x, *made.chunk(2, 1)),
                derivatives(ops.sac, x, made[:, : 21 * taps], made[:, 21 * taps :].contiguous()),
            ):
                for got, want in zip(found, expected, strict=True):
                    assert_agrees(got, want, tolerance=TOLERANCES[dtype])


@needs_extension
@pytest.mark.parametrize("channels", [8, 33, 130])
def test_channels_last_results_do_not_depend_on_threads(channels, generator):
    x = random(1, channels, 5, 9, generator=generator).float()
    last = random(1, 2 * channels * 7, 5, 9, generator=generator).float().contiguous(memory_format=torch.channels_last)
    assert_same_bits_for_threads(lambda: [ops.iac(x, last, num_steps=2)], (1, 2, 5))


@needs_extension
def test_same_bits_for_any_number_of_threads():
    x, features, weight, bias, filters = draw(1, 6, 40, 70, 3, 3, 8, seed=0, dtype=torch.float32)

    def results():
        with torch.no_grad():
            predicted = ops.iac_from_features(x, features, weight, bias, num_steps=3)
        return [*derivatives(lambda *t: ops.iac(*t, num_steps=3), x, filters), predicted]

    assert_same_bits_for_threads(results, (1, 2, 4))


INSTRUCTION_SETS = """
import json, sys, torch, tta_restore
sys.path.insert(0, sys.argv[1])
from test_adaptive_conv_transforms import derivatives, draw
from tta_restore import ops
from tta_restore._core import extension as _extension
result = {"level": _extension.instruction_set()}
with tta_restore.backend("cpu"):
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for taps in (3, 5):
            x, h, weight, bias, filters = draw(1, 5, 9, 70, 2, taps, 7, seed=taps, dtype=dtype)
            options = {"num_steps": 2, "kernel_size": taps}
            found = derivatives(lambda *t: ops.iac(*t, **options), x, filters)
            found += derivatives(lambda *t: ops.iac_from_features(*t, **options), x, h, weight, bias)
            result[f"{dtype} {taps}"] = [f.double().norm().item() for f in found]
print(json.dumps(result))
"""


@functools.cache
def norms_at(level):
    """Return results of the kernels of one instruction set, computed in a new process; "" takes the best set."""
    here = os.path.dirname(__file__)
    run = run_program(INSTRUCTION_SETS, here, TTA_RESTORE_ISA=level)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@needs_extension
@pytest.mark.parametrize("level", ["v2", "v3"])
def test_every_instruction_set_computes_the_same(level):
    """The kernels of older processors, on this one."""
    best, older = dict(norms_at("")), dict(norms_at(level))
    assert older.pop("level") <= f"x86-64-{level}"
    best.pop("level")
    for name, values in best.items():
        assert older[name] == pytest.approx(values, rel=1e-5 if "float64" not in name else 1e-13)


MEMORY = """
import torch, sys
from tta_restore import ops

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

def rise(function):
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    function()
    return peak() - before

torch.set_num_threads(1)
n, c, d, size = 17, 64, 64, 64
rows = n * c * 7
x, features = torch.rand(1, c, size, size, requires_grad=True), torch.rand(1, d, size, size, requires_grad=True)
weight, bias = (torch.rand(rows, d) / d).requires_grad_(), torch.zeros(rows, requires_grad=True)
small = [t[..., :4, :4] if t.ndim == 4 else t for t in (x, features, weight, bias)]
ops.iac_from_features(*small, num_steps=n).sum().backward()  # first calls load libraries
out = None
def forward():
    global out
    out = ops.iac_from_features(x, features, weight, bias, num_steps=n)
print(rows * size * size * 4 / 2**20, rise(forward), rise(lambda: out.sum().backward()))
"""


@pytest.mark.thorough
@needs_extension
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
def test_predicted_filters_never_exist():
    """Forward and backward stay far below the size of the filters that they use."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    filters, forward, backward = map(float, run.stdout.split())
    assert filters > 115
    assert forward < filters / 25
    assert backward < filters / 5


@pytest.mark.slow
def test_offsets_beyond_32_bits():
    """The last frame of filters that have more than 2^31 values; the others are zero pages that cost no memory."""
    frames, n, c, k, h, w = 5, 17, 16, 3, 512, 480
    filters = torch.zeros(frames, n * c * (2 * k + 1), h, w, dtype=torch.bfloat16)
    assert filters.numel() > 2**31
    filters[-1] = torch.rand(filters.shape[1:], generator=torch.Generator().manual_seed(0)).sub_(0.5).bfloat16()
    x = torch.rand(frames, c, h, w, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    out = ops.iac(x, filters, num_steps=n)
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(out))
    alone = x[-1:].detach().clone().requires_grad_()
    expected = ops.iac(alone, filters[-1:].clone(), num_steps=n)
    assert expected.any()
    assert torch.equal(out[-1:], expected)
    assert torch.equal(gradient[-1:], torch.autograd.grad(expected, alone, torch.ones_like(expected))[0])
