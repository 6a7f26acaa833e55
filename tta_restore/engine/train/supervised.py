"""Train any restorer on aligned pairs; IFAN with the three losses, optimizer and schedule of its publication.

Source: Iterative Filter Adaptive Network for Single Image Defocus Deblurring (Lee, Son, Rim, Cho, Lee; CVPR 2021).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore import losses, metrics
from tta_restore.data.datasets.augmentation import Augmentation
from tta_restore.data.datasets.layouts import LAYOUTS, PairFiles, find_files, has_views
from tta_restore.data.datasets.pairs import DegradedPairs, FolderCrops, LensPairs, Pair, read_images
from tta_restore.engine.report.images import contact_sheet
from tta_restore.engine.run.extensions import Metric, find_degradations
from tta_restore.engine.train.build import (
    build_network,
    bundled_pairs,
    configured,
    described,
    expect_size,
    seeded,
    sharp_images,
    take_layout,
    take_metrics,
    tell_of_bundled_photos,
)
from tta_restore.engine.train.config import (
    SupervisedConfig,
    SupervisedSettings,
    TrainingRun,
    section_of,
)
from tta_restore.engine.train.loop import Objective, Optimizers, StepOutput, train
from tta_restore.models import as_restorer, create_model, load_checkpoint
from tta_restore.models.ifan.network import IFAN, IFANDual

__all__ = [
    "AlignedPairSource",
    "FolderPairsWhole",
    "SupervisedObjective",
    "mean_scores",
    "reblur_of",
    "train_supervised",
    "train_supervised_from_config",
]

AlignedPairSource = Callable[[int, torch.Generator], Pair]

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
        # A tuple keeps the frozen network out of the objective's parameters and states.
        self._lpips: tuple[metrics.Lpips, ...] = ()
        if settings.lpips_weight:
            try:
                self._lpips = (metrics.Lpips(settings.lpips_weights),)
            except ValueError as error:
                raise ValueError(f"[settings] lpips_weights: {error}") from error

    def forward(self, batch: Pair, step: int) -> StepOutput:
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
                if made.disparity is not None:
                    found["disparity"] = made.disparity.detach()
                if made.filters is not None:  # per pixel, the root mean square of all taps and biases
                    found["filter_strength"] = made.filters.detach().square().mean(1, keepdim=True).sqrt()
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
        for lpips in self._lpips:
            distance = lpips.to(batch.sharp.device).distance(found["restored"], batch.sharp)
            parts["lpips"] = settings.lpips_weight * distance.square().mean()
        return StepOutput.sum_of(parts, found)

    def restore(self, pair: Pair) -> Tensor:
        """Restored images, with the views for a restorer that takes them. Shape: (B, 3, H, W)."""
        with torch.autocast(pair.blurry.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            if not {"right", "left"} <= set(inspect.signature(self.restorer.forward).parameters):
                return self._run(pair.blurry).float()
            return self.restorer(pair.blurry, pair.right, pair.left).float()

    def groups(self) -> list[dict[str, Any]]:
        """Return all parameters that are not frozen."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def optimizers(self) -> Optimizers:
        """Return the one of the settings."""
        options = {"lr": self.settings.lr, "weight_decay": self.settings.weight_decay}
        return {"optimizer": _OPTIMISERS[self.settings.optimizer](self.groups(), **options)}

    def rate(self, step: int) -> float:
        """Return the factor on the learning rate."""
        return self.settings.rate(step)

    def identity(self) -> dict[str, Any]:
        """Return the settings."""
        return asdict(self.settings)

    def exports(self) -> dict[str, nn.Module]:
        """Restorer and, where there is one, reblurring network."""
        return {"restorer": self.restorer} | ({} if self.reblur is None else {"reblur": self.reblur})

    def picture(self, found: StepOutput) -> Tensor:
        """Images of the first pair, disparity and strength of the filters; those at an eighth of the size enlarged."""
        names = ("blurry", "sharp", "restored", "warped_right", "left_small", "reblurred")
        tiles = [found.tensors[name][:1] for name in names if name in found.tensors]
        for name in ("disparity", "filter_strength"):
            if name in found.tensors:
                values = found.tensors[name][:1]
                low, high = values.amin(), values.amax()
                tiles.append(((values - low) / (high - low).clamp(min=1e-6)).expand(-1, 3, -1, -1))
        size = tiles[0].shape[-2:]
        return contact_sheet([F.interpolate(tile, size=size)[0] for tile in tiles], columns=3)


def train_supervised(
    restorer: nn.Module,
    source: AlignedPairSource,
    run: TrainingRun,
    *,
    reblur: nn.Module | None = None,
    settings: SupervisedSettings = SupervisedSettings(),
    validation: Iterable[Pair] = (),
    more_metrics: Mapping[str, Metric] | None = None,
    built: dict[str, tuple[str, dict[str, Any]]] | None = None,
    on_step: Callable[[int, StepOutput], None] | None = None,
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
        more_metrics: measured on them, too: functions of a restored and a sharp image, (1, 3, H, W) in [0, 1], by name.
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
    validate = None if pairs is None else lambda current: mean_scores(current, pairs, run.device, more_metrics)
    return train(objective, source, run, validate=validate, on_step=on_step)


def reblur_of(restorer: nn.Module, *, seed: int = 0) -> nn.Module | None:
    """Return a new reblurring network that fits a restorer's filters; None for a restorer without any."""
    config = restorer.reblur_config if isinstance(restorer, (IFAN, IFANDual)) else None
    if config is None:
        return None
    with seeded(seed):
        return create_model("ifan_reblur", **config)


@torch.no_grad()
def mean_scores(
    objective: SupervisedObjective,
    pairs: Iterable[Pair],
    device: str,
    more_metrics: Mapping[str, Metric] | None = None,
) -> dict[str, float]:
    """Return the means over all images of the pairs: "psnr" in dB of restored images, clipped to [0, 1], and others.

    Args:
        objective: holds the restorer.
        pairs: images to restore, and their originals.
        device: where the restorer is.
        more_metrics: see :func:`train_supervised`.

    Raises:
        ValueError: there are no pairs.
    """
    values: dict[str, list[float]] = {}
    for pair in pairs:
        views = (None if view is None else view.to(device) for view in (pair.right, pair.left))
        moved = Pair(pair.blurry.to(device), pair.sharp.to(device), *views)
        restored = objective.restore(moved).clamp(0, 1)
        values.setdefault("psnr", []).extend(metrics.psnr(restored, moved.sharp).tolist())
        for name, metric in (more_metrics or {}).items():
            images = zip(restored.split(1), moved.sharp.split(1), strict=True)
            values.setdefault(name, []).extend(float(metric(*both)) for both in images)
    if not values:
        raise ValueError("mean_scores: expected at least one pair to validate on")
    return {name: sum(found) / len(found) for name, found in values.items()}


def train_supervised_from_config(
    config: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    steps: int | None = None,
    device: str | None = None,
) -> SupervisedObjective:
    """Train a restorer on aligned pairs, from a configuration.

    Args:
        config: TOML, YAML or JSON file, or sections by name; see
            :class:`tta_restore.engine.train.config.SupervisedConfig`.
        out: folder for results, overrides ``run.out``.
        steps: number of steps in total, overrides ``run.steps``.
        device: such as cpu or cuda (default: cuda where there is one)

    Raises:
        UsageError: the configuration, or the data it names, cannot be used.
    """
    with configured(config, SupervisedConfig, out=out, steps=steps, device=device) as chosen:
        run, settings = chosen.run, chosen.settings
        with seeded(run.seed):
            restorer = build_network(chosen.model, default="ifan")
        augmentation = section_of("augmentation", Augmentation, chosen.augmentation)
        views = hasattr(restorer, "forward_train")
        validation, more_metrics = take_metrics(chosen.validation)
        source = _source(chosen.data, augmentation, views=views)
        reblur = _reblur(chosen.reblur, restorer, settings, run.seed)
        pairs = _validation(validation, views=views) if validation else ()
        tell_of_bundled_photos(chosen)
        return train_supervised(
            restorer,
            source,
            run,
            reblur=reblur,
            settings=settings,
            validation=pairs,
            more_metrics=more_metrics,
            built={"restorer": described(chosen.model, default="ifan")},
        )


class FolderPairsWhole:
    """Whole images of files, one after the other, cropped to sides that are multiples of 8; read when asked for.

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


def _source(section: Mapping[str, Any], augmentation: Augmentation, *, views: bool) -> AlignedPairSource:
    """Return pairs of a data set (``layout``, ``root``, ``split``), or made of ``pictures``: a folder, or "bundled"."""
    options = dict(section)
    size = expect_size(options.pop("size", 256 if "layout" in options else 96))
    if "layout" in options:
        bit_depth = options.pop("bit_depth", None)
        files = _files("data", options, "train", views=views)
        return FolderCrops(files, size=size, augmentation=augmentation, bit_depth=bit_depth)
    pictures, margin = options.pop("pictures", "bundled"), 64  # for blur, and room for crops at other places
    if "degradations" in options:
        degradations = find_degradations(options.pop("degradations"), "[data] degradations")
        if options:
            raise ValueError(f"[data] expected pictures, degradations and size, got {', '.join(options)}")
        return DegradedPairs(sharp_images(pictures, size + margin), size=size, degradations=degradations)
    views = options.pop("views", views)
    if options:
        raise ValueError(
            f"[data] expected layout and root, or pictures, degradations, views and size, got {', '.join(options)}"
        )
    return LensPairs(sharp_images(pictures, size + margin), size=size, views=views)


def _validation(section: Mapping[str, Any], *, views: bool) -> Iterable[Pair]:
    """Whole pictures of a data set, or ``pictures = "bundled"``: pairs of the photographs kept for development."""
    options = dict(section)
    if options.get("pictures") == "bundled":
        if strange := set(options) - {"pictures", "size", "count", "degradations"}:
            known = "size, count, degradations, metrics"
            raise ValueError(f"[validation] has no {', '.join(sorted(strange))} with pictures; there are: {known}")
        if "degradations" in options:
            options["degradations"] = find_degradations(options["degradations"], "[validation] degradations")
            return bundled_pairs(options, 160, DegradedPairs, 64)
        return bundled_pairs(options | {"views": views}, 160, LensPairs, 16)
    if "layout" not in options:
        raise ValueError("[validation] expected layout and root, or pictures = 'bundled'")
    bit_depth, limit = options.pop("bit_depth", None), options.pop("limit", None)
    files = _files("validation", options, "val", views=views)
    if alone := next((entry.blurry for entry in files if entry.sharp is None), None):
        raise ValueError(f"[validation] {alone} has no sharp original")
    return FolderPairsWhole(files[:limit], bit_depth=bit_depth)


def _files(name: str, options: dict[str, Any], split: str, *, views: bool) -> list[PairFiles]:
    layout, root = take_layout(name, options, LAYOUTS)
    views, split = options.pop("views", views and has_views(layout)), options.pop("split", split)
    if options:
        raise ValueError(f"[{name}] has no {', '.join(options)}")
    return find_files(root, layout, split, views=views)
