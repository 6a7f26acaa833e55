"""Does training on misaligned pairs by the framework beat a plain pixel loss? `python -m benchmarks.misaligned_pairs`.

Generated misaligned pairs of the training photographs, one small restorer, the same pairs, steps and seeds for all:
``pixel`` compares with the misaligned sharp image as it is, ``framework`` is the published objective with a flow
estimator that has no weights, ``known flow`` warps the sharp image by the true flow: what perfect flow would give.
Measured on held-out aligned pairs of photographs that nothing was trained or chosen on.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from tta_restore.data.datasets.misaligned import GeneratedPairs
from tta_restore.data.synthetic import defocus, photos
from tta_restore.degradations import lens as optics
from tta_restore.engine.demo.train import sharp_bank
from tta_restore.engine.train.config import MisalignedSettings, TrainingRun
from tta_restore.engine.train.misaligned import train_misaligned
from tta_restore.metrics import psnr
from tta_restore.models.defocus.unet import DefocusUNet
from tta_restore.models.jdrl import JDRLReblur
from tta_restore.models.optical_flow import LucasKanade

WIDTHS = (24, 32, 48)


def lens(generator):
    low, high = defocus.SOURCE.radius
    ends = (low + (high - low) * torch.rand(2, generator=generator)).sort().values.tolist()
    return optics.Lens("disk", optics.disk, (ends[0], ends[1]))


def settings(variant, steps):
    own = {
        "pixel": {"flow": "pixel"},
        "framework": {"warm_up": steps // 3},
        "known flow": {"flow": "given", "sigma": None, "warm_up": steps},
    }[variant]
    return MisalignedSettings(lr=1e-3, **own)


def held_out(restorer):
    """PSNR of every photograph, in dB: blurry, restored."""
    rows = {}
    for name in photos.TEST:
        frames = defocus.defocus_stream([defocus.SOURCE], (name,), frames_per_lens=3, size=160, seed=77)
        with torch.no_grad():
            before = [float(psnr(frame.blurry[None], frame.sharp[None])) for frame in frames]
            after = [float(psnr(restorer(f.blurry[None]).clamp(0, 1), f.sharp[None])) for f in frames]
        rows[name] = (statistics.mean(before), statistics.mean(after))
    return rows


def train(variant, seed, steps, bank):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        restorer, reblur = DefocusUNet(widths=WIDTHS), JDRLReblur(width=8)
    source = GeneratedPairs(bank, size=80, lens=lens)
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(Path(folder), steps=steps, save_every=steps, draw_every=0, seed=seed, progress=False)
        flow = LucasKanade(iterations=3)
        own = settings(variant, steps)
        start = time.process_time()
        objective = train_misaligned(restorer, source, run, reblur=reblur, flow=flow, settings=own)
    return held_out(objective.restorer), time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=["pixel", "framework", "known flow"])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bank = sharp_bank(torch.Generator().manual_seed(0), size=128, count=96)
    results = []
    for seed in options.seeds:
        for variant in options.variants:
            rows, seconds = train(variant, seed, options.steps, bank)
            before, after = (statistics.mean(row[i] for row in rows.values()) for i in (0, 1))
            results.append({"variant": variant, "seed": seed, "photos": rows, "seconds": seconds})
            print(f"seed {seed} {variant:11} {before:6.2f} -> {after:6.2f} dB   {seconds:5.0f} s", flush=True)
            if options.output:
                options.output.write_text(json.dumps({"steps": options.steps, "results": results}, indent=1) + "\n")
    print(
        f"\ndB over the blurry input, mean of seeds {options.seeds}; {options.steps} steps, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'photograph':14}" + "".join(f"{variant:>13}" for variant in options.variants))
    for name in (*photos.TEST, "all"):
        line = f"{name:14}"
        for variant in options.variants:
            gains = [
                row[1] - row[0]
                for result in results
                if result["variant"] == variant
                for photo, row in result["photos"].items()
                if name in (photo, "all")
            ]
            line += f"{statistics.mean(gains):13.2f}"
        print(line)


if __name__ == "__main__":
    main()
