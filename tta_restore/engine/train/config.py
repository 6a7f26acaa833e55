"""What configuration files of all kinds of training have in common."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tta_restore.data.datasets.mining import random_patches
from tta_restore.data.synthetic import photos
from tta_restore.engine.run.models import SHIPPED, model_from_code
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train.loop import TrainingRun
from tta_restore.models import create_model, list_models

T = TypeVar("T")


def read_config(path: str | Path, sections: Sequence[str]) -> dict[str, Any]:
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
    strange = [name for name, section in config.items() if name not in sections or not isinstance(section, Mapping)]
    if strange:
        raise UsageError(f"{path}: expected the sections {', '.join(sections)}, got {', '.join(strange)}")
    return config


def from_section(name: str, kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from the section of that name.

    Raises:
        UsageError: the section has an entry that the dataclass has not, or lacks one.
        ValueError: an entry has a value that the dataclass refuses.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[bad-argument-type]
    if strange := [entry for entry in values if entry not in names]:
        raise UsageError(f"[{name}] has no {', '.join(strange)}; there are: {', '.join(names)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise UsageError(f"[{name}] {error}") from error


def run_from(section: Mapping[str, Any], *, default_out: str, **overrides: Any) -> TrainingRun:
    """The run that a section describes; overrides that are not None go before what it says."""
    chosen = dict(section) | {name: value for name, value in overrides.items() if value is not None}
    return from_section("run", TrainingRun, chosen | {"out": Path(chosen.get("out", default_out))})


def built_from(section: Mapping[str, Any], *, default: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """What :attr:`Objective.built` says of a restorer made by :func:`model_from`; empty for one that is not registered.

    Configuration that a checkpoint brought is not in the section, so that nothing is said then, either.
    """
    name, checkpoint, options = _named(section, default)
    return {} if ":" in name or checkpoint is not None else {"restorer": (name, options)}


def model_from(section: Mapping[str, Any], *, default: str, kind: str = "restorer") -> nn.Module:
    """A network: ``name``, ``checkpoint``, and the builder's keywords.

    The name is that of a registered network, of shipped weights such as ``specialist``, or ``module.path:callable``.

    Raises:
        ValueError: there is no such network or checkpoint.
        TypeError: the name is none, or the network does not take one of the keywords.
    """
    name, checkpoint, options = _named(section, default)
    if ":" in name:
        if checkpoint is not None:
            raise ValueError(f"a checkpoint belongs to a registered network, and {name!r} is a function")
        return model_from_code(name, **options)
    if name not in list_models(kind):
        raise ValueError(f"no {kind} {name!r}; there are: {', '.join(list_models(kind))}")
    return create_model(name, checkpoint=checkpoint, **options)


def _named(section: Mapping[str, Any], default: str) -> tuple[str, Any, dict[str, Any]]:
    """The name of a network, its checkpoint or None, and the other entries."""
    options = dict(section)
    name, checkpoint = options.pop("name", default), options.pop("checkpoint", None)
    if not isinstance(name, str):
        raise TypeError(f"expected the name of a network, got {name!r}")
    if name in SHIPPED and checkpoint is None:
        return SHIPPED[name], name, options
    return name, checkpoint, options


def bundled_pictures(size: int, names: Sequence[str] = photos.TRAIN) -> Tensor:
    """Eight crops of each of the bundled photographs, always the same: (N, 3, size, size)."""
    generator = torch.Generator().manual_seed(0)
    return torch.cat([random_patches(photos.load(name)[None], 8, size, generator) for name in names])
