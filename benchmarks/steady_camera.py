"""Measure cost and gain per frame of a stream from one camera.

    python -m benchmarks.steady_camera --photos test --output benchmarks/results/steady_camera.json \
        --picture docs/steady_camera.png

Every frame of a stream is another crop of a photograph under the same condition of :mod:`benchmarks.any_restorer`. One
adapter of ``adapters.recommended`` sees them all. Processor time and PSNR are compared with the self-ensemble's.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import any_restorer
from tta_restore import adapters
from tta_restore.data.synthetic import photos

STREAMS = ("denoiser:near", "jpeg_cleaner:far", "upscaler:near", "lens_specialist:near", "lens_specialist:far")
EARLY = 6  # frames of which the first mean is taken; DegradationPairs adapts on at most as many


def measure(case: any_restorer.Case, condition: str, names: tuple[str, ...], count: int, seed: int) -> list[dict]:
    """Restore the frames of one stream; return gain, processor time and phase of each."""
    camera, kind = case.conditions[condition]
    model, spec = case.load()
    generator = torch.Generator().manual_seed(seed)
    adapter = adapters.recommended(model, **({} if spec is None else {"spec": spec}))
    plain = adapters.SelfEnsemble(model, spec=spec)
    records = []
    for index in range(count):
        sharp = any_restorer.scene(kind, index, names, case.size * case.scale, generator)
        x = camera.apply(sharp, camera.sample(generator, 1), generator)
        before = x if case.scale == 1 else F.interpolate(x, scale_factor=case.scale, mode="bicubic")
        started = time.process_time()
        ensemble = plain(x)
        middle = time.process_time()
        restored = adapter(x)
        ended = time.process_time()
        scores = [any_restorer.score(image, sharp.clamp(0, 1)) for image in (before, ensemble, restored)]
        records.append(
            {
                "input": scores[0],
                "self_ensemble": scores[1],
                "gain": scores[2] - scores[1],
                "steps": adapter.report.steps,
                "phase": getattr(adapter, "phase", ""),
                "cpu_seconds": ended - middle,
                "cpu_seconds_self_ensemble": middle - started,
            }
        )
    return records


def summarize(frames: list[dict[str, Any]]) -> dict[str, float]:
    """Mean gain of the first and of the other frames in dB, frames with steps, and cost in self-ensembles."""
    late = frames[EARLY:] or frames
    adapted = [frame for frame in frames if frame["steps"]]
    steady = [frame for frame in frames if not frame["steps"]] or frames
    plain = statistics.median(frame["cpu_seconds_self_ensemble"] for frame in frames)
    return {
        "gain_early": statistics.mean(frame["gain"] for frame in frames[:EARLY]),
        "gain_late": statistics.mean(frame["gain"] for frame in late),
        "worst": min(frame["gain"] for frame in frames),
        "adapted_frames": len(adapted),
        "cost_adapted": statistics.mean(frame["cpu_seconds"] for frame in adapted or frames) / plain,
        "cost_steady": statistics.mean(frame["cpu_seconds"] for frame in steady) / plain,
        "cost_steady_median": statistics.median(frame["cpu_seconds"] for frame in steady) / plain,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = [
        f"| restorer | condition | gain, frames 1-{EARLY} | others | worst | frames with steps | their cost "
        "| steady cost | median |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        s = row["summary"]
        lines.append(
            f"| {row['restorer']} | {row['condition']} | {s['gain_early']:+.2f} | {s['gain_late']:+.2f} | "
            f"{s['worst']:+.2f} | {s['adapted_frames']} | {s['cost_adapted']:.0f} | {s['cost_steady']:.2f} | "
            f"{s['cost_steady_median']:.2f} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Cost in self-ensembles and gain in dB over the frames, a line per stream."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from tta_restore.engine.report.plots import PALETTE

    figure, (cost, gain) = plt.subplots(1, 2, figsize=(12, 4.2), constrained_layout=True)
    for row, color in zip(rows, PALETTE, strict=False):
        frames = row["each"]
        number = range(1, len(frames) + 1)
        plain = statistics.median(frame["cpu_seconds_self_ensemble"] for frame in frames)
        label = f"{row['restorer'].replace('_', ' ')}, {row['condition']}"
        cost.plot(number, [frame["cpu_seconds"] / plain for frame in frames], color=color, label=label)
        gain.plot(number, [frame["gain"] for frame in frames], color=color, marker="o", markersize=3, linewidth=0.8)
    cost.axhline(1, color="0.3", linewidth=1)
    gain.axhline(0, color="0.3", linewidth=1)
    cost.set(yscale="log", xlabel="frame", ylabel="processor time / self-ensemble", title="cost")
    gain.set(xlabel="frame", ylabel="PSNR over self-ensemble (dB)", title="gain")
    cost.legend(frameon=False)
    for axis in (cost, gain):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(STREAMS), help="restorer:condition")
    parser.add_argument("--photos", choices=("dev", "test"), default="dev")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--real", type=Path, help="folder of published packages, as for any_restorer")
    parser.add_argument("--picture", type=Path, help="PNG or SVG file to draw cost and gain into")
    parser.add_argument("--output", type=Path, help="JSON file, written after each stream")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = photos.TEST if options.photos == "test" else tuple(name for name in photos.DEV if name != "moon")
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    content: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}, 1 thread",
        "commit": commit,
        "photos": options.photos,
        "seed": options.seed,
        "rows": [],
    }
    found = any_restorer.cases(options.real)
    for stream in options.only:
        name, condition = stream.split(":")
        frames = measure(found[name], condition, names, options.frames, options.seed)
        row = {"restorer": name, "condition": condition, "summary": summarize(frames), "each": frames}
        content["rows"].append(row)
        print(table([row]).splitlines()[-1], flush=True)
        if options.output:
            options.output.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content["rows"]))
    if options.picture:
        plot(content["rows"], options.picture)


if __name__ == "__main__":
    main()
