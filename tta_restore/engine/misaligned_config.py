"""Training on misaligned pairs from a configuration file."""

from __future__ import annotations

import importlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tta_restore.data import photos
from tta_restore.data.image import ImageError
from tta_restore.data.misaligned import FolderPairs, GeneratedPairs, Misalignment, sharp_pictures
from tta_restore.data.pair_folders import LAYOUTS, find_pairs
from tta_restore.data.patches import random_patches
from tta_restore.engine.misaligned import MisalignedObjective, MisalignedSettings
from tta_restore.engine.train_misaligned import PairSource, TrainingRun, train_misaligned
from tta_restore.engine.usage import UsageError
from tta_restore.models import create_model, list_models
from tta_restore.models.jdrl import BlurConditioned, JdrlReblur
from tta_restore.models.optical_flow import create_flow

_SECTIONS = ("model", "data", "flow", "reblur", "settings", "run")


def read_config(path: str | Path) -> dict[str, Any]:
    """The sections of a TOML or JSON file.

    Raises:
        UsageError: the file cannot be read, or has a section that means nothing.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        config = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:  # both parsers' errors are ValueErrors
        raise UsageError(f"{path}: {error}") from None
    strange = [name for name, section in config.items() if name not in _SECTIONS or not isinstance(section, Mapping)]
    if strange:
        raise UsageError(f"{path}: expected the sections {', '.join(_SECTIONS)}, got {', '.join(strange)}")
    return config


def train_from_config(
    path: str | Path, *, out: Path | None = None, steps: int | None = None, device: str | None = None
) -> MisalignedObjective:
    """Train as a configuration file says; arguments go before what it says.

    Raises:
        UsageError: something in it is wrong; the message says what.
    """
    config = read_config(path)
    overrides = {"out": out, "steps": steps, "device": device}
    chosen: dict[str, Any] = dict(config.get("run", {})) | {
        name: value for name, value in overrides.items() if value is not None
    }
    chosen["out"] = Path(chosen.get("out", "runs/misaligned"))
    run = TrainingRun(**_known("run", TrainingRun, chosen))
    own = dict(config.get("settings", {}))
    if "sigma" in own and own["sigma"] is False:  # TOML has no null
        own["sigma"] = None
    try:
        settings = MisalignedSettings(**_known("settings", MisalignedSettings, own))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            restorer = _restorer(config.get("model", {}))
            reblur = JdrlReblur(**config.get("reblur", {}))
        flow = create_flow(**({"name": "auto"} | config.get("flow", {})))
        source = _source(config.get("data", {}))
    except (TypeError, ValueError, ImageError) as error:
        raise UsageError(f"{path}: {error}") from error
    return train_misaligned(restorer, source, run, reblur=reblur, flow=flow, settings=settings)


def _known(section: str, kind: type, values: dict[str, Any]) -> dict[str, Any]:
    names = [field.name for field in fields(kind)]
    if strange := [name for name in values if name not in names]:
        raise UsageError(f"[{section}] has no {', '.join(strange)}; there are: {', '.join(names)}")
    return values


def _restorer(section: Mapping[str, Any]) -> nn.Module:
    """``name`` (registered, or ``module.path:callable``), ``checkpoint``, ``blur_map``, and the builder's keywords."""
    options = dict(section)
    name, checkpoint = options.pop("name", "jdrl_unet"), options.pop("checkpoint", None)
    blur_map = options.pop("blur_map", False)
    if ":" in name:
        module, _, attribute = name.partition(":")
        model = getattr(importlib.import_module(module), attribute)(**options)
        return BlurConditioned(model) if blur_map else model
    if name not in list_models("restorer"):
        raise ValueError(f"no restorer {name!r}; there are: {', '.join(list_models('restorer'))}")
    if blur_map and name == "jdrl_unet":
        return BlurConditioned(create_model(name, checkpoint=checkpoint, prior=True, **options), argument="blur_map")
    model = create_model(name, checkpoint=checkpoint, **options)
    return BlurConditioned(model) if blur_map else model


def _source(section: Mapping[str, Any]) -> PairSource:
    """Pairs of a data set (``layout``, ``root``, ``split``), or made of ``pictures``: a folder, or "bundled"."""
    options = dict(section)
    size = options.pop("size", 96)
    if "layout" in options:
        layout = options.pop("layout")
        if layout not in LAYOUTS or "root" not in options:
            raise ValueError(f"[data] expected root and layout, one of {', '.join(LAYOUTS)}, got {dict(section)}")
        return FolderPairs(find_pairs(options.pop("root"), layout, **options), size=size)
    pictures = options.pop("pictures", "bundled")
    misalignment = Misalignment(**options)
    if pictures != "bundled":
        return GeneratedPairs(sharp_pictures(Path(pictures), size=size + 96), size=size, misalignment=misalignment)
    generator = torch.Generator().manual_seed(0)
    crops = [random_patches(photos.load(name)[None], 8, size + 64, generator) for name in photos.TRAIN]
    return GeneratedPairs(torch.cat(crops), size=size, misalignment=misalignment)
