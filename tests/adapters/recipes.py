"""The methods that the table of invariants runs. A method joins by one line in ``RECIPES``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore.adapters import (
    EATA,
    ROID,
    SAR,
    SRTTA,
    Adapter,
    CauSiam,
    CoTTA,
    DegradationPairs,
    Guards,
    MetaTransfer,
    ReblurConsistency,
    ReblurPairs,
    RoTTA,
    SelfDenoise,
    SelfEnsemble,
    Semantic,
    SiamCTTA,
    Tent,
)
from tta_restore.degradations import Estimator
from tta_restore.losses import charbonnier_loss
from tta_restore.models import create_model


@dataclass(frozen=True)
class Recipe:
    """How to make the adapter, and what can be expected of it."""

    make: Callable[..., Adapter]
    learns: bool = True
    suits: Callable[[str], bool] = lambda network: True
    """Which networks of the zoo it takes."""


class Pairs(Adapter):
    """Uses every hook: an estimator, memory of frames and of lenses, restarts, a varying number of steps.

    Learns to undo noise (and, at a scale, shrinking) put on its own restorations; starts afresh, or from what it
    remembers, when the frames' brightness jumps.
    """

    def __init__(self, model: Any, *, estimator: nn.Module, lr: float = 1e-2, **options: Any):
        super().__init__(model, **options)
        self.lr, self.estimator = lr, estimator

    def initial_memory(self):
        return {"recent": [], "lenses": [], "now": None, "switches": 0}

    def make_optimizer(self, parameters):
        return torch.optim.Adam(parameters, lr=self.lr, foreach=True)

    def begin_frame(self, frame):
        seen, last = self.estimator(frame.image).mean((0, 2, 3)), self.memory["now"]
        if last is not None and (seen - last).abs().max() > 0.05:
            self.memory["lenses"] = [*self.memory["lenses"], {"seen": last, **self.snapshot()}][-2:]
            near = [lens for lens in self.memory["lenses"] if (lens["seen"] - seen).abs().max() < 0.05]
            self.restart(near[-1]["student"], near[-1]["teacher"]) if near else self.restart()
            self.memory["recent"], self.memory["switches"] = [], self.memory["switches"] + 1
            frame.steps += 1
        frame.metrics["switches"] = float(self.memory["switches"])
        self.memory["now"] = seen
        self.memory["recent"] = [*self.memory["recent"], self.ensemble("teacher", frame.region).image][-3:]

    def objective(self, frame):
        kept = self.memory["recent"]
        sharp = kept[int(torch.randint(len(kept), (), generator=self.generator))]
        small = F.avg_pool2d(sharp, self.restorer.spec.scale)
        noise = torch.randn(small.shape, generator=self.generator).to(small)
        return charbonnier_loss(self.run("student", small + 0.05 * noise).image, sharp)

    def after_step(self, frame):
        self.update_teacher(0.9)
        self.stochastic_restore(0.1)


def make_pairs(model: Any, **options: Any) -> Pairs:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        estimator = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    return Pairs(model, estimator=estimator, **{"select": "all", "views": "rot4", "steps": 2} | options)


def make_siam_ctta(model: Any, **options: Any) -> SiamCTTA:
    return SiamCTTA(model, **{"select": "all", "lr": 1e-2, "restore": 0.3, "steps": 2} | options)


@cache
def estimator() -> nn.Module:
    return Estimator()


class BlurEstimator(Estimator):
    """Is certain of its blur: the frames of the tests have no detail that would show one."""

    def read(self, frame, **options):
        reading = super().read(frame, **options)
        blur = torch.stack([reading.blur[0], torch.tensor(0.2)])
        return dataclasses.replace(reading, blur=blur, even_blur=torch.zeros(3))


@cache
def blur_estimator() -> nn.Module:
    return BlurEstimator()


def make_degradation_pairs(model: Any, **options: Any) -> DegradationPairs:
    sharp = torch.rand(2, 3, 72, 72, generator=torch.Generator().manual_seed(3))
    small: dict[str, Any] = {
        "steps": 2, "batch_size": 1, "patch_size": 16, "lr": 1e-2, "task": "denoise", "sharp_images": sharp,
    }  # fmt: skip
    return DegradationPairs(model, estimator(), **small | options)


def make_reblur_pairs(model: Any, **options: Any) -> ReblurPairs:
    sharp = torch.rand(2, 3, 72, 72, generator=torch.Generator().manual_seed(3))
    small: dict[str, Any] = {"steps": 2, "batch_size": 1, "patch_size": 16, "lr": 1e-2, "sharp_images": sharp}
    return ReblurPairs(model, blur_estimator(), **small | options)


@cache
def lens_estimator() -> nn.Module:
    return create_model("lens_estimator", checkpoint="lens_estimator")


def make_reblur_consistency(model: Any, **options: Any) -> ReblurConsistency:
    # Gentle enough for what was learned to be given: steps that do not help are made and not shown.
    return ReblurConsistency(model, lens_estimator(), **{"steps": 2, "lr": 1e-3, "null_space_weight": 0.0} | options)


class Smear(nn.Module):
    """A reblurrer of three frames."""

    num_frames = 3

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(9, 3, 3, padding=1)

    def forward(self, clip: Tensor) -> Tensor:
        return clip[:, 1] + 0.2 * torch.tanh(self.conv(clip.flatten(1, 2)))


def make_meta_transfer(model: Any, **options: Any) -> MetaTransfer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        networks = Smear(), create_model("patch_critic", base_channels=2)
    small: dict[str, Any] = {
        "num_patches": 1,
        "patch_size": 16,
        "lr": 1e-2,
        "reblur_lr": 1e-2,
        "min_sharpness_gain": 0.0,
    }
    return MetaTransfer(model, *networks, **small | options)


def look(restored: Tensor) -> Tensor:
    """Two tokens per picture: the colors of its halves."""
    return F.adaptive_avg_pool2d(restored, (1, 2)).flatten(2).transpose(1, 2)


def make_causiam(model: Any, **options: Any) -> CauSiam:
    semantic = Semantic(look, at="auto", num_heads=2, res_scale=2.0)
    return CauSiam(model, **{"semantic": semantic, "lr": 3e-2, "restore": 0.3} | options)


def certain(network: str) -> bool:
    """Whether train mode gives the same from frame to frame."""
    return network != "dropout"


def configured(method: type[Adapter], **settings: Any) -> Callable[..., Adapter]:
    return lambda model, **options: method(model, **{"select": "all"} | settings | options)


SHIFTED = [(lambda x, k=k: torch.roll(x, k, -1), lambda x: x) for k in range(3)]  # not undone, as published

_NOT_DENOISED = ("clips", "super_resolution")

RECIPES = {
    "source": Recipe(Adapter, learns=False),
    "self_ensemble": Recipe(SelfEnsemble, learns=False),
    "siam_ctta": Recipe(make_siam_ctta),
    "causiam": Recipe(make_causiam, suits=lambda network: network != "compiled"),
    "pairs": Recipe(make_pairs),
    "reblur_consistency": Recipe(make_reblur_consistency, suits=lambda network: network != "super_resolution"),
    "meta_transfer": Recipe(make_meta_transfer, suits=lambda network: network != "super_resolution"),
    "degradation_pairs": Recipe(make_degradation_pairs, suits=lambda network: network != "clips"),
    "self_denoise": Recipe(
        configured(SelfDenoise, lr=1e-2, steps=2), suits=lambda network: network not in _NOT_DENOISED
    ),
    "reblur_pairs": Recipe(make_reblur_pairs, suits=lambda network: network != "super_resolution"),
    "tent": Recipe(configured(Tent, lr=3e-2)),
    "tent_official": Recipe(configured(Tent, variant="official", lr=3e-2)),
    "cotta": Recipe(configured(CoTTA, lr=1e-2, ema=0.9)),
    "cotta_official": Recipe(configured(CoTTA, variant="official", lr=1e-2, ema=0.5, views=SHIFTED)),
    "sar": Recipe(configured(SAR, lr=1.0, guards=Guards())),
    "sar_official": Recipe(configured(SAR, variant="official"), learns=False, suits=certain),
    "eata": Recipe(configured(EATA, lr=1.0, max_similarity=2.0)),
    "eata_official": Recipe(configured(EATA, variant="official"), learns=False, suits=certain),
    "srtta": Recipe(
        configured(SRTTA, lr=1e-2, steps=2, num_patches=2, patch_size=16),
        suits=lambda network: network not in ("compiled", "clips"),
    ),
    "roid": Recipe(configured(ROID, lr=3e-2)),
    "rotta": Recipe(configured(RoTTA, lr=3e-2, capacity=2, interval=1, patch_size=16, ema=0.5)),
    "rotta_official": Recipe(
        configured(RoTTA, variant="official", lr=3e-2, capacity=3, interval=1, patch_size=16, ema=0.5),
        suits=lambda network: network != "clips",
    ),
}
