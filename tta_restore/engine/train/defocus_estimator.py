"""Teaches the lens estimator on simulated lenses: first all windows are made, then it learns from them many times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tta_restore._core.progress import ProgressBar
from tta_restore.data.datasets.mining import random_patches
from tta_restore.data.synthetic import defocus
from tta_restore.data.synthetic.soften import soften
from tta_restore.degradations import lens as optics
from tta_restore.models.defocus.estimator import DefocusEstimator
from tta_restore.models.defocus.spectra import STRIDE, WindowSpectra

LENSES, PICTURES = 4000, 4  # images through each lens
_SIZE, _MARGIN = 128, optics.KERNEL_SIZE - 1
_TAILS = 0.15
_LENSES_PER_STEP, _WINDOWS_PER_PICTURE = 8, 64


@dataclass(frozen=True)
class LensLibrary:
    """Windows of images through known lenses.

    Shape:
        - spectra: (L, P, windows, F, D), float16, P images through each of L lenses
        - log_radius: (L, P, windows), of root mean square radii in pixels
        - apertures: (L, A, A), symmetric under half a turn, as spectra are, each summing to 1
    """

    spectra: Tensor
    log_radius: Tensor
    apertures: Tensor

    @classmethod
    def simulate(cls, bank: Tensor, *, count: int = LENSES, seed: int = 0, progress: bool = True) -> LensLibrary:
        """Photograph sharp tiles, (N, 3, S, S) uint8, through `count` random lenses."""
        spectra_of = WindowSpectra()
        taper = (spectra_of.taper / spectra_of.taper.sum())[None, None]
        spectra, log_radius, apertures = [], [], []
        with ProgressBar(total=count, desc="lenses", unit="lens", shown=progress) as bar:
            for half in range(2):
                generator = torch.Generator().manual_seed(2000 + 2 * seed + half)
                for _ in range(count // 2):
                    lens = optics.random_lens(generator, tails=_TAILS)
                    # half of the scenes: soft ones look like blur to who has only met crisp ones, who is sure of it
                    sharp = soften(random_patches(bank, PICTURES, _SIZE + _MARGIN, generator), generator)
                    blurry, radius, _ = defocus.render(sharp, [lens] * PICTURES, generator, levels=4, knots=3)
                    size = (radius * optics.rms_radius(lens.pupil)).clamp(min=0.15).log()
                    spectra.append(spectra_of(blurry).flatten(1, 2).half())
                    log_radius.append(F.conv2d(size[:, None], taper, stride=STRIDE).flatten(1))
                    apertures.append(optics.rasterize_pupils([lens])[0])
                    bar.update()
        pictures = torch.stack(apertures)
        return cls(torch.stack(spectra), torch.stack(log_radius), (pictures + pictures.flip((1, 2))) / 2)

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Some windows of the chosen lenses, mirrored and turned at random."""
        windows = torch.randperm(self.spectra.shape[2])[:_WINDOWS_PER_PICTURE]
        spectra, log_radius = self.spectra[chosen][:, :, windows].float(), self.log_radius[chosen][:, :, windows]
        apertures, directions = self.apertures[chosen], spectra.shape[-1]
        if torch.rand(()) < 0.5:
            spectra, apertures = spectra[..., -torch.arange(directions) % directions], apertures.flip(1)
        if torch.rand(()) < 0.5:
            spectra, apertures = spectra.roll(directions // 2, -1), apertures.rot90(1, (1, 2))
        return spectra, log_radius, apertures


def fit_estimator(
    model: DefocusEstimator, bank: Tensor, *, steps: int, seed: int = 0, device: str = "cpu", progress: bool = True
) -> list[float]:
    """Train an estimator on simulated lenses, store its readings of them, and return the loss of every step.

    Draws from torch's global generator.
    """
    library = LensLibrary.simulate(bank, seed=seed, progress=progress)
    # the last ones are for looking at during development
    order = torch.randperm(LENSES, generator=torch.Generator().manual_seed(seed))[: LENSES - 200]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.15)
    losses = []
    for _ in ProgressBar(range(steps), desc="lens_estimator", unit="step", shown=progress):
        chosen = order[torch.randint(0, len(order), (_LENSES_PER_STEP,))]
        loss = _loss(model, *(part.to(device) for part in library.batch(chosen)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    remember(model, library, device=device)
    return losses


@torch.no_grad()
def remember(model: DefocusEstimator, library: LensLibrary, *, device: str = "cpu") -> None:
    """Store the true pupil functions of the library with their readings, each from one to all of its images."""
    generator = torch.Generator().manual_seed(0)
    statistics = []
    for pictures in library.spectra[: len(model.known)]:
        count = int(torch.randint(1, len(pictures) + 1, (), generator=generator))
        statistics.append(model.statistics(model.read(pictures[:count].float().to(device))).sum(0))
    model.add_known(torch.stack(statistics), library.apertures[: len(model.known)].to(device))


def _loss(model: DefocusEstimator, spectra: Tensor, log_radius: Tensor, apertures: Tensor) -> Tensor:
    reading = model.read(spectra)
    # Laplace likelihood: where nothing can be known the network says so instead of guessing the mean with conviction
    error = (reading.log_radius - log_radius).abs()
    size_loss = (error * reading.log_confidence.exp() - reading.log_confidence).mean()
    statistics = model.statistics(reading)
    some = (torch.rand(statistics.shape[:2]) < 0.6).float()
    some[:, 0] = 1
    pooled = (statistics * some[..., None].to(statistics)).sum(1)
    drawn = model.aperture(torch.cat([statistics[:, 0], pooled, statistics.sum(1)]))
    true = apertures.repeat(3, 1, 1)
    shape_loss = ((drawn - true).square().sum((1, 2)) / true.square().sum((1, 2))).mean()
    divergence = (true * (true.clamp(min=1e-7).log() - drawn.clamp(min=1e-7).log())).sum((1, 2)).mean()
    return 0.5 * size_loss + 2 * shape_loss + 0.5 * divergence
