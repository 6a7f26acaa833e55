"""Restore a film of two hours by the command line, and measure the peak memory after a tenth of it and at its end.

    python -m benchmarks.long_film [--frames 172800] [--width 64] [--height 48] [--out results.json]

The film is synthetic: a pattern that moves, 24 frames per second. The command runs in a process of its own; its peak
resident memory is read from `/proc` when a tenth of the parts is stored, and when it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.hostile_inputs import commit
from tta_restore.data.io.parts import PART_FRAMES
from tta_restore.data.io.video import VideoFile
from tta_restore.data.io.video_writer import write_video

MODEL = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
"""


def moving_pattern(frames: int, height: int, width: int) -> Iterator[Tensor]:
    """Yield the frames of the film. Shape: (3, H, W)."""
    base = torch.rand(1, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(base, size=(height, width), mode="bilinear")[0]
    for number in range(frames):
        yield large.roll((number // 3 % height, number % width), (1, 2))


def peak_memory(process: int) -> float | None:
    """Return the peak resident memory of a process in MB, None once it has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None


def restore(folder: Path, frames: int) -> dict[str, float]:
    """Run the command and return its peaks and its time."""
    command = [sys.executable, "-m", "tta_restore", "restore", str(folder / "film.mkv"), "-o", str(folder / "out.mkv")]
    command += ["--method", "self-ensemble", "--model", "long_film_net:net", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}
    found: dict[str, float] = {}
    began = time.perf_counter()
    with subprocess.Popen(command, env=environment) as process:
        while process.poll() is None:
            if (peak := peak_memory(process.pid)) is not None:
                found["end"] = peak
                parts = len(list(folder.glob(".out.mkv.parts/*.part")))
                if "tenth" not in found and parts * PART_FRAMES >= frames / 10:
                    found["tenth"] = peak
            time.sleep(0.2)
    found["seconds"] = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"the command ended with {process.returncode}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=172800)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--height", type=int, default=48)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "long_film_net.py").write_text(MODEL)
        film = moving_pattern(options.frames, options.height, options.width)
        write_video(folder / "film.mkv", film, frame_rate=24, quality=30)
        found = restore(folder, options.frames)
        written = sum(1 for _ in VideoFile(folder / "out.mkv"))
    found |= {"frames": written}
    print(
        f"{written} of {options.frames} frames in {found['seconds']:.0f} s; peak {found['tenth']:.0f} MB after a tenth "
        f"and {found['end']:.0f} MB at the end; load {os.getloadavg()[0]:.1f}"
    )
    if options.out is not None:
        facts = {
            "command": f"benchmarks.long_film --frames {options.frames}",
            "date": time.strftime("%Y-%m-%d"),
            "machine": platform.platform(),
        }
        facts |= {"commit": commit()}
        options.out.write_text(json.dumps(facts | {"load": os.getloadavg()} | found, indent=1) + "\n")
    sys.exit(written != options.frames)


if __name__ == "__main__":
    main()
