"""``python -m benchmarks.long_streams``: five lenses in turn, twenty times over; who falls below the source, and when.

Every method starts once and is never reset. What counts is the worst run of 50 and of 200 frames: what is recommended
may not fall more than 0.05 dB below the source in it; what is published is shown as it is. Rows of other calls stay in
results/long_streams.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tta_restore import adapters
from tta_restore.data import lenses
from tta_restore.engine.evaluate import StreamResult, evaluate_stream
from tta_restore.models import as_restorer, create_model

RESULTS = Path(__file__).parent / "results" / "long_streams.json"
STREAM = {"frames_per_lens": 2, "rounds": 20, "size": 128}
METHODS: dict[str, Any] = {
    "recommended": adapters.recommended,
    "recommended, 8 steps": partial(adapters.recommended, steps=8),
    "self-ensemble": adapters.SelfEnsemble,
    "siam-ctta": partial(adapters.SiamCTTA, select="all"),
    "tent": adapters.Tent,
    "tent-literal": partial(adapters.Tent, form="literal"),
}


def row(result: StreamResult, name: str) -> dict[str, Any]:
    """Gains over the source in dB: mean, per lens, the worst 50 and 200 frames in a row and where they begin, all."""
    return {
        "gain": result.gain(name, "source").mean,
        "gain_per_lens": {f: result.gain(name, "source", family=f).mean for f in result.families},
        "worst_50": result.worst_window(name, "source", 50),
        "worst_200": result.worst_window(name, "source", 200),
        "cpu_seconds_per_frame": result.cost(name)["cpu_seconds"],
        "date": time.strftime("%Y-%m-%d"),
        "gains": [round(gain, 3) for _, gain in result.gains(name, "source")],
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as text."""
    families = list(next(iter(rows.values()))["gain_per_lens"])
    head = ["dB over the source", *families, "all", "worst 50", "worst 200", "s per frame"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, found in rows.items():
        numbers = [*found["gain_per_lens"].values(), found["gain"], found["worst_50"][1], found["worst_200"][1]]
        cells = [*(f"{number:+.2f}" for number in numbers), f"{found['cpu_seconds_per_frame']:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Run the methods named, by default all, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", choices=[[], *METHODS], default=[], metavar="METHOD")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    source = as_restorer(create_model("lens_unet", checkpoint="specialist").eval())
    frames = lenses.lens_stream(**STREAM)
    saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows = saved.get("methods", {})
    reference = evaluate_stream(frames, {"source": lambda: adapters.Adapter(source)}, progress=False)
    for name in options.methods or METHODS:
        result = evaluate_stream(frames, {name: partial(METHODS[name], source)}, progress=False)
        rows[name] = row(StreamResult.merge([reference, result]), name)
        facts = {
            "stream": STREAM,
            "restorer": "lens_unet, specialist",
            "torch": torch.__version__,
            "threads": 1,
            "load": os.getloadavg()[0],
        }
        content = {"facts": facts, "methods": {key: rows[key] for key in METHODS if key in rows}}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    print(table({key: rows[key] for key in METHODS if key in rows}))


if __name__ == "__main__":
    main(sys.argv[1:])
