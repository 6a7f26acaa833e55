"""``python -m benchmarks.long_streams``: five lenses in turn, twenty times over; who falls below the source, and when.

Every method starts once and is never reset. What counts is the worst run of 50 and of 200 frames: what is recommended
may not fall more than 0.05 dB below the source in it; what is published is shown as it is.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

from tta_restore import adapters
from tta_restore.data import lenses
from tta_restore.engine.evaluate import StreamResult, evaluate_stream
from tta_restore.models import Restorer, as_restorer, create_model

RESULTS = Path(__file__).parent / "results"
FLOOR = -0.05  # dB
METHODS = {
    "source": adapters.Adapter,
    "recommended": adapters.recommended,
    "self-ensemble": adapters.SelfEnsemble,
    "siam-ctta": lambda source: adapters.SiamCTTA(source, select="all"),
    "tent": lambda source: adapters.Tent(source),
    "tent-literal": lambda source: adapters.Tent(source, form="literal"),
}


def run(source: Restorer, *, rounds: int = 20, frames_per_lens: int = 2, size: int = 128) -> StreamResult:
    """All methods on one stream, a line of progress for each."""
    frames = lenses.lens_stream(frames_per_lens=frames_per_lens, rounds=rounds, size=size)
    results = []
    for name, make in METHODS.items():
        started = time.process_time()
        result = evaluate_stream(frames, {name: lambda make=make: make(source)}, progress=False)
        print(f"{name}: {len(frames)} frames, {time.process_time() - started:.0f} s", file=sys.stderr, flush=True)
        results.append(result)
    return StreamResult.merge(results)


def table(result: StreamResult) -> str:
    """Mean gain over the source per lens and in all, and the worst 50 and 200 frames in a row."""
    families = result.families
    lines = [
        "| dB over the source | " + " | ".join(families) + " | all | worst 50 | worst 200 |",
        "|" + "---|" * (len(families) + 4),
    ]
    for name in result.methods:
        if name != "source":
            gains = [result.gain(name, "source", family=family).mean for family in families]
            worst = [result.worst_window(name, "source", length)[1] for length in (50, 200)]
            cells = [*gains, result.gain(name, "source").mean, *worst]
            lines.append(f"| {name} | " + " | ".join(f"{cell:+.2f}" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, write results/long_streams.json."""
    torch.set_num_threads(1)
    source = as_restorer(create_model("lens_unet", checkpoint="specialist").eval())
    result = run(source)
    print(table(result))
    rows = {
        name: {
            "gain": result.gain(name, "source").mean,
            "gain_per_lens": {f: result.gain(name, "source", family=f).mean for f in result.families},
            "worst_50": result.worst_window(name, "source", 50),
            "worst_200": result.worst_window(name, "source", 200),
            "cpu_seconds_per_frame": result.cost(name)["cpu_seconds"],
            "gains": [round(gain, 3) for _, gain in result.gains(name, "source")],
        }
        for name in result.methods
        if name != "source"
    }
    facts = {
        "stream": "lens_stream(frames_per_lens=2, rounds=20, size=128)",
        "frames": len(result.of("source")),
        "restorer": "lens_unet, specialist",
        "torch": torch.__version__,
        "threads": 1,
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }
    (RESULTS / "long_streams.json").write_text(json.dumps({"facts": facts, "methods": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
