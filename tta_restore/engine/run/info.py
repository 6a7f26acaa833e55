"""What there is on this machine, and what a model turns out to be when it is tried."""

from __future__ import annotations

import importlib.metadata

import torch

import tta_restore
from tta_restore.engine.run.methods import METHODS
from tta_restore.engine.run.models import SHIPPED, load_restorer
from tta_restore.engine.run.usage import UsageError
from tta_restore.models import ProbeReport, Restorer, as_restorer, count_macs, list_models, probe
from tta_restore.models.checkpoint import WEIGHTS

_OPTIONAL = {
    "tifffile": "io",
    "imagecodecs": "io",
    "matplotlib": "report",
    "jinja2": "report",
    "torchmetrics": "metrics",
    "scikit-image": "demo",
    "scikit-learn": "demo",
    "spandrel": "restorers",
}


def describe(model: str | None = None) -> str:
    """Kernels, models, methods and optional packages; with `model`, what a probe measures of it instead.

    Raises:
        UsageError: the model cannot be loaded, or gives no image.
    """
    if model is not None:
        try:
            restorer = load_restorer(model)
            report = probe(restorer, competence=True)
            return f"{report}\n\n{_cost(restorer, report)}"
        except (ValueError, TypeError, ImportError) as error:
            raise UsageError(str(error)) from error
    lines = [
        tta_restore.show_config(),
        "",
        f"shipped weights  {', '.join(name for name in SHIPPED if (WEIGHTS / f'{name}.safetensors').is_file())}",
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
    """Multiply-adds of a frame of 1280x720, by shapes alone."""
    height, width = report.spec.padded(720, 1280)
    clip = () if report.spec.frames == 1 else (report.spec.frames or 5,)
    frame = torch.empty(1, *clip, report.spec.in_channels or 3, height, width, device="meta")
    try:
        counted = str(count_macs(as_restorer(restorer.module, report.spec), frame))
    except Exception as error:  # whatever a stranger's model raises where there are no values
        counted = f"not counted: {type(error).__name__}: {str(error).splitlines()[0]}"
    return f"at {width}x{height}:\n{counted}"
