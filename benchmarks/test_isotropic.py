"""The isotropic blur against the algorithm as it was released: time and peak memory.

`pytest benchmarks/test_isotropic.py -k ratio` prints the ratios and writes results/isotropic_<device>.json.

The released algorithm is written anew from its description: every kernel is made tap by tap for a quadrant, mirrored
twice and normalised; the image is stacked once per tap; product, sum.
"""

import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import tta_restore
from tta_restore import ops

from . import measure

RESULTS = Path(__file__).parent / "results"
SIZES = (3, 5, 7, 9, 11, 13, 15)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FRAME = (1, 3, 1120, 1680) if DEVICE == "cuda" else (1, 3, 256, 256)
PATCH = (2, 3, 32, 32)
KERNEL = "triton" if DEVICE == "cuda" else "cpu"


def original_kernel(seeds, size):
    m = size // 2
    a = seeds.abs()
    rows = []
    for i in range(m + 1):
        row = []
        for j in range(m + 1):
            r = math.hypot(m - i, m - j)
            low, part = int(r), r - int(r)
            if r > m:
                row.append(torch.zeros_like(a[:, 0]))
            elif part == 0:
                row.append(a[:, low])
            else:
                row.append((1 - part) * a[:, low] + part * a[:, low + 1])
        rows.append(torch.stack(row, 1))
    quadrant = torch.stack(rows, 1)
    half = torch.cat((quadrant, quadrant[:, :, :-1].flip(2)), 2)
    logits = torch.cat((half, half[:, :-1].flip(1)), 1)
    return logits.flatten(1, 2).softmax(1)


def original(image, seeds, weights):
    h, w = image.shape[2:]
    out, first = weights[:, :1] * image, 0
    for n, size in enumerate(SIZES, 1):
        kernel = original_kernel(seeds[:, first : first + (size + 1) // 2], size)
        first += (size + 1) // 2
        padded = F.pad(image, (size // 2,) * 4)
        views = torch.stack([padded[:, :, i : i + h, j : j + w] for i in range(size) for j in range(size)], 2)
        out = out + weights[:, n : n + 1] * (views * kernel[:, None]).sum(2)
    return out


def ours(*tensors):
    with tta_restore.backend(KERNEL):
        return ops.isotropic_reblur(*tensors)


def reference(*tensors):
    with tta_restore.backend("reference"):
        return ops.isotropic_reblur(*tensors)


CONTENDERS = {"ours": ours, "reference": reference, "original": original}


def tensors(shape, device=DEVICE):
    generator = torch.Generator().manual_seed(0)
    b, c, h, w = shape
    image = torch.rand(b, c, h, w, generator=generator)
    seeds = torch.randn(b, 35, h, w, generator=generator)
    weights = torch.rand(b, 8, h, w, generator=generator).softmax(1)
    return [t.to(device) for t in (image, seeds, weights)]


def runner(name, made, direction):
    """A call without arguments that keeps nothing."""
    function = CONTENDERS[name]
    if direction == "forward":

        def forward():
            with torch.no_grad():
                function(*made)

        return forward
    leaves = [t.detach().requires_grad_() for t in made]
    upstream = torch.ones_like(made[0])

    def both():
        torch.autograd.grad(function(*leaves), leaves, upstream)

    return both


def peak_memory(name, direction):
    """Bytes above the inputs at the peak of one call; call it in a fresh process."""
    runner(name, tensors(PATCH), direction)()
    call = runner(name, tensors(FRAME), direction)
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    return measure.resident_growth(call)


def test_contenders_agree():
    """A ratio between functions that compute different things would mean nothing."""
    made = tensors(PATCH)
    expected = original(*made)
    for function in (ours, reference):
        torch.testing.assert_close(function(*made), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_ratio(direction, capsys):
    """Contenders in turn, one thread, medians of processor time (GPU: wall clock after a wait)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = tensors(FRAME)
    names = ("ours", "original") if DEVICE == "cpu" else ("ours",)  # the original needs 15 GB and more at this size
    calls = {name: runner(name, made, direction) for name in names}
    clock = time.perf_counter if DEVICE == "cuda" else time.process_time
    samples = {name: [] for name in calls}
    for i in range(6):
        for name, call in calls.items():
            for _ in range(1 if name == "original" else 5):
                start = clock()
                call()
                if DEVICE == "cuda":
                    torch.cuda.synchronize()
                if i:  # the first round warms up
                    samples[name].append(clock() - start)
    torch.set_num_threads(before)
    medians = {name: statistics.median(taken) for name, taken in samples.items()}
    peaks = {}
    for name in names:
        program = (
            f"import json; from benchmarks import test_isotropic as t; print(json.dumps(t.peak_memory({name!r}, "
            f"{direction!r})))"
        )
        run = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[name] = json.loads(run.stdout)
    load = os.getloadavg()[0]
    file = RESULTS / f"isotropic_{DEVICE}.json"
    rows = json.loads(file.read_text()) if file.exists() else {}
    rows[direction] = {
        "frame": FRAME,
        "threads": 1,
        "seconds": medians,
        "peak_bytes": peaks,
        "load": load,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    file.write_text(json.dumps(rows, indent=1) + "\n")
    with capsys.disabled():
        print(f"\nisotropic_reblur {'x'.join(map(str, FRAME))} {direction}, 1 thread, {DEVICE}, load {load:.1f}")
        for name in names:
            print(f"  {name:10}{medians[name] * 1e3:10.2f} ms{peaks[name] / 2**20:10.1f} MB peak")
        if "original" in medians:
            ratio, memory = medians["original"] / medians["ours"], peaks["original"] / max(peaks["ours"], 1)
            print(f"  original / ours: {ratio:.1f} x time, {memory:.0f} x memory")
    assert medians["ours"] > 0


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("contender", ["ours", "reference"])
def test_speed(benchmark, contender, direction):
    run = runner(contender, tensors(FRAME), direction)

    def call():
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"isotropic_reblur {direction}"
    benchmark.pedantic(call, rounds=5, warmup_rounds=1)
