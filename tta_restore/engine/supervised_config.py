"""Training on aligned pairs from a configuration file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tta_restore.data import photos
from tta_restore.data.augmentation import Augmentation
from tta_restore.data.image import ImageError
from tta_restore.data.misaligned import sharp_pictures
from tta_restore.data.pair_folders import LAYOUTS, PictureFiles, find_files, has_views
from tta_restore.data.pairs import FolderCrops, LensPairs, Pair, read_pictures
from tta_restore.engine.supervised import (
    PairSource,
    SupervisedObjective,
    SupervisedSettings,
    reblur_of,
    train_supervised,
)
from tta_restore.engine.training_config import (
    built_from,
    bundled_pictures,
    from_section,
    model_from,
    read_config,
    run_from,
)
from tta_restore.engine.usage import UsageError
from tta_restore.models import load_checkpoint

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
        bit_depth: see :class:`tta_restore.data.pairs.FolderCrops`.
    """

    def __init__(self, files: Sequence[PictureFiles], *, bit_depth: int | None = None) -> None:
        self.files, self.bit_depth = files, bit_depth

    def __iter__(self) -> Iterator[Pair]:
        for entry in self.files:
            pictures = read_pictures(entry, bit_depth=self.bit_depth)
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
    return LensPairs(sharp_pictures(Path(pictures), size=size + margin), size=size, views=views)


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


def _files(name: str, options: dict[str, Any], split: str, *, views: bool) -> list[PictureFiles]:
    layout, root = options.pop("layout"), options.pop("root", None)
    if layout not in LAYOUTS or root is None:
        raise ValueError(f"[{name}] expected root and layout, one of {', '.join(LAYOUTS)}, got {layout!r} in {root}")
    views, split = options.pop("views", views and has_views(layout)), options.pop("split", split)
    if options:
        raise ValueError(f"[{name}] has no {', '.join(options)}")
    return find_files(root, layout, split, views=views)
