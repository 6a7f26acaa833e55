"""Training of the shipped models on photographs bundled with scikit-image and scikit-learn; nothing is downloaded.

Each from one command (``python -m tta_restore train-demo MODEL``):

- ``specialist``: a restorer trained on one lens, the ideal one (``defocus.SOURCE``)
- ``generalist``: the same network on random lenses (``optics.random_lens``)
- ``lens_estimator``: reads aperture and radius from blurred images, trained on random lenses and some without an edge
- ``conditioned``: the same restorer with the estimated lens as an input
- ``denoiser`` (noise of 15/255), ``jpeg_cleaner`` (quality 30), ``upscaler`` (2x bicubic): small restorers of one
  degradation each
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tta_restore import __version__
from tta_restore._core.progress import ProgressBar
from tta_restore.data.datasets.mining import random_patches
from tta_restore.data.synthetic import dead_leaves, defocus, photos
from tta_restore.degradations import Clip, Compose, Jpeg, Noise, Quantize, Resize
from tta_restore.degradations import lens as optics
from tta_restore.engine.run.device import resolve_device
from tta_restore.engine.run.outputs import expect_folder, locks_output
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train.defocus_estimator import fit_estimator
from tta_restore.losses import charbonnier_loss
from tta_restore.metrics import psnr
from tta_restore.models import create_model
from tta_restore.models.defocus.estimator import DefocusEstimator
from tta_restore.models.defocus.unet import ConditionedDefocusUNet, DefocusUNet

__all__ = ["DEGRADED", "MARGIN", "STEPS", "held_out", "held_out_degraded", "sharp_bank", "train", "train_demo"]

MARGIN = optics.KERNEL_SIZE - 1
STEPS = {
    "specialist": 3000,
    "generalist": 4000,
    "lens_estimator": 4500,
    "conditioned": 2500,
    "denoiser": 1500,
    "jpeg_cleaner": 1500,
    "upscaler": 1500,
}
#: Restorers of one degradation: network, degradation, side of the sharp patches in pixels.
DEGRADED = {
    "denoiser": ("small_unet", Compose([Noise(15 / 255), Clip(), Quantize()]), 48),
    "jpeg_cleaner": ("small_unet", Compose([Clip(), Quantize(), Jpeg(30)]), 48),
    "upscaler": ("residual_upscaler", Compose([Resize(2), Clip(), Quantize()]), 64),
}


def sharp_bank(generator: torch.Generator, *, size: int = 176, count: int = 512) -> Tensor:
    """Return sharp training tiles: `count` crops of the training photos and as many dead leaves in their colors.

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
) -> dict:
    """Train one model of the demo, write its weights and its log, and return the log.

    The conditioned restorer is trained with estimates of `estimator`.

    Raises:
        ValueError: `name` is not one of ``STEPS``.
    """
    if name not in STEPS:
        raise ValueError(f"train: expected one of {sorted(STEPS)}, got {name!r}")
    steps = STEPS[name] if steps is None else steps
    bank = torch.empty(0) if name in DEGRADED else sharp_bank(torch.Generator().manual_seed(seed))
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial weights
        model: nn.Module
        if name in DEGRADED:
            model = create_model(DEGRADED[name][0]).to(device)
            losses = _fit_degraded(name, model, steps=steps, seed=seed, device=device, progress=progress)
        elif name == "lens_estimator":
            model = DefocusEstimator().to(device)
            losses = fit_estimator(model, bank, steps=steps, seed=seed, device=device, progress=progress)
        else:
            model = DefocusUNet() if name != "conditioned" else _conditioned(str(estimator))
            losses = _fit(name, model.to(device), bank, steps=steps, seed=seed, device=device, progress=progress)
    seconds = time.perf_counter() - started
    model = model.cpu().eval()
    log = {
        "model": name,
        "command": f"python -m tta_restore train-demo {name} --seed {seed} --steps {steps}",
        "seed": seed,
        "steps": steps,
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "device": device,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "tta_restore": __version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": [[t + 250, sum(losses[t : t + 250]) / 250] for t in range(0, len(losses) - 249, 250)],
        "held_out": held_out_degraded(name, model) if name in DEGRADED else held_out(model),
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        save_file(state, out / f"{name}.safetensors", metadata={"command": log["command"]})
        (out / f"{name}.json").write_text(json.dumps(log, indent=1) + "\n")
    return log


@locks_output
def train_demo(
    models: Sequence[str] = (),
    *,
    steps: int | None = None,
    seed: int = 0,
    device: str | None = None,
    out: str | Path = "runs/train-demo",
    progress: bool = True,
) -> None:
    """Train the small models that the package ships.

    Args:
        models: specialist, generalist, lens_estimator, conditioned, denoiser, jpeg_cleaner, upscaler (default: all)
        steps: more or fewer steps than the shipped weights had.
        seed: of weights, crops and lenses.
        device: such as cpu or cuda (default: cuda where there is one)
        out: folder for weights and logs.
        progress: show progress on stderr.

    Raises:
        UsageError: a model is unknown, or the folder cannot be written.
    """
    if unknown := set(models) - set(STEPS):
        raise UsageError(f"no model {min(unknown)!r}; there are: {', '.join(STEPS)}")
    expect_folder(out)
    chosen = resolve_device(device)
    for name in models or STEPS:
        train(name, steps=steps, seed=seed, device=chosen, out=Path(out), progress=progress)


def _fit(
    name: str, model: nn.Module, bank: Tensor, *, steps: int, seed: int, device: str, progress: bool
) -> list[float]:
    """Train a restorer on sharp tiles photographed through the source lens or through random ones."""
    generator = torch.Generator().manual_seed(seed)
    # the conditioned restorer reads its lens from the image and needs one large enough to read from
    count, size = (8, 80) if name != "conditioned" else (4, 112)
    model.to(memory_format=torch.channels_last)  # the faster layout for convolutions on CPUs
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1.2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / 100, 0.5 * (1 + math.cos(math.pi * t / steps)) + 1e-3)
    )
    losses = []
    for _ in ProgressBar(range(steps), desc=name, unit="step", shown=progress):
        sharp = random_patches(bank, count, size + MARGIN, generator)
        chosen = [_source_lens(generator) if name == "specialist" else optics.random_lens(generator) for _ in sharp]
        blurry, _, target = defocus.render(sharp, chosen, generator, levels=4, knots=3)
        loss = charbonnier_loss(model(blurry.to(device)), target.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 0.5)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def _fit_degraded(name: str, model: nn.Module, *, steps: int, seed: int, device: str, progress: bool) -> list[float]:
    """Train a restorer on sharp patches that its degradation is applied to."""
    _, camera, side = DEGRADED[name]
    generator = torch.Generator().manual_seed(seed)
    leaves = dead_leaves.bank(48, 96, generator)
    crops = [random_patches(photos.load(photo)[None], 12, 96, generator) for photo in photos.TRAIN]
    bank = torch.cat([leaves, *crops])
    rate = 1e-3
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    losses = []
    for step in ProgressBar(range(steps), desc=name, unit="step", shown=progress):
        sharp = random_patches(bank, 8, side, generator)
        degraded = camera.apply(sharp, camera.sample(generator, len(sharp)), generator)
        loss = (model(degraded.to(device)) - sharp.to(device)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
    return losses


@torch.no_grad()
def held_out_degraded(name: str, model: nn.Module, *, seed: int = 1234, frames: int = 8) -> dict:
    """Return the PSNR of a restorer of :data:`DEGRADED` on held-out photographs, next to that of its input."""
    camera, generator = DEGRADED[name][1], torch.Generator().manual_seed(seed)
    before, after = [], []
    for index in range(frames):
        sharp = random_patches(photos.load(photos.DEV[index % len(photos.DEV)])[None], 1, 192, generator)
        degraded = camera.apply(sharp, camera.sample(generator, 1), generator)
        restored = model(degraded).clamp(0, 1)
        if degraded.shape != sharp.shape:
            degraded = F.interpolate(degraded, size=sharp.shape[-2:], mode="bicubic").clamp(0, 1)
        before.append(float(psnr(degraded, sharp)))
        after.append(float(psnr(restored, sharp)))
    means = sum(before) / frames, sum(after) / frames
    return {"photographs": {"input": means[0], "restored": means[1], "gain": means[1] - means[0]}}


def _conditioned(estimator: str) -> ConditionedDefocusUNet:
    model = ConditionedDefocusUNet()
    reader = create_model("lens_estimator", checkpoint=estimator)
    with torch.no_grad():  # not what it remembers, which only the adapter asks for
        for name, parameter in reader.named_parameters():
            model.estimator.get_parameter(name).copy_(parameter)
    return model


def _source_lens(generator: torch.Generator) -> optics.Lens:
    low, high = defocus.SOURCE.radius
    ends = sorted((low + (high - low) * torch.rand(2, generator=generator)).tolist())
    return optics.Lens(defocus.SOURCE.family, defocus.SOURCE.pupil, (ends[0], ends[1]))


@torch.no_grad()
def held_out(model: nn.Module, *, seed: int = 1234, frames_per_lens: int = 8) -> dict:
    """Return the PSNR of a model on held-out photographs, through the source lens and the development families."""
    report = {}
    for lens in (defocus.SOURCE, *defocus.DEV):
        frames = defocus.defocus_stream([lens], photos.DEV, frames_per_lens=frames_per_lens, seed=seed)
        blurry, sharp = (torch.stack([getattr(f, key) for f in frames]) for key in ("blurry", "sharp"))
        if isinstance(model, DefocusEstimator):
            unit = torch.tensor([optics.rms_radius(lens.pupil)])
            estimate = model(blurry)
            radius = torch.stack([frame.radius for frame in frames])[:, None]
            truth = F.interpolate(radius, size=estimate.radius.shape[-2:], mode="area")[:, 0] * unit
            error = (estimate.radius.log() - truth.clamp(min=0.15).log()).abs()
            true = optics.rasterize_pupils([lens], size=model.aperture_size, reach=model.reach)
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
