"""IFAN at inference against the released network, written anew: same weights, same pictures, in turn in one process.

    python -m benchmarks.ifan_inference                       # 1280x720 on the CPU, one thread
    python -m benchmarks.ifan_inference --size 6000 4000 --only "ours, channels_last, tiles" --rounds 1
    python -m benchmarks.ifan_inference --device cuda --size 1280 720      # needs a GPU; nobody has run it yet

prints a table and writes JSON to benchmarks/results. Ratios are those of median processor times (on a GPU: of events),
so that a busy machine meets both sides alike. Peak memory is what the process grows by above network and picture in a
fresh process per contender. Weights are random: times depend on them only through subnormal numbers, of which networks
near the identity have none.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore import models
from tta_restore.adapters import Tiles
from tta_restore.models.ifan.checkpoint import official_names

from . import measure
from .ifan_original import ReleasedIfan

RESULTS = Path(__file__).parent / "results"
ORIGINAL, PLAIN, LAST = "original", "ours", "ours, channels_last"
BF16, TILES = "ours, channels_last, bf16", "ours, channels_last, tiles"
BF16_TILES = "ours, channels_last, bf16, tiles"
COMPILED, BF16_COMPILED = "ours, channels_last, compiled", "ours, channels_last, bf16, compiled"
ORIGINAL_BF16, ORIGINAL_COMPILED = "original, channels_last, bf16", "original, compiled"
CONTENDERS = (ORIGINAL, ORIGINAL_BF16, ORIGINAL_COMPILED, PLAIN, LAST, COMPILED, BF16, BF16_COMPILED, TILES, BF16_TILES)


def networks(horizontal: str, device: str) -> tuple[nn.Module, nn.Module]:
    """Both sides, with the same weights."""
    torch.manual_seed(0)
    ours = models.create_model("ifan", horizontal=horizontal).eval().requires_grad_(False)
    theirs = ReleasedIfan(horizontal=horizontal).eval().requires_grad_(False)
    theirs.load_state_dict(official_names(ours.state_dict()))
    return ours.to(device), theirs.to(device)


def picture(width: int, height: int, device: str) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)).to(device)


def contender(name: str, options: argparse.Namespace) -> Callable[[Tensor], Tensor]:
    """The restorer of that name; every one has a network of its own."""
    ours, theirs = networks(options.horizontal, options.device)
    network = theirs if name.startswith("original") else ours
    if "channels_last" in name:
        network = network.to(memory_format=torch.channels_last)
    if "compiled" in name:
        network = torch.compile(network)
    restorer = models.as_restorer(network, models.RestorerSpec(size=models.SizeRequirements(8, 8)))
    tiles = Tiles(options.tile, options.overlap) if "tiles" in name else None

    def restore(x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(options.device, torch.bfloat16, enabled="bf16" in name):
            if tiles is None:
                return restorer(x)
            return tiles.run(restorer.restore, x, size=models.SizeRequirements(8, 8)).image

    return restore


def warm_up(name: str, restore: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Load libraries on a small picture; what is compiled compiles for the real size."""
    restore(x if "compiled" in name else x[..., :64, :64])


def peak(name: str, options: argparse.Namespace) -> int:
    """Bytes that one call needs at its peak above network and picture, in this process."""
    restore, x = contender(name, options), picture(*options.size, options.device)
    warm_up(name, restore, x)
    if options.device != "cuda":
        return measure.anonymous_growth(lambda: restore(x))
    restore(x)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    restore(x)
    return torch.cuda.max_memory_allocated() - before


def differences(names: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Largest difference of every contender to the original, on a picture of 256x192."""
    x = picture(256, 192, options.device)
    expected = contender(ORIGINAL, options)(x)
    return {name: float((contender(name, options)(x) - expected).abs().max()) for name in names if name != ORIGINAL}


def child(name: str, options: argparse.Namespace) -> Any:
    """Peak memory, measured in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.ifan_inference", "--memory-of", name, "--device", options.device]
    command += [
        "--size",
        *map(str, options.size),
        "--threads",
        str(options.threads),
        "--horizontal",
        options.horizontal,
    ]
    command += ["--tile", str(options.tile), "--overlap", str(options.overlap)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        return f"ended with {run.returncode}"
    return int(run.stdout.splitlines()[-1])


def main(arguments: list[str]) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", type=int, nargs=2, default=[1280, 720], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=[ORIGINAL, PLAIN, LAST, COMPILED, BF16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--horizontal", choices=("vertical", "own"), default="vertical", help="as released, or corrected"
    )
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--memory-of", choices=CONTENDERS, help="print the peak of one contender, and nothing else")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/ifan_inference-DEVICE-WIDTHxHEIGHT.json)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch._inductor")
    if options.memory_of:
        print(peak(options.memory_of, options))
        return
    load = [os.getloadavg()]
    x = picture(*options.size, options.device)
    restorers = {name: contender(name, options) for name in options.only}
    first_call = {}
    for name, restore in restorers.items():
        start = time.process_time() + sum(os.times()[2:4])  # with the compilers that it starts
        warm_up(name, restore, x)
        first_call[name] = time.process_time() + sum(os.times()[2:4]) - start
    calls = {name: partial(restore, x) for name, restore in restorers.items()}
    times = measure.in_turn(calls, options.device, options.rounds, math.inf, warm_up=False)
    load.append(os.getloadavg())
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": measure.machine(options.device),
        "size": options.size,
        "threads": options.threads,
        "horizontal": options.horizontal,
        "tile": [options.tile, options.overlap],
        "load": load,
        "times": times,
        "seconds_to_compile": {
            name: first_call[name] - times[name]["processor"]["median"]
            for name in first_call
            if "compiled" in name and "processor" in times[name]
        },
        "largest_difference_at_256x192": differences(options.only, options),
        "peak_bytes": {} if options.no_memory else {name: child(name, options) for name in options.only},
    }
    width, height = options.size
    path = options.out or RESULTS / f"ifan_inference-{options.device}-{width}x{height}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{width}x{height}, {options.threads} threads, {result['machine']['device']}, load {load[0][0]:.1f}")
    for name, taken in times.items():
        if "error" in taken:
            print(f"{name:36} {taken['error']}")
            continue
        first = times.get(ORIGINAL, {}).get("processor", {}).get("median")
        seconds, wall = taken["processor"]["median"], taken["wall"]["median"]
        ratio = f"{first / seconds:.2f}x" if first else ""
        memory = result["peak_bytes"].get(name)
        shown = f"{memory / 2**20:.0f} MiB" if isinstance(memory, int) else str(memory or "")
        difference = result["largest_difference_at_256x192"].get(name)
        compiling = result["seconds_to_compile"].get(name)
        print(f"{name:36} {seconds:8.2f} s (wall {wall:8.2f})  {ratio:>6}  {shown:>9}  differs by {difference}", end="")
        print(f", compiled in {compiling:.0f} s" if compiling else "")


if __name__ == "__main__":
    main(sys.argv[1:])
