"""``python -m benchmarks.consistency``: ReblurConsistency compared with its objective alone and with ReblurPairs."""

import sys
import time

import torch

from tta_restore.adapters import ReblurConsistency, ReblurPairs, SelfEnsemble
from tta_restore.data.synthetic import defocus, photos
from tta_restore.metrics import psnr
from tta_restore.models import create_model

BARE = {"null_space_weight": 0.0, "trust_radius": None}
ROWS = {
    "bare, 4 steps, lr 1e-3": (ReblurConsistency, {"steps": 4, "lr": 1e-3, **BARE}),
    "bare, 4 steps, lr 1e-2": (ReblurConsistency, {"steps": 4, "lr": 1e-2, **BARE}),
    "ReblurConsistency": (ReblurConsistency, {}),
    "ReblurConsistency, 4 steps, lr 1e-3": (ReblurConsistency, {"steps": 4, "lr": 1e-3}),
    "ReblurConsistency, 4 steps, lr 1e-2": (ReblurConsistency, {"steps": 4, "lr": 1e-2}),
    "ReblurPairs, 8 steps": (ReblurPairs, {"steps": 8}),
}


def main(chosen: list[str]) -> None:
    """Print a row for each of ``chosen``, by default for all."""
    torch.set_num_threads(1)
    model = create_model("lens_unet", checkpoint="specialist").eval()
    frames = defocus.defocus_stream(defocus.DEV, photos.DEV, frames_per_lens=3, size=128, seed=5)

    def scores(adapter):
        restored = [adapter(frame.blurry[None]).clamp(0, 1) for frame in frames]
        return torch.cat([psnr(y, frame.sharp[None]) for y, frame in zip(restored, frames, strict=True)])

    base = scores(SelfEnsemble(model))
    names = list(dict.fromkeys(frame.family for frame in frames))
    print("| | mean | " + " | ".join(names) + " | worst frame | s per frame |")
    print("|" + "---|" * (len(names) + 4))
    for row in chosen or ROWS:
        method, options = ROWS[row]
        started = time.process_time()
        gain = scores(method(model, **options)) - base
        seconds = (time.process_time() - started) / len(frames)
        families = [f"{float(values.mean()):+.2f}" for values in gain.view(len(names), -1)]
        cells = [f"{float(gain.mean()):+.2f}", *families, f"{float(gain.min()):+.2f}", f"{seconds:.2f}"]
        print(f"| {row} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
