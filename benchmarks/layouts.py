"""Filters of other memory formats beside contiguous ones, in one run: ``python -m benchmarks.layouts --out FILE``."""

from __future__ import annotations

import argparse
import datetime
import os
from pathlib import Path
from typing import Any

import torch

from . import cases, measure, report

LAYOUTS = ("contiguous", "channels_last", "cropped")


def compare(dtype: torch.dtype, direction: str, rounds: int) -> dict[str, Any]:
    """Time ``iac`` on the same filters in every memory format, in turn."""
    calls = {}
    for layout in LAYOUTS:
        case = cases.AdaptiveConv("iac", cases.FRAME, 17, 3, dtype, layout=layout)
        calls[layout] = cases.runner(case.contenders("cpu")["ours"], case.tensors("cpu"), direction)
    return measure.in_turn(calls, "cpu", rounds, seconds=600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    options = parser.parse_args()
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": measure.machine("cpu"),
        "measurements": [],
    }
    for threads in options.threads:
        torch.set_num_threads(threads)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for direction in cases.DIRECTIONS:
                load, times = os.getloadavg()[0], compare(dtype, direction, options.rounds)
                row = {"dtype": str(dtype), "direction": direction, "threads": threads, "load": load, "times": times}
                result["measurements"].append(row)
                ratios = {
                    clock: {
                        name: t[clock]["median"] / times["contiguous"][clock]["median"] for name, t in times.items()
                    }
                    for clock in ("processor", "wall")
                }
                shown = [
                    f"{name} {t['processor']['median'] * 1e3:.1f} ms, x {ratios['processor'][name]:.2f}"
                    f" (wall {ratios['wall'][name]:.2f})"
                    for name, t in times.items()
                ]
                print(f"{dtype} {direction} {threads} threads, load {load:.1f}: {'; '.join(shown)}", flush=True)
    report.save(result, options.out)


if __name__ == "__main__":
    main()
