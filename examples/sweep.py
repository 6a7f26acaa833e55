"""Sweep settings of a method on degraded photos, and write a table and a report: `python sweep.py`.

The same on data sets: `tta-restore evaluate --data ... --methods "siam-ctta[ema=0.9]" "siam-ctta[ema=0.99]"`;
the sweeps of CauSiam on its five data sets: `tta-restore reproduce causiam-sweep`.
"""

from __future__ import annotations

import argparse
import itertools

from tta_restore.engine.evaluate.degradations import evaluate_degradations

GRID = {"ema": (0.9, 0.99), "lr": (1e-4, 1e-3)}


def main() -> dict[str, float]:
    """Run all combinations and return the gain of each over the self-ensemble, in dB."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="specialist")
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--out", default="runs/sweep")
    options = parser.parse_args()
    rows = []
    for values in itertools.product(*GRID.values()):
        settings = ",".join(f"{name}={value}" for name, value in zip(GRID, values, strict=True))
        rows.append(f"siam-ctta[{settings}]")
    result = evaluate_degradations(
        options.out, ["noise:10", "lens:disk,2"], model=options.model, methods=rows, seeds=[1], frames=options.frames,
        size=options.size, device="cpu", progress=False,
    )  # fmt: skip
    gains = {row: result.gain(row, "self-ensemble").mean for row in rows}
    best = max(gains, key=lambda row: gains[row])
    print(f"best: {best}, {gains[best]:+.3f} dB over the self-ensemble")
    return gains


if __name__ == "__main__":
    main()
