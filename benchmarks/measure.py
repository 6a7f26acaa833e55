"""Timing, peak memory and the bandwidth of this machine. Every function here runs in a fresh process (see report.py).

Contenders are timed in turn, round after round, in one process: whatever else the machine does meets all of them alike,
and ratios of medians hold where absolute times do not. Each is timed in its second call of a round, so that it finds
memory and caches as it left them itself, as in a loop of its own, and not as another contender did. Beside the wall
clock stands the processor time of the process, which others cannot take; on a busy machine the two differ, and the load
is recorded.
"""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import os
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from tta_restore import ops

from . import cases

# Cycles, some 5 ms, for which a GPU sleeps while what it is to do next is launched: many small kernels would wait for
# their launches in turn, which the wall clock tells.
_SLEEP = 10_000_000


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _timed(call: Callable[[], Any], device: str) -> tuple[float, float]:
    """Seconds of processor time (on a GPU: of its own, launches not counted) and of the wall clock."""
    _wait(device)
    processor, wall = time.process_time(), time.perf_counter()
    call()
    _wait(device)
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_SLEEP)
        start.record()
        call()
        end.record()
        _wait(device)
        processor = start.elapsed_time(end) / 1e3
    return processor, wall


def _failure(error: Exception) -> dict[str, Any]:
    return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}


def _summary(samples: list[float]) -> dict[str, float]:
    quarters = statistics.quantiles(samples, n=4) if len(samples) > 1 else [samples[0]] * 3
    return {"median": statistics.median(samples), "low": min(samples), "iqr": quarters[2] - quarters[0]}


def in_turn(
    calls: dict[str, Callable[[], Any]], device: str, rounds: int, seconds: float, *, warm_up: bool = True
) -> dict[str, dict[str, Any]]:
    """Time the calls in turn for ``rounds`` rounds, or fewer once ``seconds`` have passed.

    ``warm_up=False`` leaves out the call before each one that is timed, for calls of minutes.
    """
    results: dict[str, dict[str, Any]] = {}
    samples: dict[str, list[tuple[float, float]]] = {}
    for name, call in calls.items():
        try:
            if warm_up:
                call()
            _wait(device)
            samples[name] = []
        except Exception as error:  # a contender that cannot run is a result too
            results[name] = _failure(error)
    end = time.perf_counter() + seconds
    for done in range(rounds):
        if done >= 3 and time.perf_counter() > end:
            break
        for name, taken in samples.items():
            if warm_up:
                calls[name]()
            taken.append(_timed(calls[name], device))
    for name, taken in samples.items():
        processor, wall = zip(*taken, strict=True)
        results[name] = {"processor": _summary(list(processor)), "wall": _summary(list(wall)), "rounds": len(taken)}
    return results


def stream(device: str, size: int = 448 << 20) -> dict[str, Callable[[], Any]]:
    """Reading and copying as many bytes as the filters of a frame: what memory gives to code that only moves."""
    source, target = torch.ones(size // 4, device=device), torch.empty(size // 4, device=device)
    target.fill_(0)
    return {"read": source.sum, "copy": lambda: target.copy_(source)}


def compare(
    case: cases.Case, direction: str, device: str, rounds: int, seconds: float, only: list[str]
) -> dict[str, Any]:
    """Time the contenders of a case, all or those named, and the stream beside them."""
    tensors = case.tensors(device)
    calls = {
        name: cases.runner(function, tensors, direction)
        for name, function in case.contenders(device).items()
        if not only or name in only
    }
    size = 448 << 20
    return in_turn({**calls, **{f"stream {k}": v for k, v in stream(device, size).items()}}, device, rounds, seconds)


def memory(case: cases.Case, direction: str, device: str, contenders: list[str]) -> dict[str, int | dict[str, Any]]:
    """Bytes that one call of each needs at its peak above its inputs, results included."""
    found: dict[str, int | dict[str, Any]] = {}
    for name in contenders:
        try:
            found[name] = _peak_memory(case, direction, device, name)
        except Exception as error:
            found[name] = _failure(error)
    return found


def _peak_memory(case: cases.Case, direction: str, device: str, contender: str) -> int:
    tensors = case.tensors(device)
    small = tuple(t[..., :4, :4].contiguous() if t.ndim == 4 else t for t in tensors)
    function = case.contenders(device)[contender]
    warm_up = cases.runner(function, small, direction)
    call = cases.runner(function, tensors, direction)
    (call if contender == "compiled" else warm_up)()  # libraries load on first use
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    return resident_growth(call)


def resident_growth(call: Callable[[], object]) -> int:
    """Bytes by which the resident memory of this process grows at the peak of a call."""

    def status(field: str) -> int:
        with open("/proc/self/status") as lines:
            return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024

    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")  # the high-water mark starts again from here
    call()
    return max(status("VmHWM") - before, 0)


def anonymous_growth(call: Callable[[], object]) -> int:
    """Like :func:`resident_growth`, of memory that is backed by no file, looked at every few milliseconds.

    For calls of seconds: a system that takes back pages of libraries meanwhile lets the resident memory shrink.
    """

    def anonymous() -> int:
        with open("/proc/self/status") as lines:
            return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024

    before = highest = anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.003):
            highest = max(highest, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return highest - before


def call_overhead(device: str, calls: int = 2000) -> dict[str, float]:
    """Microseconds of a call whose arithmetic is nothing, without gradients: the best of seven runs."""
    tiny = {
        op: cases.AdaptiveConv(op, cases.TINY, 2, 3, features=2 * (op == "iac_from_features"))
        for op in ("iac", "iac_from_features")
    }
    options = {"num_steps": 2}
    made = {op: case.tensors(device) for op, case in tiny.items()}
    sac = cases.AdaptiveConv("sac", cases.TINY, 1, 3).tensors(device)
    timed: dict[str, Callable[[], Any]] = {
        "torch.mul": lambda: torch.mul(sac[0], sac[0]),
        "sac": lambda: ops.sac(*sac),
        "iac": lambda: ops.iac(*made["iac"], **options),
        "iac_from_features": lambda: ops.iac_from_features(*made["iac_from_features"], **options),
    }
    result = {}
    with torch.no_grad():
        for name, call in timed.items():
            best = float("inf")
            for _ in range(7):
                start = time.process_time()
                for _ in range(calls):
                    call()
                _wait(device)
                best = min(best, (time.process_time() - start) / calls)
            result[name] = best * 1e6
    return result


def machine(device: str) -> dict[str, Any]:
    """What the numbers belong to."""
    model = "unknown"
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    from tta_restore._core import extension

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else model,
        "processor": model,
        "cores": os.cpu_count(),
        "instruction_set": extension.instruction_set() if extension.AVAILABLE else None,
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None,
        "cuda": torch.version.cuda if device == "cuda" else None,
    }
