"""Pre-training of a reblurrer, and meta-training, from a configuration file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tta_restore.adapters.methods.inner_loop import InnerLoopSettings
from tta_restore.data.datasets.clips import Clip
from tta_restore.data.io.pixels import ImageError
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train.clip_source import clips_from
from tta_restore.engine.train.config import from_section, model_from, read_config, run_from
from tta_restore.engine.train.loop import TrainingRun
from tta_restore.engine.train.meta import MetaObjective
from tta_restore.engine.train.meta_settings import MetaSettings
from tta_restore.engine.train.meta_train import meta_train
from tta_restore.engine.train.reblur import ReblurObjective, ReblurSettings, pretrain_reblur
from tta_restore.engine.train.windows import Outputs

_SECTIONS = ("model", "reblur", "critic", "data", "windows", "inner", "settings", "run")


@dataclass(frozen=True)
class Windows:
    """The section of that name: what is cut out of clips.

    Attributes:
        size: side of patches, pixels.
        patches: to adapt on per clip.
        query_frames: pairs per clip in the outer loop; 0 for one of every frame.
        other_moments: of each patch, whose blur it is given, too.
        outputs: "main", or "all" for a restorer that is trained on all the stages or scales that it returns.
    """

    size: int = 256
    patches: int = 20
    query_frames: int = 0
    other_moments: int = 0
    outputs: Outputs = "main"


@dataclass(frozen=True)
class _Parts:
    restorer: nn.Module | None
    reblur: nn.Module
    critic: nn.Module | None
    clips: Sequence[Clip]
    run: TrainingRun
    windows: Windows
    settings: Mapping[str, Any]
    inner: Mapping[str, Any]


def pretrain_reblur_from_config(
    path: str | Path, *, out: Path | None = None, steps: int | None = None, device: str | None = None
) -> ReblurObjective:
    """Train a reblurrer as a configuration file says; arguments go before what it says.

    Raises:
        UsageError: something in it is wrong; the message says what.
    """
    parts = _read(path, "runs/reblur", out=out, steps=steps, device=device)
    networks = {"restorer": parts.restorer, "critic": parts.critic}
    try:
        settings = from_section("settings", ReblurSettings, parts.settings)
        return pretrain_reblur(
            parts.reblur,
            parts.clips,
            parts.run,
            **networks,
            settings=settings,
            size=parts.windows.size,
            outputs=parts.windows.outputs,
        )
    except (ValueError, ImageError) as error:
        raise _told(path, error) from error


def meta_train_from_config(
    path: str | Path, *, out: Path | None = None, steps: int | None = None, device: str | None = None
) -> MetaObjective:
    """Meta-train as a configuration file says; arguments go before what it says.

    Raises:
        UsageError: something in it is wrong; the message says what.
    """
    parts = _read(path, "runs/meta", out=out, steps=steps, device=device)
    if parts.restorer is None:
        raise UsageError(f"{path}: meta-training needs a section [model], the restorer")
    sizes: dict[str, Any] = {
        "num_patches": parts.windows.patches,
        "patch_size": parts.windows.size,
        "query_frames": parts.windows.query_frames or None,
        "other_moments": parts.windows.other_moments,
        "outputs": parts.windows.outputs,
    }
    try:
        inner = from_section("inner", InnerLoopSettings, parts.inner)
        settings = from_section("settings", MetaSettings, {**parts.settings, "inner": inner})
        return meta_train(
            parts.restorer, parts.reblur, parts.clips, parts.run, critic=parts.critic, settings=settings, **sizes
        )
    except (ValueError, ImageError) as error:
        raise _told(path, error) from error


def _read(path: str | Path, default_out: str, **overrides: Any) -> _Parts:
    config = read_config(path, _SECTIONS)
    try:
        run = run_from(config.get("run", {}), default_out=default_out, **overrides)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            return _Parts(
                restorer=model_from(config["model"], default="lens_unet") if "model" in config else None,
                reblur=model_from(config.get("reblur", {}), default="video_reblur", kind="reblurrer"),
                critic=(
                    model_from(config["critic"], default="patch_critic", kind="discriminator")
                    if "critic" in config
                    else None
                ),
                clips=clips_from(config.get("data", {})),
                run=run,
                windows=from_section("windows", Windows, config.get("windows", {})),
                settings=config.get("settings", {}),
                inner=config.get("inner", {}),
            )
    except (TypeError, ValueError, ImageError) as error:
        raise _told(path, error) from error


def _told(path: str | Path, error: Exception) -> UsageError:
    return error if isinstance(error, UsageError) else UsageError(f"{path}: {error}")
