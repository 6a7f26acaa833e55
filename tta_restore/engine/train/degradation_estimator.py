"""Train the network that reads noise and blur: ``python -m tta_restore.engine.train.degradation_estimator``.

The samples are drawn once, and the network is trained on their statistics many times.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore.data.datasets.mining import random_patches
from tta_restore.data.synthetic import dead_leaves, photos
from tta_restore.data.synthetic.soften import soften
from tta_restore.degradations import Blur, Clip, Jpeg, Noise, Quantize, Resize
from tta_restore.degradations import lens as optics
from tta_restore.degradations.statistics import StatisticsNet, frame_statistics
from tta_restore.engine.train.write_weights import write_weights
from tta_restore.models import create_model
from tta_restore.models.defocus.estimator import DefocusEstimator

__all__ = ["Batch", "PairSampler", "collect", "fit_statistics_net"]

_TILE, _PATCH, _MARGIN = 224, 96, 8
_SHARPEST = 0.25  # pixels; smaller blur radii count as none
_LEAST_NOISE = 0.3 / 255  # rounding to 8 bits
_SOFT, _WHOLLY_SOFT = 0.6, 0.1  # fractions of scenes of which a part, or everything, is inherently soft


@dataclass(frozen=True)
class Batch:
    """Degraded images (B, 3, H, W), JPEG qualities that are known (B,), and targets (B, 2): log radius, log noise."""

    image: Tensor
    quality: Tensor
    target: Tensor


class PairSampler:
    """Sharp photographs and dead leaves in their colors, and their degradation with known parameters.

    Args:
        generator: source of all randomness.
        count: tiles of photographs; half as many are dead leaves.
        pupils: pupil functions of random lenses.
    """

    def __init__(self, generator: torch.Generator, *, count: int = 96, pupils: int = 384) -> None:
        self.generator = generator
        sharp = _sharp_tiles(generator, count)
        soft = [soften(part.float() / 255, generator, share=1.0) for part in sharp.split(16)]
        self.tiles = torch.cat([sharp, (torch.cat(soft) * 255).round().to(torch.uint8)], 1)
        drawn = [optics.random_lens(generator, radius=(1.0, 1.0), tails=0.2) for _ in range(pupils)]
        shapes = torch.cat([_named_pupils(), optics.rasterize_pupils(drawn)])
        self.blurs = [Blur(radius=(0.12, 5.0), lens=shapes, varying_prob=prob, levels=3) for prob in (0.0, 1.0)]
        self.noise = Noise(read_std=(0.2 / 255, 60 / 255), shot=(0.0, 0.02))
        self.jpeg = Jpeg(quality=(8.0, 96.0), subsampling=("4:2:0", "4:2:0", "4:4:4"), prob=0.5)

    def batch(self, count: int) -> Batch:
        """Draw a batch; a quarter of it is seen through a downscaling by two, the blur of another quarter varies."""
        few = count // 4
        parts = [self._blurred(count - 2 * few, 1, 0), self._blurred(few, 1, 1), self._blurred(few, 2, 0)]
        image, radius = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        image, std = self._noisy(image)
        image = Quantize().apply(image.clamp(0, 1), Quantize().sample(self.generator, count))
        jpeg = self.jpeg.sample(self.generator, count)
        image = self.jpeg.apply(image, jpeg, self.generator)
        # some files were compressed once and changed since: their compression is not known
        known = torch.where(self._rand(count) < 0.15, torch.full((count,), 100.0), jpeg.quality)
        target = torch.stack([radius.clamp(min=_SHARPEST).log(), std.clamp(min=_LEAST_NOISE).log()], 1)
        return Batch(image, known, target)

    def _blurred(self, count: int, scale: int, varies: int) -> tuple[Tensor, Tensor]:
        sharp = self._scenes(count, scale * (_PATCH + 2 * _MARGIN))
        blur = self.blurs[varies]
        parameters = blur.sample(self.generator, count)
        blurred = blur.apply(sharp, parameters)
        radius = parameters.radius[:, 0] / scale
        if parameters.position is not None:
            middle = parameters.position.mean((1, 2))
            radius = (1 - middle) * parameters.radius[:, 0] + middle * parameters.radius[:, -1]
        if scale > 1:
            resize = Resize(scale, ("bicubic", "area", "bilinear"))
            blurred = resize.apply(blurred, resize.sample(self.generator, count)).clamp(0, 1)
        return blurred[..., _MARGIN:-_MARGIN, _MARGIN:-_MARGIN], radius

    def _scenes(self, count: int, size: int) -> Tensor:
        sharp, soft = random_patches(self.tiles, count, size, self.generator).chunk(2, dim=1)
        field = torch.randn(count, 1, 6, 6, generator=self.generator)
        field = F.interpolate(field, size=(size, size), mode="bicubic", align_corners=True)
        mask = torch.sigmoid(12 * (field + torch.randn(count, 1, 1, 1, generator=self.generator) * 0.5))
        kind = self._rand(count)[:, None, None, None]
        mask = torch.where(kind < _WHOLLY_SOFT, torch.ones_like(mask), mask)
        mask = torch.where(kind < _SOFT + _WHOLLY_SOFT, mask, torch.zeros_like(mask))
        contrast = 0.4 + 0.6 * self._rand(count)[:, None, None, None]
        level = sharp.mean((1, 2, 3), keepdim=True)
        return level + contrast * (sharp + mask * (soft - sharp) - level)

    def _noisy(self, image: Tensor) -> tuple[Tensor, Tensor]:
        count = len(image)
        parameters = self.noise.sample(self.generator, count)
        clean, without_shot = self._rand(count) < 0.25, self._rand(count) < 0.65
        read = torch.where(clean, self._rand(count) / 255, parameters.read_std)
        shot = torch.where(without_shot | clean, torch.zeros(count), parameters.shot)
        grain = torch.where(self._rand(count) < 0.15, 0.7 * self._rand(count), torch.zeros(count))
        chosen = type(parameters)(read, shot, grain)
        std = (read.square() + shot * image.mean((1, 2, 3))).sqrt()
        return Clip().apply(self.noise.apply(image, chosen, self.generator), Clip().sample(self.generator, count)), std

    def _rand(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator)


def collect(
    sampler: PairSampler, net: StatisticsNet, count: int, *, minutes: float | None = None, batch_size: int = 32
) -> tuple[Tensor, Tensor]:
    """Draw samples, and return their statistics (N, F) and targets (N, 2).

    Args:
        sampler: source of the samples.
        net: network that the statistics are for.
        count: number of samples.
        minutes: time limit, after which fewer samples are returned; None for no limit.
        batch_size: samples per call of the network.
    """
    statistics, targets, start = [], [], time.time()
    while len(statistics) * batch_size < count and (minutes is None or time.time() - start < 60 * minutes):
        batch = sampler.batch(batch_size)
        statistics.append(frame_statistics(batch.image, batch.quality, net))
        targets.append(batch.target)
        if len(statistics) % 16 == 0:
            done = {"samples": len(statistics) * batch_size, "seconds": round(time.time() - start, 1)}
            print(json.dumps(done), flush=True)  # noqa: T201
    return torch.cat(statistics), torch.cat(targets)


def fit_statistics_net(
    net: StatisticsNet, statistics: Tensor, targets: Tensor, generator: torch.Generator, *, steps: int = 3000
) -> list[dict[str, float]]:
    """Train with the Laplace likelihood of the logarithms of blur radius and noise level.

    Returns:
        Records for every tenth of the steps, with the loss on the training samples and, on the last tenth of the
        samples, which is held out, the loss and the mean absolute errors of both logarithms.
    """
    held = len(statistics) // 10
    train, test = slice(0, len(statistics) - held), slice(len(statistics) - held, None)
    net.center.copy_(statistics[train].mean(0))
    net.spread.copy_(statistics[train].std(0).clamp(min=1e-3))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    records = []
    for step in range(1, steps + 1):
        rows = torch.randint(0, len(statistics) - held, (256,), generator=generator)
        loss = _laplace(net(statistics[rows]), targets[rows])[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(steps // 10, 1) == 0:
            net.eval()
            with torch.no_grad():
                held_out, errors = _laplace(net(statistics[test]), targets[test])
            net.train()
            blur, noise = errors.mean(0).tolist()
            numbers = {"loss": loss.item(), "held_out": held_out.item(), "blur_error": blur, "noise_error": noise}
            records.append({"step": step} | numbers)
            print(json.dumps(records[-1]), flush=True)  # noqa: T201
    net.eval()
    return records


def _laplace(read: tuple[Tensor, Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_scale = read
    error = (mean - target).abs()
    return (error / log_scale.exp() + log_scale).mean(), error


def main(arguments: list[str] | None = None) -> None:
    """Train, and write the weights beside a log with command, seed and losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--minutes", type=float, help="time limit for drawing samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="file of the weights, .safetensors; .json gets the log",
    )
    options = parser.parse_args(arguments)
    generator, start = torch.Generator().manual_seed(options.seed), time.time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)  # initialization and dropout
        net = StatisticsNet()
        defocus = create_model("lens_estimator", checkpoint="lens_estimator")
        assert isinstance(defocus, DefocusEstimator)  # noqa: S101
        net.window_net.load_state_dict(defocus.window_net.state_dict())
        statistics, targets = collect(PairSampler(generator), net, options.samples, minutes=options.minutes)
        records = fit_statistics_net(net, statistics, targets, generator)
    log = {
        "command": "python -m tta_restore.engine.train.degradation_estimator"
        f" --samples {len(statistics)} --seed {options.seed} --out {options.out.name}",
        "seed": options.seed,
        "samples": len(statistics),
        "records": records,
    }
    write_weights(net, options.out, log, start=start)


def _sharp_tiles(generator: torch.Generator, count: int) -> Tensor:
    """Crops of the training photographs at several scales, and dead leaves in their colors, uint8."""
    copies = []
    for name in photos.TRAIN:
        photo = photos.load(name)[None]
        # smaller copies are sharper than the camera was
        scales = [scale for scale in (1.0, 0.7, 0.5) if min(photo.shape[-2:]) * scale >= _TILE]
        shrunk = [photo if s == 1 else F.interpolate(photo, scale_factor=s, mode="area") for s in scales]
        copies.append([image[0] for image in shrunk])
    tiles: list[Tensor] = []
    while len(tiles) < count:
        choices = copies[len(tiles) % len(copies)]
        image = choices[int(torch.randint(len(choices), (), generator=generator))]
        top, left = (int(torch.randint(0, side - _TILE + 1, (), generator=generator)) for side in image.shape[1:])
        tiles.append(image[:, top : top + _TILE, left : left + _TILE])
    palettes = [dead_leaves.palette_of(tile) for tile in tiles[: count // 2]]
    tiles += [dead_leaves.tile(_TILE, generator, palette=palette) for palette in palettes]
    return (torch.stack(tiles) * 255).round().to(torch.uint8)


def _named_pupils() -> Tensor:
    """Disks and Gaussians, which cameras show most often, as a third of the pupil functions."""
    shapes = [optics.Lens("disk", optics.disk, (1.0, 1.0)), optics.Lens("gaussian", optics.gaussian, (1.0, 1.0))]
    return optics.rasterize_pupils(shapes).repeat(96, 1, 1)


if __name__ == "__main__":
    main()
