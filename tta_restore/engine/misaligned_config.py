"""Training on misaligned pairs from a configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tta_restore import _checks
from tta_restore.data.image import ImageError
from tta_restore.data.misaligned import FolderPairs, GeneratedPairs, Misalignment, sharp_pictures
from tta_restore.data.pair_folders import LAYOUTS, find_pairs
from tta_restore.engine.misaligned import MisalignedObjective, MisalignedSettings
from tta_restore.engine.train_misaligned import PairSource, train_misaligned
from tta_restore.engine.training_config import bundled_pictures, from_section, model_from, read_config, run_from
from tta_restore.engine.usage import UsageError
from tta_restore.models.jdrl import BlurConditioned, JdrlReblur
from tta_restore.models.optical_flow import create_flow

_SECTIONS = ("model", "data", "flow", "reblur", "settings", "run")


def train_from_config(
    path: str | Path, *, out: Path | None = None, steps: int | None = None, device: str | None = None
) -> MisalignedObjective:
    """Train as a configuration file says; arguments go before what it says.

    Raises:
        UsageError: something in it is wrong; the message says what.
    """
    config = read_config(path, _SECTIONS)
    own = dict(config.get("settings", {}))
    if "sigma" in own and own["sigma"] is False:  # TOML has no null
        own["sigma"] = None
    try:
        run = run_from(config.get("run", {}), default_out="runs/misaligned", out=out, steps=steps, device=device)
        settings = from_section("settings", MisalignedSettings, own)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            restorer = _restorer(config.get("model", {}))
            reblur = JdrlReblur(**config.get("reblur", {}))
        flow = create_flow(**({"name": "auto"} | config.get("flow", {})))
        source = _source(config.get("data", {}))
    except (TypeError, ValueError, ImageError) as error:
        raise UsageError(f"{path}: {error}") from error
    return train_misaligned(restorer, source, run, reblur=reblur, flow=flow, settings=settings)


def _restorer(section: Mapping[str, Any]) -> nn.Module:
    """A registered restorer or one's own, with ``blur_map`` for one that is told the blur."""
    options = dict(section)
    if not options.pop("blur_map", False):
        return model_from(options, default="jdrl_unet")
    if options.get("name", "jdrl_unet") == "jdrl_unet":
        return BlurConditioned(model_from(options | {"prior": True}, default="jdrl_unet"), argument="blur_map")
    return BlurConditioned(model_from(options, default="jdrl_unet"))


def _source(section: Mapping[str, Any]) -> PairSource:
    """Pairs of a data set (``layout``, ``root``, ``split``), or made of ``pictures``: a folder, or "bundled"."""
    options = dict(section)
    size = options.pop("size", 96)
    if "layout" in options:
        layout = options.pop("layout")
        if layout not in LAYOUTS or "root" not in options:
            raise ValueError(f"[data] expected root and layout, one of {', '.join(LAYOUTS)}, got {dict(section)}")
        _checks.expect_keywords("[data]", find_pairs, options)
        return FolderPairs(find_pairs(options.pop("root"), layout, **options), size=size)
    pictures = options.pop("pictures", "bundled")
    _checks.expect_keywords("[data]", Misalignment, options)
    misalignment = Misalignment(**options)
    if pictures != "bundled":
        return GeneratedPairs(sharp_pictures(Path(pictures), size=size + 96), size=size, misalignment=misalignment)
    return GeneratedPairs(bundled_pictures(size + 64), size=size, misalignment=misalignment)
