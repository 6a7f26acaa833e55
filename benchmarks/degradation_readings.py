"""Read against true degradations: ``python -m benchmarks.degradation_readings --photos dev``.

Crops of photographs are degraded with known parameters, and the estimator reads them blind. Written are a JSON
file with every reading, a table, and a picture: read against true, with the uncertainty that the estimator states.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import time
from pathlib import Path

import torch

from tta_restore.data.synthetic import photos
from tta_restore.degradations import Blur, Clip, Compose, Estimator, Jpeg, Noise, Quantize, Reading, Resize

RESULTS = Path(__file__).parent / "results"
LENSES = ("gaussian", "disk", "ring", "hexagon", "cat_eye", "triangle")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", choices=("dev", "test"), default="dev")
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="PNG or SVG file to draw the curves into")
    parser.add_argument("--out", type=Path, help="JSON file; benchmarks/results/degradation_readings-PHOTOS.json")
    options = parser.parse_args(arguments)
    names = photos.DEV if options.photos == "dev" else photos.TEST
    estimator, generator = Estimator(num_candidates=1), torch.Generator().manual_seed(options.seed)
    records, start = [], time.process_time()
    for index in range(options.frames):
        frame, true = draw(names[index % len(names)], options.size, generator)
        records.append({"photo": names[index % len(names)], **true, **read(estimator.read(frame))})
    seconds = (time.process_time() - start) / options.frames
    summary = summarize(records)
    print(table(summary))
    print(f"{seconds:.2f} processor seconds per frame of {options.size} x {options.size}, drawing included")
    settings = {name: str(value) for name, value in vars(options).items() if name not in ("picture", "out")}
    content = {"date": str(datetime.date.today()), "machine": platform.machine(), "settings": settings}
    out = options.out or RESULTS / f"degradation_readings-{options.photos}.json"
    out.write_text(json.dumps(content | {"summary": summary, "frames": records}, indent=1) + "\n")
    if options.picture:
        plot(records, options.picture)


def draw(name: str, size: int, generator: torch.Generator) -> tuple[torch.Tensor, dict]:
    """Degrade a random crop: a third each of blur, noise and JPEG is missing; a quarter of the frames is small."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    scale = 2 if uniform(0, 1) < 0.25 else 1
    photo, side = photos.load(name), min(size * scale, *photos.load(name).shape[1:])
    top, left = (int(uniform(0, length - side + 0.999)) for length in photo.shape[1:])
    radius = math.exp(uniform(math.log(0.4), math.log(4.5))) if uniform(0, 1) < 0.67 else 0.0
    noise = math.exp(uniform(math.log(1), math.log(50))) if uniform(0, 1) < 0.67 else 0.5
    shot = 0.01 * uniform(0, 1) if uniform(0, 1) < 0.2 else 0.0
    quality = round(uniform(10, 95)) if uniform(0, 1) < 0.5 else 100
    lens = LENSES[int(uniform(0, len(LENSES) - 1e-6))]
    items = [Blur(radius=radius * scale, lens=lens)] if radius else []
    items += [Resize(scale)] if scale > 1 else []
    items += [Noise(noise / 255, shot), Clip(), Quantize()] + ([Jpeg(quality)] if quality < 100 else [])
    camera = Compose(items)
    crop = photo[None, :, top : top + side, left : left + side]
    frame = camera.apply(crop, camera.sample(generator, 1), generator)
    total = math.sqrt((noise / 255) ** 2 + shot * float(crop.mean()))
    true = {"blur": radius, "noise": 255 * total, "quality": quality, "lens": lens, "scale": scale, "shot": shot}
    return frame, true | {"mean": float(frame.mean())}


def read(reading: Reading) -> dict:
    mean = reading.mean
    return {
        "read_blur": mean["blur_radius"],
        "blur_std": float(reading.blur[1]),
        "read_even_blur": reading.with_even_blur().mean["blur_radius"],
        "log_odds_of_blur": float(reading.even_blur[0]),
        "read_noise": 255 * mean["noise_std"],
        "noise_std": float(reading.noise[1]),
        "read_shot": mean["noise_shot"],
        "read_quality": mean["jpeg_quality"],
    }


def total_noise(record: dict) -> float:
    """Read noise and photon noise at the brightness of the frame, of 255."""
    return 255 * math.sqrt((record["read_noise"] / 255) ** 2 + record["read_shot"] * record["mean"])


def summarize(records: list[dict]) -> dict[str, dict[str, float]]:
    """Errors of the logarithm of blur and noise, and of the quality, by condition."""
    conditions = {
        "all": records,
        "blurred (radius at least 0.7)": [r for r in records if r["blur"] >= 0.7],
        "blurred, noise below 4": [r for r in records if r["blur"] >= 0.7 and r["noise"] < 4],
        "blurred, no JPEG": [r for r in records if r["blur"] >= 0.7 and r["quality"] == 100],
        "sharp": [r for r in records if r["blur"] == 0],
        "noisy (at least 3)": [r for r in records if r["noise"] >= 3],
        "noisy, no JPEG": [r for r in records if r["noise"] >= 3 and r["quality"] == 100],
        "JPEG": [r for r in records if r["quality"] < 100],
        "half size": [r for r in records if r["scale"] == 2],
    }
    found = {}
    for name, rows in conditions.items():
        if not rows:
            continue
        blur = torch.tensor([math.log(max(r["read_blur"], 0.3) / max(r["blur"], 0.3)) for r in rows])
        even = torch.tensor([math.log(max(r["read_even_blur"], 0.3) / max(r["blur"], 0.3)) for r in rows])
        told = [(r["log_odds_of_blur"] > 0) == (r["blur"] > 0) for r in rows if r["blur"] == 0 or r["blur"] >= 0.7]
        noise = torch.tensor([math.log(max(total_noise(r), 0.5) / max(r["noise"], 0.5)) for r in rows])
        stated = torch.tensor([[r["blur_std"], r["noise_std"]] for r in rows])
        inside = torch.stack([blur.abs() < stated[:, 0], noise.abs() < stated[:, 1]]).float().mean(1)
        found[name] = {
            "frames": len(rows),
            "blur_error": float(blur.abs().mean()),
            "blur_bias": float(blur.mean()),
            "blur_within_std": float(inside[0]),
            "even_blur_error": float(even.abs().mean()),
            "even_blur_bias": float(even.mean()),
            "blur_told_from_none": sum(told) / len(told),
            "noise_error": float(noise.abs().mean()),
            "noise_bias": float(noise.mean()),
            "noise_within_std": float(inside[1]),
            "quality_exact": sum(abs(r["read_quality"] - r["quality"]) <= 1 for r in rows) / len(rows),
        }
    return found


def table(summary: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(summary.values())))
    lines = [f"{'':32}" + "".join(f"{column:>18}" for column in columns)]
    for name, row in summary.items():
        lines.append(f"{name:32}" + "".join(f"{row[column]:18.2f}" for column in columns))
    return "\n".join(lines)


def plot(records: list[dict], path: Path) -> None:
    """Read against true: blur, noise, JPEG quality."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), constrained_layout=True)
    kinds = (
        ("blur", "blur_std", 0.3, "blur radius (RMS, pixels)", "noise", "noise std (of 255)"),
        ("noise", "noise_std", 0.5, "noise std (of 255)", "blur", "blur radius (pixels)"),
    )
    for axis, (name, deviation, floor, label, shade, shade_label) in zip(axes, kinds, strict=False):
        true = [max(r[name], floor) for r in records]
        found = [max(r[f"read_{name}"], floor) for r in records]
        if name == "noise":
            found = [total_noise(r) for r in records]
        low = [value * (1 - math.exp(-r[deviation])) for value, r in zip(found, records, strict=True)]
        high = [value * (math.exp(r[deviation]) - 1) for value, r in zip(found, records, strict=True)]
        axis.errorbar(true, found, yerr=[low, high], fmt="none", ecolor="0.75", elinewidth=0.8, zorder=1)
        dots = axis.scatter(
            true, found, c=[max(r[shade], 0.3) for r in records], s=16, cmap="viridis", norm="log", zorder=2
        )
        figure.colorbar(dots, ax=axis, label=shade_label)
        span = [floor * 0.9, max(*true, *found) * 1.1]
        axis.plot(span, span, color="0.3", linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel=f"true {label}", ylabel="read", title=label, xlim=span, ylim=span)
        marks = [mark for mark in (0.3, 0.5, 1, 2, 4, 8, 16, 32) if span[0] <= mark <= span[1]]
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(FixedLocator(marks))
            side.set_minor_locator(NullLocator())
            side.set_major_formatter("{x:g}")
    compressed = [(r["quality"], r["read_quality"]) for r in records]
    axes[2].scatter(*zip(*compressed, strict=True), s=16)
    axes[2].plot([0, 100], [0, 100], color="0.3", linewidth=1)
    axes[2].set(xlabel="true JPEG quality (100: none)", ylabel="read", title="JPEG quality")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
