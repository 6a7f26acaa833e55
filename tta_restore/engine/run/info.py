"""Describe the machine, and the properties of a model that a probe measures."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import tta_restore
from tta_restore.engine.run.methods import METHODS
from tta_restore.engine.run.models import expect_restorer
from tta_restore.engine.run.names import SHIPPED_MODELS
from tta_restore.engine.run.settings import Named
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.run.user_code import guarded
from tta_restore.models import Macs, ProbeReport, Restorer, as_restorer, count_macs, list_models, probe
from tta_restore.models.checkpoint import WEIGHTS
from tta_restore.models.complexity import extrapolate_macs

__all__ = ["describe"]

_SIDES = (16, 32, 48, 64)  # in pixels, of frames whose cost is measured: multiples of 16, as 720 and 1280 are
_SIDES_INSIDE = (4, 8, 12, 16)  # of models without padding, which get a border beside
_OPTIONAL = {
    "tifffile": "io",
    "imagecodecs": "io",
    "matplotlib": "report",
    "jinja2": "report",
    "torchmetrics": "metrics",
    "scikit-image": "demo",
    "scikit-learn": "demo",
    "spandrel": "restorers",
    "gradio": "serve",
}


def describe(
    model: str | Named | None = None, *, checkpoint: str | Path | None = None, config: Mapping[str, Any] | None = None
) -> str:
    """Describe this machine: kernels, models, methods and optional packages; or probe one model.

    Args:
        model: shipped weights, a checkpoint file, module.path:callable, or a registered model with a checkpoint.
        checkpoint: weights of a registered model, or of the module that module.path:callable returns.
        config: keywords of the model's builder.

    Raises:
        UsageError: the model cannot be loaded, or does not return an image; or only settings of one are given.
    """
    if model is not None:
        restorer = expect_restorer(model, checkpoint=checkpoint, config=config)
        try:
            with guarded(str(model)):
                report = probe(restorer, competence=True)
        except (ValueError, TypeError) as error:
            raise UsageError(str(error)) from error
        return f"{report}\n\n{_cost(restorer, report)}"
    if checkpoint is not None or config:
        given = "its checkpoint" if checkpoint is not None else f"its {', '.join(config or ())}"
        raise UsageError(f"expected a model to go with {given}, got none")
    lines = [
        tta_restore.show_config(),
        "",
        f"shipped weights  {', '.join(name for name in SHIPPED_MODELS if (WEIGHTS / f'{name}.safetensors').is_file())}",
        f"models           {', '.join(list_models())}",
        f"methods          {', '.join(METHODS)}",
        "",
        "optional packages",
    ]
    for package, extra in _OPTIONAL.items():
        try:
            state = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            state = f"missing: pip install 'tta-restore[{extra}]'"
        lines.append(f"  {package:14}{state}")
    return "\n".join(lines)


def _cost(restorer: Restorer, report: ProbeReport) -> str:
    """Return the multiply-adds of a 1280x720 frame, or of the largest tile."""
    spec = report.spec
    height, width = spec.size.largest or spec.padded(720, 1280)
    border = spec.border if spec.size.largest else 0
    sides = height - 2 * border, width - 2 * border
    trial = as_restorer(restorer.module, spec)
    try:
        macs = _extrapolated(trial, (height, width))
        if macs is None:
            clip = () if spec.frames == 1 else (spec.frames or 5,)
            macs = count_macs(trial, torch.empty(1, *clip, spec.in_channels or 3, *sides, device="meta"))
        counted = str(macs)
    except Exception as error:  # a third-party model may raise anything where there are no values
        counted = f"not counted: {type(error).__name__}: {str(error).splitlines()[0]}"
    return f"at {width}x{height}:\n{counted}"


def _extrapolated(restorer: Restorer, size: tuple[int, int]) -> Macs | None:
    """Return the multiply-adds from passes on small frames, None for models that take none, or of clips."""
    module, spec = restorer.module, restorer.spec
    if spec is None or spec.frames != 1 or spec.size.largest or spec.size.multiple_of > 16:
        return None
    sizes = [spec.padded(side, side) for side in (_SIDES_INSIDE if spec.border else _SIDES)]
    if any(height != width or height > _SIDES[-1] + 2 * spec.border for height, width in sizes):
        return None
    device = next((parameter.device for parameter in module.parameters()), None)  # type: ignore[union-attr]
    sides = [height for height, _ in sizes]
    inside = [(1, spec.in_channels or 3, *(2 * [side - 2 * spec.border])) for side in sides]
    return extrapolate_macs(restorer, [torch.full(shape, 0.5, device=device) for shape in inside], sides, size)
