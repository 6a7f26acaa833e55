"""What there is on this machine, and what a model turns out to be when it is tried."""

from __future__ import annotations

import importlib.metadata

import tta_restore
from tta_restore.engine.methods import METHODS
from tta_restore.engine.model_source import SHIPPED, load_restorer
from tta_restore.engine.usage import UsageError
from tta_restore.models import list_models, probe
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
            return str(probe(load_restorer(model)))
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
