"""``python -m benchmarks.long_streams``: five lenses in turn, twenty times over; who falls below the source, and when.

Every method starts once and is never reset. What counts is the worst run of 50 and of 200 frames: what is recommended
may not fall more than 0.05 dB below the source in it; what is published is shown as it is. Four frames per lens make
400 frames, of which 200 in a row are a choice; ``--frames-per-lens 2`` is the shorter stream, whose worst 200 is all of
it. Rows of other calls stay in results/long_streams-FRAMES.json; a row is written after every round.
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
from tta_restore.data.synthetic import defocus
from tta_restore.engine.evaluate.results import FrameRecord, StreamResult
from tta_restore.engine.evaluate.stream import evaluate_stream
from tta_restore.models import as_restorer, create_model

RESULTS = Path(__file__).parent / "results"
STREAM = {"rounds": 20, "size": 128}
METHODS: dict[str, Any] = {
    "recommended": adapters.recommended,
    "recommended, 48 steps": partial(adapters.recommended, steps=48),
    "recommended, 8 steps": partial(adapters.recommended, steps=8),
    "self-ensemble": adapters.SelfEnsemble,
    "siam-ctta": partial(adapters.SiamCTTA, select="all"),
    "tent": adapters.Tent,
    "tent-literal": partial(adapters.Tent, variant="official"),
}


def row(result: StreamResult, name: str) -> dict[str, Any]:
    """Gains over the source in dB: mean, per lens, the worst 50 and 200 frames in a row and where they begin, all."""
    frames = len(result.of(name))
    return {
        "frames": frames,
        "gain": result.gain(name, "source").mean,
        "gain_per_lens": {f: result.gain(name, "source", family=f).mean for f in result.families},
        **{f"worst_{n}": result.worst_window(name, "source", n) for n in (50, 200) if n <= frames},
        "cpu_seconds_per_frame": result.cost(name)["cpu_seconds"],
        "date": time.strftime("%Y-%m-%d"),
        "gains": [round(gain, 3) for _, gain in result.gains(name, "source")],
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as text."""
    families = list(next(iter(rows.values()))["gain_per_lens"])
    head = ["dB over the source", *families, "all", "worst 50", "worst 200", "s per frame"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    total = max(found["frames"] for found in rows.values())
    for name, found in rows.items():
        numbers = [*found["gain_per_lens"].values(), found["gain"]]
        worst = [f"{found[key][1]:+.2f}" if key in found else "-" for key in ("worst_50", "worst_200")]
        cells = [*(f"{number:+.2f}" for number in numbers), *worst, f"{found['cpu_seconds_per_frame']:.2f}"]
        name = name if found["frames"] == total else f"{name}, first {found['frames']} frames"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Run the methods named, by default all, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", choices=[[], *METHODS], default=[], metavar="METHOD")
    parser.add_argument("--frames-per-lens", type=int, default=4)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    stream = {"frames_per_lens": options.frames_per_lens, **STREAM}
    source = as_restorer(create_model("lens_unet", checkpoint="specialist").eval())
    frames = defocus.defocus_stream(**stream)
    path = RESULTS / f"long_streams-{len(frames)}.json"
    rows = json.loads(path.read_text())["methods"] if path.exists() else {}
    reference = evaluate_stream(frames, {"source": lambda: adapters.Adapter(source)}, progress=False)
    for name in options.methods or METHODS:
        records: list[FrameRecord] = []

        def save(record: FrameRecord, *_: Any, name: str = name, records: list[FrameRecord] = records) -> None:
            records.append(record)
            if len(records) % (len(frames) // STREAM["rounds"]):
                return
            rows[name] = row(StreamResult((*reference.records, *records)), name)
            facts = {
                "stream": stream,
                "restorer": "lens_unet, specialist",
                "torch": torch.__version__,
                "threads": 1,
                "load": os.getloadavg()[0],
            }
            content = {"facts": facts, "methods": {key: rows[key] for key in METHODS if key in rows}}
            path.write_text(json.dumps(content, indent=1) + "\n")

        evaluate_stream(frames, {name: partial(METHODS[name], source)}, progress=False, on_frame=save)
    print(table({key: rows[key] for key in METHODS if key in rows}))


if __name__ == "__main__":
    main(sys.argv[1:])
