"""One clip by MetaTransfer against a direct transcription of the published procedure: equal results, processor time.

    python -m benchmarks.restore_a_clip          # prints the numbers and writes results/restore_a_clip.json

Both sides start from the same PNG files and networks, draw the same patches and orders, and take the published order
of updates. The transcription decodes the video again for every patch, as the published loader does, scores with numpy,
writes attention out, fuses all five frames to the end where one is used, keeps the usual layout of tensors, and lets
torch.autograd compute gradients that nobody asks for. It is spared what has no influence on the result: ground-truth
frames, copies of the critic for every frame, metrics. Times are processor times of one thread, the two sides in turn in
one process, several times; of each part the least time counts, which is the one that other programs disturbed least.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PillowImage
from torch import nn

from tta_restore import models, ops
from tta_restore.adapters import MetaTransfer
from tta_restore.data.datasets.clips import ImageSequence, stack_frames
from tta_restore.data.datasets.mining import ShiftTables, place_patches
from tta_restore.data.synthetic import photos
from tta_restore.models import RestorerSpec

from .measure import machine

RESULTS = Path(__file__).parent / "results"
RATES = {"lr": 1e-5, "reblur_lr": 1e-5, "discriminator_lr": 1e-5}


class Small(nn.Module):
    """A deblurrer of three convolutions."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(16, 3, 3, padding=1))

    def forward(self, x):
        return x + self.body(x)


def networks(channels: int):
    """Restorer, reblurrer and critic with the same random weights each time."""
    torch.manual_seed(0)
    reblur = models.create_model("video_reblur", base_channels=channels)
    return Small().eval(), reblur.eval(), models.create_model("patch_critic", base_channels=16).eval()


def write_clip(folder: Path, count: int, height: int, width: int) -> list[Path]:
    """A photograph seen by a camera that shakes more and less, with noise."""
    photo = F.interpolate(photos.load("china")[None], size=(height + 40, width + 80), mode="bilinear")
    generator = torch.Generator().manual_seed(0)
    paths = []
    for t in range(count):
        reach = 1 + 2 * round(4 + 4 * math.sin(1.7 * t))
        frame = photo[..., 20 : 20 + height, t % 40 : t % 40 + width]
        frame = F.avg_pool2d(frame, (1, reach), 1, (0, reach // 2), count_include_pad=False)
        frame = (frame + torch.randn(frame.shape, generator=generator) / 255).clamp(0, 1)
        array = (frame[0].permute(1, 2, 0) * 255).round().byte().numpy()
        paths.append(folder / f"{t:05}.png")
        PillowImage.fromarray(array).save(paths[-1])
    return paths


class Clock:
    """Processor seconds by the name of what was done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, name: str):
        start = time.process_time()
        yield
        self.seconds[name] += time.process_time() - start


def decode(path: Path) -> np.ndarray:
    """Float pixels, 0 to 255."""
    with PillowImage.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float32)


def naive_score(crop: np.ndarray) -> float:
    """The four PSNRs, one after the other."""
    pairs = (
        (crop[:-1, 1:], crop[1:, :-1]),
        (crop[:-1], crop[1:]),
        (crop[:-1, :-1], crop[1:, 1:]),
        (crop[:, :-1], crop[:, 1:]),
    )
    total = 0.0
    for one, other in pairs:
        error = np.mean((one / 255.0 - other / 255.0) ** 2)
        total += 100.0 if error == 0 else 20 * math.log10(1 / math.sqrt(error))
    return total


def written_out_attention(q, k, v, attn_mask=None):
    """Softmax of all scores."""
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
    return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ v


def fuse_all_frames(fusion, x):
    """The fusion of the release: every block and the head for all frames, then the middle one."""
    size = (x.shape[-2], x.shape[-1])
    local, regional = fusion.patch_embed(x), fusion.regional_embed(x)
    for block in fusion.layers[0]["blocks"]:
        regional, local = block(regional, local, size)
    return fusion.head(local.transpose(1, 2).unflatten(2, size)).unflatten(0, (-1, 5))[:, 2]


def direct(paths: list[Path], options: argparse.Namespace, draws, clock: Clock) -> torch.Tensor:
    """The published procedure, step by step."""
    restorer, reblur, critic = copy.deepcopy(networks(options.channels))
    reblur.attn3.forward = lambda x: fuse_all_frames(reblur.attn3, x)
    if not options.same_layout:
        reblur._laid_out = lambda x: x
    tops, lefts, (height, width), steps = draws
    items = []
    with clock.timed("mining"):
        for top, left in zip(tops.tolist(), lefts.tolist(), strict=True):
            video = [decode(path) for path in paths]
            place = np.s_[top : top + height, left : left + width]
            candidates = range(2, len(paths) - 2)
            best = min(candidates, key=lambda t: naive_score(video[t][place]))
            crops = [decode(paths[t])[place] for t in range(best - 2, best + 3)]
            items.append(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255)
    groups = [
        {"params": list(reblur.parameters()), "lr": RATES["reblur_lr"]},
        {"params": list(restorer.parameters()), "lr": RATES["lr"]},
    ]
    adam = torch.optim.Adam(groups)
    rmsprop = torch.optim.RMSprop(critic.parameters(), lr=RATES["discriminator_lr"])
    for step in steps:
        clip = items[step.sample][None]
        with clock.timed(f"{step.stage} stage"):
            adam.zero_grad()
            blurred = reblur(clip)
            if step.stage == "reblur":
                real = clip[:, step.real]
                loss = critic(blurred.detach()).mean() - critic(real).mean()
                rmsprop.zero_grad()
                loss.backward()
                rmsprop.step()
                with torch.no_grad():
                    for weight in critic.parameters():
                        weight.clamp_(-0.01, 0.01)
                adversarial = -critic(blurred).mean()
                cycle = F.l1_loss(restorer(blurred.clamp(0, 1)), clip[:, 2])
                (0.99 * adversarial + 0.01 * cycle).backward()
            else:
                F.l1_loss(restorer(blurred.clamp(0, 1).detach()), clip[:, 2]).backward()
            adam.step()
    with clock.timed("restoration"), torch.no_grad():
        return torch.cat([restorer(torch.from_numpy(decode(path)).permute(2, 0, 1)[None] / 255) for path in paths])


def ours(paths: list[Path], options: argparse.Namespace, clock: Clock) -> tuple[torch.Tensor, tuple]:
    """The library, from files to frames, and what it drew at random."""
    adapter = make_adapter(options)
    generator = adapter.state.generator()
    start = time.process_time()
    with clock.timed("decoding"):
        clip = stack_frames(ImageSequence(paths))
    with clock.timed("mining and both stages"):
        report = adapter.adapt(clip)
    with clock.timed("restoration"):
        out = adapter.predict(clip)
    clock.seconds["total"] = time.process_time() - start
    height, width = clip.shape[-2:]
    tops, lefts, size = place_patches(
        height, width, options.patches, options.patch, places="random", generator=generator
    )
    steps = adapter.settings.steps(int(report.metrics["patches"]), 5, generator)
    return out, (tops, lefts, size, steps)


def make_adapter(options: argparse.Namespace) -> MetaTransfer:
    settings = {
        "num_patches": options.patches,
        "patch_size": options.patch,
        "min_sharpness_gain": 0.0,
        "variant": "official",
    }
    return MetaTransfer(*networks(options.channels), spec=RestorerSpec(), **settings, **RATES)


def compare(options: argparse.Namespace):
    """Frames of both sides and of the restorer as it was, and their clocks."""
    clocks = {"published": Clock(), "ours": Clock()}
    attention = F.scaled_dot_product_attention
    with tempfile.TemporaryDirectory() as folder:
        paths = write_clip(Path(folder), options.frames, options.height, options.width)
        out, draws = ours(paths, options, clocks["ours"])
        with torch.no_grad():
            plain = torch.cat([networks(options.channels)[0](x[None]) for x in ImageSequence(paths)])
        F.scaled_dot_product_attention = written_out_attention
        try:
            expected = direct(paths, options, draws, clocks["published"])
        finally:
            F.scaled_dot_product_attention = attention
    return out, expected, plain, clocks


def compared(options: argparse.Namespace) -> dict:
    """Seconds and ratio of one run of both, and that their results are equal."""
    out, expected, plain, clocks = compare(options)
    seconds = {
        "published": dict(clocks["published"].seconds) | {"total": sum(clocks["published"].seconds.values())},
        "ours": dict(clocks["ours"].seconds),
    }
    ratio = seconds["ours"]["total"] / seconds["published"]["total"]
    print(f"{ratio:.3f}", json.dumps(seconds), f"load {os.getloadavg()[0]:.1f}", flush=True)
    return {
        "seconds": seconds,
        "ratio": ratio,
        "largest_difference": float((out - expected).abs().max()),
        "largest_change_by_adaptation": float((out - plain).abs().max()),
    }


def scoring(height: int, width: int, size: int) -> list[dict[str, float]]:
    """Milliseconds per frame for the scores of M crops in three ways."""
    frame = F.interpolate(photos.load("china")[None], size=(height, width), mode="bilinear")[0]
    frame = (frame * 255).round() / 255
    array = (frame.permute(1, 2, 0) * 255).numpy()
    generator = torch.Generator().manual_seed(0)
    rows = []
    for count in (20, 200):
        tops, lefts, sides = place_patches(height, width, count, size, places="random", generator=generator)
        places = list(zip(tops.tolist(), lefts.tolist(), strict=True))
        ways = {
            "naive": lambda places=places: [naive_score(array[t : t + size, s : s + size]) for t, s in places],
            "op": lambda places=places: ops.self_shift_score(
                torch.stack([frame[:, t : t + size, s : s + size] for t, s in places])
            ),
            "integral images": lambda tops=tops, lefts=lefts, sides=sides: ShiftTables(frame).scores(
                tops, lefts, sides
            ),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(3):
            for name, way in ways.items():
                start = time.process_time()
                way()
                taken[name].append((time.process_time() - start) * 1e3)
        rows.append({"crops": count} | {name: sorted(values)[1] for name, values in taken.items()})
    return rows


def main(arguments: list[str]) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--patches", type=int, default=20)
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--channels", type=int, default=4, help="of the reblurrer's first stage, 32 as published")
    parser.add_argument("--repeats", type=int, default=3, help="of both sides (default: %(default)s)")
    parser.add_argument(
        "--same-layout", action="store_true", help="the transcription's reblurrer, too, in the layout of the library"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "restore_a_clip.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warm_up = argparse.Namespace(**vars(options) | {"frames": 6, "height": 96, "width": 96, "patches": 1, "patch": 64})
    compare(warm_up)
    runs = [compared(options) for _ in range(options.repeats)]
    least: dict[str, dict[str, float]] = {}
    for side in ("published", "ours"):
        parts = [name for name in runs[0]["seconds"][side] if name != "total"]
        least[side] = {name: min(run["seconds"][side][name] for run in runs) for name in parts}
        least[side]["total"] = sum(least[side].values())
    row = {
        "settings": {key: value for key, value in vars(options).items() if key != "output"},
        "seconds": least,
        "ratio": least["ours"]["total"] / least["published"]["total"],
        "ratios_of_single_runs": [run["ratio"] for run in runs],
        **{name: max(run[name] for run in runs) for name in ("largest_difference", "largest_change_by_adaptation")},
        "milliseconds_to_score_a_frame": scoring(options.height, options.width, options.patch),
        "load": os.getloadavg()[0],
    }
    print(json.dumps(row, indent=1))
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps({"machine": machine("cpu"), "threads": 1, **row}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
