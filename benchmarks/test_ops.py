"""pytest-benchmark suite: op x shape x dtype x direction x threads x contender. `pytest benchmarks`."""

import os

import pytest
import torch

import tta_restore
from benchmarks import cases

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
THREADS = [1] if DEVICE == "cuda" else sorted({1, os.cpu_count() or 1})
# Compiling takes half a minute, and the original seconds per backward pass; `python -m benchmarks report` has both.
CONTENDERS = [name for name in cases.CONTENDERS if name != "compiled"]
SMALL = (cases.PATCH, cases.PHOTO)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("direction", cases.DIRECTIONS)
@pytest.mark.parametrize("case", cases.cases(DEVICE), ids=lambda case: case.name.replace(" ", "-"))
@pytest.mark.parametrize("contender", CONTENDERS)
def test_speed(benchmark, case, direction, threads, contender):
    function = case.contenders(DEVICE).get(contender)
    if function is None:
        pytest.skip(f"{case.op} has no contender {contender!r}")
    if contender != "ours" and direction != "forward":
        pytest.skip("minutes per run; measured by `python -m benchmarks report`")
    tensors = case.tensors(DEVICE)
    run = cases.runner(function, tensors, direction)

    def call():
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{case.name} {direction} {threads} threads"
    benchmark.extra_info.update(least_bytes=case.least_bytes(direction), operations=case.operations(direction))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        benchmark.pedantic(call, rounds=5, warmup_rounds=1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("case", [c for c in cases.cases("cpu") if c.shape in SMALL], ids=lambda case: case.op)
def test_contenders_agree(case):
    """A ratio between functions that compute different things would mean nothing."""
    tensors = case.tensors("cpu")
    with torch.no_grad(), tta_restore.backend("reference"):
        expected = case.contenders("cpu")["original"](*tensors)
    for name in ("ours", "composed", "reference"):
        function = case.contenders("cpu").get(name)
        if function:
            with torch.no_grad():
                torch.testing.assert_close(function(*tensors), expected, rtol=1e-4, atol=1e-5)
