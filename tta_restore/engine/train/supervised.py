"""Train any restorer on aligned pairs; IFAN with the three losses, optimizer and schedule of its publication.

Source: Iterative Filter Adaptive Network for Single Image Defocus Deblurring (Lee, Son, Rim, Cho, Lee; CVPR 2021).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore import losses, metrics
from tta_restore._core import checks
from tta_restore.data.datasets.augmentation import Augmentation
from tta_restore.data.datasets.layouts import LAYOUTS, PairFiles, find_files, has_views
from tta_restore.data.datasets.misaligned import load_sharp_images
from tta_restore.data.datasets.pairs import FolderCrops, LensPairs, Pair, read_images
from tta_restore.data.io.pixels import ImageError
from tta_restore.data.synthetic import photos
from tta_restore.engine.report.images import contact_sheet
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train.config import (
    built_from,
    bundled_pictures,
    from_section,
    model_from,
    read_config,
    run_from,
)
from tta_restore.engine.train.loop import Objective, Optimizers, Step, TrainingRun, train
from tta_restore.models import as_restorer, create_model, load_checkpoint
from tta_restore.models.ifan.network import IFAN, IFANDual

PairSource = Callable[[int, torch.Generator], Pair]

_IMAGE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "charbonnier": losses.charbonnier_loss,
}
_OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "radam": lambda groups, **options: torch.optim.RAdam(groups, decoupled_weight_decay=True, **options),
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
}


@dataclass(frozen=True)
class SupervisedSettings:
    """Losses, optimizer and schedule. The defaults are those IFAN was published with, for 600 000 steps of batch 8.

    Attributes:
        loss: between the restored image and the sharp one: ``"mse"``, ``"mae"`` or ``"charbonnier"``.
        disparity_weight: of the right view, moved by the disparity map, against the left one, at an eighth of the size.
        reblur_weight: of the sharp image, blurred again by filters made of the deblurring ones, against the blurry one,
            at an eighth of the size; 0 trains without a reblurring network.
        optimizer: ``"radam"`` with decoupled weight decay, ``"adamw"``, or ``"adam"``, whose decay is not decoupled.
        lr: learning rate.
        weight_decay: of the optimizer.
        decay_after: steps after which the learning rate is multiplied by ``decay``.
        decay: factor.
        cosine_steps: instead, steps in which the rate falls to 0 along a cosine; 0 for none.
        warm_up: steps in which the rate rises to its start.
        clip: largest L2 norm of the gradient over all networks together; 0 for any.
        precision: ``"bf16"`` runs the networks in bfloat16 autocast, which is slower on CPUs without AMX; losses are in
            float32.
    """

    loss: Literal["mse", "mae", "charbonnier"] = "mse"
    disparity_weight: float = 1.0
    reblur_weight: float = 1.0
    optimizer: Literal["radam", "adamw", "adam"] = "radam"
    lr: float = 1e-4
    weight_decay: float = 0.01
    decay_after: tuple[int, ...] = (500_000, 550_000)
    decay: float = 0.5
    cosine_steps: int = 0
    warm_up: int = 0
    clip: float = 0.5
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "decay_after", tuple(self.decay_after))
        choices = {"loss": tuple(_IMAGE_LOSSES), "optimizer": tuple(_OPTIMISERS), "precision": ("fp32", "bf16")}
        for name, allowed in choices.items():
            checks.expect_choice("SupervisedSettings", name, getattr(self, name), allowed)
        for name in ("disparity_weight", "reblur_weight", "weight_decay", "cosine_steps", "warm_up", "clip"):
            checks.expect_number("SupervisedSettings", name, getattr(self, name), minimum=0)
        for name in ("lr", "decay"):
            checks.expect_number("SupervisedSettings", name, getattr(self, name), above=0)

    def rate(self, step: int) -> float:
        """Factor on the learning rate at a step, from 0; a decay after n steps is first felt at step n + 1."""
        factor = min(1.0, (step + 1) / (self.warm_up + 1))
        if self.cosine_steps:
            return factor * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.cosine_steps)))
        return factor * self.decay ** sum(step > after for after in self.decay_after)


class SupervisedObjective(Objective):
    """Loss of a restorer on aligned pairs, and of the reblurring network that helps IFAN's filters.

    Args:
        restorer: any module from (B, 3, H, W) to the same. One that has ``forward_train(x, right, left)``, like
            :class:`IFAN`, also learns from views and by reblurring; one whose ``forward`` takes
            ``right`` and ``left`` gets them.
        reblur: from (sharp, filters) to the sharp image reblurred at an eighth of the size; None for none.
        settings: losses, optimizer and schedule.
    """

    def __init__(
        self,
        restorer: nn.Module,
        reblur: nn.Module | None = None,
        *,
        settings: SupervisedSettings = SupervisedSettings(),
    ) -> None:
        super().__init__()
        if reblur is not None and not hasattr(restorer, "forward_train"):
            raise ValueError("SupervisedObjective: reblurring needs filters, and the restorer has no forward_train")
        self.restorer, self.reblur, self.settings = restorer, reblur, settings
        self.clip = settings.clip or None
        self._run = as_restorer(restorer)
        self._forward_train: Callable[..., Any] | None = getattr(restorer, "forward_train", None)

    def forward(self, batch: Pair, step: int) -> Step:
        """Loss of a batch."""
        settings = self.settings
        found: dict[str, Tensor] = {"blurry": batch.blurry, "sharp": batch.sharp}
        with torch.autocast(batch.blurry.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            if self._forward_train is None:
                found["restored"] = self._run(batch.blurry)
            else:
                options = {} if self.reblur is not None else {"keep_filters": False}
                made = self._forward_train(batch.blurry, batch.right, batch.left, **options)
                found["restored"] = made.result
                if made.warped_right is not None:
                    found |= {"warped_right": made.warped_right, "left_small": made.left_small}
                if self.reblur is not None:
                    found["reblurred"] = self.reblur(batch.sharp, made.filters)
        found = {name: tensor.float() for name, tensor in found.items()}
        if found["restored"].shape != batch.sharp.shape:
            raise ValueError(
                f"SupervisedObjective: expected restored images of shape {tuple(batch.sharp.shape)}, "
                f"got {tuple(found['restored'].shape)}"
            )
        parts = {"image": _IMAGE_LOSSES[settings.loss](found["restored"], batch.sharp)}
        if "warped_right" in found and settings.disparity_weight:
            difference = losses.disparity_loss(found["warped_right"], found["left_small"])
            parts["disparity"] = settings.disparity_weight * difference
        if "reblurred" in found:
            parts["reblur"] = settings.reblur_weight * losses.reblur_loss(found["reblurred"], batch.blurry)
        return Step.sum_of(parts, found)

    def restore(self, pair: Pair) -> Tensor:
        """Restored images, with the views for a restorer that takes them. Shape: (B, 3, H, W)."""
        with torch.autocast(pair.blurry.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            if not {"right", "left"} <= set(inspect.signature(self.restorer.forward).parameters):
                return self._run(pair.blurry).float()
            return self.restorer(pair.blurry, pair.right, pair.left).float()

    def groups(self) -> list[dict[str, Any]]:
        """All parameters that are not frozen."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def optimizers(self) -> Optimizers:
        """The one of the settings."""
        options = {"lr": self.settings.lr, "weight_decay": self.settings.weight_decay}
        return {"optimizer": _OPTIMISERS[self.settings.optimizer](self.groups(), **options)}

    def rate(self, step: int) -> float:
        """Factor on the learning rate."""
        return self.settings.rate(step)

    def identity(self) -> dict[str, Any]:
        """The settings."""
        return asdict(self.settings)

    def exports(self) -> dict[str, nn.Module]:
        """Restorer and, where there is one, reblurring network."""
        return {"restorer": self.restorer} | ({} if self.reblur is None else {"reblur": self.reblur})

    def picture(self, found: Step) -> Tensor:
        """Images of the first pair; those at an eighth of the size are shown enlarged."""
        names = ("blurry", "sharp", "restored", "warped_right", "left_small", "reblurred")
        tiles = [found.tensors[name][:1] for name in names if name in found.tensors]
        size = tiles[0].shape[-2:]
        return contact_sheet([F.interpolate(tile, size=size)[0] for tile in tiles], columns=3)


def train_supervised(
    restorer: nn.Module,
    source: PairSource,
    run: TrainingRun,
    *,
    reblur: nn.Module | None = None,
    settings: SupervisedSettings = SupervisedSettings(),
    validation: Iterable[Pair] = (),
    built: dict[str, tuple[str, dict[str, Any]]] | None = None,
    on_step: Callable[[int, Step], None] | None = None,
) -> SupervisedObjective:
    """Train a restorer on aligned pairs and return the objective that holds it, in eval mode.

    Runs as :func:`tta_restore.engine.train.loop.train` says, and writes ``restorer.safetensors``, for IFAN also
    ``reblur.safetensors``, and to ``best/`` those with the highest PSNR in validation.

    Args:
        restorer: any module; initial weights are its own.
        source: makes batches, such as :class:`tta_restore.data.datasets.pairs.FolderCrops`.
        run: how long and where to.
        reblur: reblurring network; None makes the one that belongs to a restorer with filters.
        settings: losses, optimizer and schedule.
        validation: pairs that PSNR is measured on, gone through anew every time.
        built: see :attr:`Objective.built`.
        on_step: called after every step.

    Raises:
        UsageError: ``run.out`` holds the state of a run with other settings.
        FloatingPointError: the loss is not finite any more.
    """
    if reblur is None and settings.reblur_weight:
        reblur = reblur_of(restorer, seed=run.seed)
    objective = SupervisedObjective(restorer, reblur, settings=settings)
    objective.built = built or {}
    pairs = validation if not isinstance(validation, (list, tuple)) or validation else None
    validate = None if pairs is None else lambda current: {"psnr": mean_psnr(current, pairs, run.device)}
    return train(objective, source, run, validate=validate, on_step=on_step)


def reblur_of(restorer: nn.Module, *, seed: int = 0) -> nn.Module | None:
    """A new reblurring network that fits a restorer's filters; None for a restorer without any."""
    config = restorer.reblur_config if isinstance(restorer, (IFAN, IFANDual)) else None
    if config is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model("ifan_reblur", **config)


@torch.no_grad()
def mean_psnr(objective: SupervisedObjective, pairs: Iterable[Pair], device: str) -> float:
    """Mean PSNR in dB of restored images, clipped to [0, 1], over all images of the pairs."""
    values: list[float] = []
    for pair in pairs:
        views = (None if view is None else view.to(device) for view in (pair.right, pair.left))
        moved = Pair(pair.blurry.to(device), pair.sharp.to(device), *views)
        values += metrics.psnr(objective.restore(moved), moved.sharp).tolist()
    if not values:
        raise ValueError("mean_psnr: expected at least one pair to validate on")
    return sum(values) / len(values)


_SECTIONS = ("model", "reblur", "data", "augmentation", "validation", "settings", "run")


def train_from_config(
    path: str | Path, *, out: Path | None = None, steps: int | None = None, device: str | None = None
) -> SupervisedObjective:
    """Train as a configuration file says; arguments go before what it says.

    Raises:
        UsageError: something in it is wrong; the message says what.
    """
    config = read_config(path, _SECTIONS)
    try:
        run = run_from(config.get("run", {}), default_out="runs/supervised", out=out, steps=steps, device=device)
        settings = from_section("settings", SupervisedSettings, config.get("settings", {}))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            restorer = model_from(config.get("model", {}), default="ifan")
        augmentation = from_section("augmentation", Augmentation, config.get("augmentation", {}))
        views = hasattr(restorer, "forward_train")
        reblur = _reblur(config.get("reblur", {}), restorer, settings, run.seed)
        validation = _validation(config["validation"], views=views) if "validation" in config else ()
        source = _source(config.get("data", {}), augmentation, views=views)
    except (TypeError, ValueError, ImageError) as error:
        raise UsageError(f"{path}: {error}") from error
    return train_supervised(
        restorer,
        source,
        run,
        reblur=reblur,
        settings=settings,
        validation=validation,
        built=built_from(config.get("model", {}), default="ifan"),
    )


class FolderPairsWhole:
    """Whole pictures of files, one after the other, cropped to sides that are multiples of 8; read when asked for.

    Args:
        files: with originals.
        bit_depth: see :class:`tta_restore.data.datasets.pairs.FolderCrops`.
    """

    def __init__(self, files: Sequence[PairFiles], *, bit_depth: int | None = None) -> None:
        self.files, self.bit_depth = files, bit_depth

    def __iter__(self) -> Iterator[Pair]:
        for entry in self.files:
            pictures = read_images(entry, bit_depth=self.bit_depth)
            height, width = (side // 8 * 8 for side in pictures.shape[-2:])
            yield Pair(*pictures[:, None, :, :height, :width])


def _reblur(
    section: Mapping[str, Any], restorer: nn.Module, settings: SupervisedSettings, seed: int
) -> nn.Module | None:
    """The reblurring network of a restorer with filters, with the weights of ``checkpoint`` where that is given."""
    if strange := set(section) - {"checkpoint"}:
        raise ValueError(f"[reblur] has no {', '.join(sorted(strange))}; there is: checkpoint")
    reblur = reblur_of(restorer, seed=seed) if settings.reblur_weight else None
    if "checkpoint" in section:
        if reblur is None:
            raise ValueError("[reblur] is for a restorer with filters, and reblur_weight > 0")
        load_checkpoint(reblur, section["checkpoint"])
    return reblur


def _source(section: Mapping[str, Any], augmentation: Augmentation, *, views: bool) -> PairSource:
    """Pairs of a data set (``layout``, ``root``, ``split``), or made of ``pictures``: a folder, or "bundled"."""
    options = dict(section)
    size = options.pop("size", None)
    if "layout" in options:
        bit_depth = options.pop("bit_depth", None)
        files = _files("data", options, "train", views=views)
        return FolderCrops(files, size=size or 256, augmentation=augmentation, bit_depth=bit_depth)
    size = size or 96
    pictures, views = options.pop("pictures", "bundled"), options.pop("views", views)
    if options:
        raise ValueError(f"[data] expected layout and root, or pictures, views and size, got {', '.join(options)}")
    margin = 64  # enough for the lens, and room for crops at other places
    if pictures == "bundled":
        return LensPairs(bundled_pictures(size + margin), size=size, views=views)
    return LensPairs(load_sharp_images(Path(pictures), size=size + margin), size=size, views=views)


def _validation(section: Mapping[str, Any], *, views: bool) -> Iterable[Pair]:
    """Whole pictures of a data set, or ``pictures = "bundled"``: pairs of the photographs kept for development."""
    options = dict(section)
    if options.pop("pictures", None) == "bundled":
        size, count = options.pop("size", 160), options.pop("count", 4)
        if options:
            raise ValueError(f"[validation] has no {', '.join(options)} with pictures; there are: size, count")
        sharp = bundled_pictures(size + 16, photos.DEV)
        generator = torch.Generator().manual_seed(1)
        return [LensPairs(sharp, size=size, views=views)(1, generator) for _ in range(count)]
    if "layout" not in options:
        raise ValueError("[validation] expected layout and root, or pictures = 'bundled'")
    bit_depth, limit = options.pop("bit_depth", None), options.pop("limit", None)
    files = _files("validation", options, "val", views=views)
    if alone := next((entry.blurry for entry in files if entry.sharp is None), None):
        raise ValueError(f"[validation] {alone} has no sharp original")
    return FolderPairsWhole(files[:limit], bit_depth=bit_depth)


def _files(name: str, options: dict[str, Any], split: str, *, views: bool) -> list[PairFiles]:
    layout, root = options.pop("layout"), options.pop("root", None)
    if layout not in LAYOUTS or root is None:
        raise ValueError(f"[{name}] expected root and layout, one of {', '.join(LAYOUTS)}, got {layout!r} in {root}")
    views, split = options.pop("views", views and has_views(layout)), options.pop("split", split)
    if options:
        raise ValueError(f"[{name}] has no {', '.join(options)}")
    return find_files(root, layout, split, views=views)
