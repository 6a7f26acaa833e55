"""Trains the small models of the demo from photographs bundled with scikit-image and scikit-learn, nothing downloaded.

Four models, each from one command (``python -m tta_restore train-demo MODEL``):

- ``specialist``: a restorer that knows one lens, the ideal one (``lenses.SOURCE``)
- ``generalist``: the same network on random lenses (``lenses.random_lens``)
- ``lens_estimator``: reads aperture and radius from a blurred picture, trained on the same random lenses
- ``conditioned``: the same restorer told the estimated lens
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from tta_restore import __version__
from tta_restore.data import dead_leaves, lenses, photos
from tta_restore.data.patches import random_patches
from tta_restore.losses import charbonnier
from tta_restore.metrics import psnr
from tta_restore.models.checkpoint import load_checkpoint
from tta_restore.models.lens_estimator import LensEstimate, LensEstimator
from tta_restore.models.lens_unet import ConditionedLensUNet, LensUNet

MARGIN = lenses.KERNEL_SIZE - 1
STEPS = {"specialist": 3000, "generalist": 4000, "lens_estimator": 3500, "conditioned": 3000}


def sharp_bank(generator: torch.Generator, *, size: int = 176, count: int = 512) -> Tensor:
    """Sharp tiles to learn from: `count` crops of the training photographs and as many dead leaves in their colours.

    Shape:
        - output: (2 * count, 3, S, S), uint8
    """
    pictures = []
    for name in photos.TRAIN:
        photo = photos.load(name)[None]
        # smaller copies are sharper than the camera was
        scales = [s for s in (1.0, 0.7, 0.5) if min(photo.shape[-2:]) * s >= size]
        pictures.append([photo if s == 1 else F.interpolate(photo, scale_factor=s, mode="area") for s in scales])
    tiles: list[Tensor] = []
    while len(tiles) < count:
        copies = pictures[len(tiles) % len(pictures)]
        picture = copies[int(torch.randint(len(copies), (), generator=generator))][0]
        top, left = (int(torch.randint(0, n - size + 1, (), generator=generator)) for n in picture.shape[1:])
        tiles.append(picture[:, top : top + size, left : left + size])
    for index in range(count):
        tiles.append(dead_leaves.tile(size, generator, palette=dead_leaves.palette_of(tiles[index])))
    return (torch.stack(tiles) * 255).round().to(torch.uint8)


def train(
    name: str,
    *,
    steps: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    out: Path | None = None,
    progress: bool = True,
    estimator: Path | str = "lens_estimator",
    start: Path | str | None = None,
) -> dict:
    """Train one model of the demo, write its weights and its log, and return the log.

    `start` names weights to continue from, with half the learning rate, instead of new ones; the conditioned restorer
    learns with the weights of `estimator`.

    Raises:
        ValueError: `name` is none of ``STEPS``.
    """
    if name not in STEPS:
        raise ValueError(f"train: expected one of {sorted(STEPS)}, got {name!r}")
    steps = STEPS[name] if steps is None else steps
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial weights
        model, step_loss = _task(name, generator, device, str(estimator))
    if start is not None:
        load_checkpoint(model, start)
    model.to(memory_format=torch.channels_last)  # the faster layout for convolutions on CPUs
    trainable = [p for p in model.parameters() if p.requires_grad]
    rate = 1.2e-3 if start is None else 6e-4
    optimiser = torch.optim.AdamW(trainable, lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda t: min((t + 1) / 100, 0.5 * (1 + math.cos(math.pi * t / steps)) + 1e-3)
    )
    bank = sharp_bank(torch.Generator().manual_seed(seed))
    started, losses, curve = time.perf_counter(), [], []
    with tqdm(total=steps, desc=name, disable=None if progress else True) as bar:
        for step in range(steps):
            loss = step_loss(bank)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trainable, 0.5 if name != "lens_estimator" else 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            if step % 250 == 249:
                curve.append([step + 1, sum(losses[-250:]) / 250])
                bar.set_postfix(loss=f"{curve[-1][1]:.4f}")
            bar.update()
    seconds = time.perf_counter() - started
    model = model.cpu().eval()
    log = {
        "model": name,
        "command": f"python -m tta_restore train-demo {name} --seed {seed} --steps {steps}"
        + (f" --start {Path(start).stem}" if start is not None else ""),
        "seed": seed,
        "steps": steps,
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "device": device,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "tta_restore": __version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": curve,
        "held_out": held_out(model),
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        save_file(state, out / f"{name}.safetensors", metadata={"command": log["command"]})
        (out / f"{name}.json").write_text(json.dumps(log, indent=1) + "\n")
    return log


def _task(name: str, generator: torch.Generator, device: str, estimator: str) -> tuple[nn.Module, Callable]:
    if name == "lens_estimator":
        reader = LensEstimator().to(device)
        return reader, lambda bank: _estimator_loss(reader, bank, generator, device)
    model: nn.Module
    if name == "conditioned":
        model = ConditionedLensUNet()
        load_checkpoint(model.estimator, estimator)
        model.to(device)
    else:
        model = LensUNet().to(device)

    def lens() -> lenses.Lens:
        if name != "specialist":
            return lenses.random_lens(generator)
        low, high = lenses.SOURCE.radius
        ends = sorted((low + (high - low) * torch.rand(2, generator=generator)).tolist())
        return lenses.Lens(lenses.SOURCE.family, lenses.SOURCE.aperture, (ends[0], ends[1]))

    def step_loss(bank: Tensor) -> Tensor:
        # the conditioned restorer reads its lens from the picture and needs one large enough to read from
        count, size = (8, 80) if name != "conditioned" else (4, 112)
        sharp = random_patches(bank, count, size + MARGIN, generator)
        blurry, _, target = lenses.render(sharp, [lens() for _ in range(count)], generator, levels=4, knots=3)
        return charbonnier(model(blurry.to(device)), target.to(device))

    return model, step_loss


def _estimator_loss(model: LensEstimator, bank: Tensor, generator: torch.Generator, device: str) -> Tensor:
    pairs, size = 4, 128
    chosen = [lenses.random_lens(generator) for _ in range(pairs)]
    sharp = random_patches(bank, 2 * pairs, size + MARGIN, generator)
    blurry, radius, _ = lenses.render(sharp, chosen * 2, generator, levels=4, knots=3)
    unit = torch.tensor([lenses.rms_radius(lens.aperture) for lens in chosen])
    estimate = model(blurry.to(device))
    truth = F.interpolate(radius[:, None], size=estimate.radius.shape[-2:], mode="area")[:, 0]
    truth = (truth * unit.repeat(2)[:, None, None]).to(device).clamp(min=0.15)
    # Laplace likelihood: where nothing can be known the network says so instead of guessing the mean with conviction
    error = (estimate.radius.log() - truth.log()).abs()
    size_loss = (error * estimate.confidence - estimate.confidence.log()).mean()
    shapes = aperture_pictures(chosen, unit, model.aperture_size, model.reach).to(device)
    statistics = torch.cat([estimate.statistics, LensEstimate.pool([estimate[:pairs], estimate[pairs:]])])
    drawn, true = model.aperture(statistics).flatten(1), shapes.repeat(3, 1, 1).flatten(1)
    shape_loss = ((drawn - true).square().sum(1) / true.square().sum(1)).mean()
    divergence = (true * (true.clamp(min=1e-7).log() - drawn.clamp(min=1e-7).log())).sum(1).mean()
    return size_loss + 2 * shape_loss + 0.5 * divergence


def aperture_pictures(chosen: list[lenses.Lens], unit: Tensor, size: int, reach: float) -> Tensor:
    """True apertures as the estimator draws them: (L, A, A) at unit root mean square radius, each summing to 1."""
    fine = size * 3
    axis = ((torch.arange(fine, dtype=torch.float32) - (fine - 1) / 2) / (fine / 2)) * reach
    u, v = torch.broadcast_tensors(axis[None, :], axis[:, None])
    pictures = torch.stack([lens.aperture(u * s, v * s) for lens, s in zip(chosen, unit, strict=True)])
    pictures = F.avg_pool2d(pictures[:, None], 3)[:, 0]
    return pictures / pictures.sum((-2, -1), keepdim=True)


@torch.no_grad()
def held_out(model: nn.Module, *, seed: int = 1234, frames_per_lens: int = 8) -> dict:
    """How well a model does on photographs it never saw, through the source lens and the families for development."""
    report = {}
    for lens in (lenses.SOURCE, *lenses.DEV):
        frames = lenses.lens_stream([lens], photos.DEV, frames_per_lens=frames_per_lens, seed=seed)
        blurry, sharp = (torch.stack([getattr(f, key) for f in frames]) for key in ("blurry", "sharp"))
        if isinstance(model, LensEstimator):
            unit = torch.tensor([lenses.rms_radius(lens.aperture)])
            estimate = model(blurry)
            radius = torch.stack([frame.radius for frame in frames])[:, None]
            truth = F.interpolate(radius, size=estimate.radius.shape[-2:], mode="area")[:, 0] * unit
            error = (estimate.radius.log() - truth.clamp(min=0.15).log()).abs()
            true = aperture_pictures([lens], unit, model.aperture_size, model.reach)
            drawn = model.aperture(estimate.statistics)
            report[lens.family] = {
                "log_radius_error": float((error * estimate.confidence).sum() / estimate.confidence.sum()),
                "aperture_error": float(((drawn - true).square().sum((1, 2)) / true.square().sum()).mean()),
            }
        else:
            restored = torch.cat([model(x[None]) for x in blurry]).clamp(0, 1)
            before, after = float(psnr(blurry, sharp).mean()), float(psnr(restored, sharp).mean())
            report[lens.family] = {"input": before, "restored": after, "gain": after - before}
    return report
