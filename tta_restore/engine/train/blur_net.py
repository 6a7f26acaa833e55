"""Train the network that reads blur: ``python -m tta_restore.engine.train.blur_net --photos FOLDER``.

It learns from photographs as they are, of which many hold soft content: what the lens of a camera blurred has to be
told from what the photographer left out of focus. The bundled ones are too few; the wallpapers of Linux distributions
are many and free.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core.progress import ProgressBar
from tta_restore.data.synthetic import photos
from tta_restore.degradations import Blur, Clip, Compose, Jpeg, Noise, Quantize, Resize
from tta_restore.degradations.blur_statistics import BlurNet, blur_statistics
from tta_restore.engine.train.write_weights import write_weights

__all__ = ["Sample", "find_photos", "fit_blur_net", "samples"]

_RADIUS = (0.3, 5.0)  # of a blur in pixels
_VARIED_SHARE, _VARIATION = 0.5, 0.7  # of blurs that vary over the frame, and by how much their log radius does at most
_BLURRED = 0.45  # radius in pixels from which a frame counts as blurred
_BLURRED_SHARE = 0.6
_SIDES, _LARGE_SIDES, _LARGE_SHARE = (40, 129), (129, 400), 0.2  # of a frame in pixels
_MAX_CROPS = 5  # of which the smoothest or the most detailed is taken
_LENSES = ("gaussian", "disk", "random")
_KERNELS = ("bicubic", "area", "bilinear")
_RADIUS_WEIGHT = 0.3  # of the radius in the loss
_FILES = (".jpg", ".jpeg", ".png", ".webp")
_LEAST_BYTES = 200_000  # of a file: smaller ones are thumbnails
_COPY = re.compile(r"(_?\d+x\d+)?(-[dl])?\.\w+$")  # what names of one picture at several sizes differ by


@dataclass(frozen=True)
class Sample:
    """Statistics of the tiles of a frame (T, F), and its mean blur radius in pixels, 0 for none."""

    statistics: Tensor
    radius: float


def find_photos(folders: Sequence[Path]) -> list[Path]:
    """Return the photographs in folders, of each picture the largest file."""
    files = [file for folder in folders for file in folder.rglob("*") if file.suffix.lower() in _FILES]
    files = [file for file in files if file.is_file() and file.stat().st_size >= _LEAST_BYTES]
    found: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: (-file.stat().st_size, str(file))):
        inside = file.parts[: file.parts.index("contents")] if "contents" in file.parts else ()
        found.setdefault(inside[-1] if inside else _COPY.sub("", file.name), file)
    return list(found.values())


def samples(photo: Tensor, count: int, generator: torch.Generator) -> Iterator[Sample]:
    """Yield frames made of a sharp photograph: blurred or not, reduced or not, with noise and JPEG compression.

    Shape:
        - photo: (3, H, W) in [0, 1]
    """
    uniform = _Uniform(generator)
    for _ in range(count):
        scale = uniform.integer(1, 4)
        side = uniform.integer(*(_LARGE_SIDES if uniform() < _LARGE_SHARE else _SIDES))
        side = min(side, min(photo.shape[-2:]) // scale)
        if side < _SIDES[0]:
            continue
        sharp = _crop(photo, side * scale, uniform)
        gray = uniform() < 0.15
        if gray:
            sharp = sharp.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        radius = uniform.logarithmic(*_RADIUS) if uniform() < _BLURRED_SHARE else 0.0
        level, noise = uniform(), 0.0
        if level >= 0.2:
            noise = uniform.between(0.0, 3.0) if level < 0.65 else uniform.logarithmic(3.0, 40.0)
        jpeg = 100
        if uniform() < 0.3:
            jpeg = uniform.integer(15, 95) if uniform() < 0.5 else uniform.integer(95, 99)
        if radius:
            sharp, radius = _blurred(sharp, radius * scale, uniform)
        camera = _camera(scale, noise, gray, jpeg, uniform)
        frame = camera.apply(sharp, camera.sample(generator, 1), generator)
        yield Sample(blur_statistics(frame, jpeg), radius / scale)


def fit_blur_net(
    net: BlurNet, found: Sequence[Sample], generator: torch.Generator, *, steps: int = 5000
) -> list[dict[str, float]]:
    """Train with the likelihood of whether tiles are blurred, and of the log radius of those that are.

    Returns:
        The loss for every tenth of the steps.
    """
    statistics = torch.cat([sample.statistics for sample in found])
    radius = torch.cat([torch.full((len(sample.statistics),), sample.radius) for sample in found])
    net.center.copy_(statistics.mean(0))
    net.spread.copy_(statistics.std(0).clamp(min=1e-3))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    blurred, log_radius = (radius > _BLURRED).float(), radius.clamp(min=_RADIUS[0]).log()
    net.train()
    records = []
    for step in range(1, steps + 1):
        rows = torch.randint(0, len(statistics), (256,), generator=generator)
        odds, mean, log_scale = net(statistics[rows])
        error = (mean - log_radius[rows]).abs() / log_scale.exp() + log_scale
        loss = F.binary_cross_entropy_with_logits(odds, blurred[rows])
        loss = loss + _RADIUS_WEIGHT * (error * blurred[rows]).sum() / blurred[rows].sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(steps // 10, 1) == 0:
            records.append({"step": step, "loss": loss.item()})
            print(json.dumps(records[-1]), flush=True)  # noqa: T201
    net.eval()
    return records


class _Uniform:
    """Uniform random numbers."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __call__(self) -> float:
        return torch.rand((), generator=self.generator).item()

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self()

    def logarithmic(self, low: float, high: float) -> float:
        return math.exp(self.between(math.log(low), math.log(high)))

    def integer(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))


def _crop(photo: Tensor, side: int, uniform: _Uniform) -> Tensor:
    """The smoothest or the most detailed of a few crops, (1, 3, S, S)."""
    crops = []
    for _ in range(uniform.integer(1, _MAX_CROPS)):
        top, left = (uniform.integer(0, length - side) for length in photo.shape[-2:])
        crops.append(photo[None, :, top : top + side, left : left + side])
    detail = [float(crop.diff(dim=-1).abs().mean() + crop.diff(dim=-2).abs().mean()) for crop in crops]
    return crops[detail.index((min if uniform() < 0.5 else max)(detail))]


def _blurred(sharp: Tensor, radius: float, uniform: _Uniform) -> tuple[Tensor, float]:
    """A blurred image, and its mean radius."""
    lens = _LENSES if uniform() < 0.6 else _LENSES[uniform.integer(0, 1)]
    varied = uniform() < _VARIED_SHARE
    reach = math.exp(uniform.between(0.0, _VARIATION / 2)) if varied else 1.0
    blur = Blur(radius=(radius / reach, radius * reach), lens=lens, varying_prob=float(varied))
    parameters = blur.sample(uniform.generator, 1)
    middle = 0.0 if parameters.position is None else float(parameters.position.mean())
    first, last = float(parameters.radius[0, 0]), float(parameters.radius[0, -1])
    return blur.apply(sharp, parameters), first + middle * (last - first)


def _camera(scale: int, noise: float, gray: bool, jpeg: int, uniform: _Uniform) -> Compose:
    items: list[Any] = []
    if scale > 1:
        items.append(Resize(scale, _KERNELS[:1] if uniform() < 0.6 else _KERNELS))
    if noise:
        items.append(Noise(read_std=(noise / 255, noise / 255), channel_correlation=float(gray)))
    items += [Clip(), Quantize()]
    return Compose([*items, Jpeg(quality=(jpeg, jpeg))] if jpeg < 100 else items)


def main(arguments: list[str] | None = None) -> None:
    """Train, and write the weights beside a log with command, seed and losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, nargs="+", default=[], help="folders of photographs beside the bundled")
    parser.add_argument("--samples", type=int, default=80, help="frames per photograph")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="file of the weights, .safetensors; .json gets the log",
    )
    options = parser.parse_args(arguments)
    for folder in options.photos:
        if not folder.is_dir():
            parser.error(f"--photos: {folder} is no folder")
    more = find_photos(options.photos)
    if options.photos and not more:
        parser.error(f"--photos: no photographs ({', '.join(_FILES)} of at least {_LEAST_BYTES // 1000} kB) in there")
    generator, start = torch.Generator().manual_seed(options.seed), time.time()
    names = [*photos.TRAIN, *more]
    found: list[Sample] = []
    for name in ProgressBar(names, desc="photographs", unit="photo"):
        found += samples(photos.load(name), options.samples, generator)
        photos.load.cache_clear()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)  # initialization and dropout
        net = BlurNet()
        records = fit_blur_net(net, found, generator)
    folders = "".join(f" {folder.name}" for folder in options.photos)
    log = {
        "command": "python -m tta_restore.engine.train.blur_net"
        + (f" --photos{folders}" if folders else "")
        + f" --samples {options.samples} --seed {options.seed} --out {options.out.name}",
        "seed": options.seed,
        "photographs": len(names),
        "samples": len(found),
        "records": records,
    }
    write_weights(net, options.out, log, start=start)


if __name__ == "__main__":
    main()
