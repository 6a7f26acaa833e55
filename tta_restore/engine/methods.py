"""The methods that the command line knows by name, around any restorer, with images in and images out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tta_restore import adapters
from tta_restore.adapters import Adapter, Plan, StepReport
from tta_restore.engine.usage import UsageError
from tta_restore.models import Restorer, create_model, structure
from tta_restore.models.restorer import find_image


class ImageMethod:
    """An adapter that gives the image alone, whatever else its model returns, and restores large images in tiles.

    Shape: (B, 3, H, W) in [0, 1] -> (B, 3, s*H, s*W).
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def __call__(self, x: Tensor) -> Tensor:
        """Adapt on a frame and restore it."""
        output = self.adapter(x)
        spec = self.adapter.restorer.known_spec(x)
        return structure.at(output, find_image(output, spec, (x.shape[-2], x.shape[-1])))

    @property
    def report(self) -> StepReport | None:
        """What happened on the latest frame."""
        return self.adapter.report

    def plan(self) -> Plan:
        """What is adapted, and at which cost."""
        return self.adapter.plan()

    def save(self, path: str | Path) -> None:
        """Write what was learnt."""
        self.adapter.save(path)

    def load(self, path: str | Path) -> None:
        """Continue from what :meth:`save` wrote; raises ValueError when it belongs to another method or model."""
        self.adapter.load(path)


def _with_estimator(name: str) -> Callable[..., Adapter]:
    """A method that reads the lens, with the shipped estimator where the restorer is."""

    def make(restorer: Restorer, **options: Any) -> Adapter:
        device = next((p.device for p in restorer.parameters()), torch.device("cpu"))
        estimator = create_model("lens_estimator", checkpoint="lens_estimator").to(device)
        return adapters.create_adapter(name, restorer, estimator, **options)

    return make


def _siam_ctta(restorer: Restorer, **options: Any) -> Adapter:
    return adapters.SiamCTTA(restorer, select="all", **options)


def _literal(name: str) -> Callable[..., Adapter]:
    return lambda restorer, **options: adapters.create_adapter(name, restorer, form="literal", **options)


#: Methods that are not simply `create_adapter(name, restorer)`. "source" runs the restorer by the same core, unadapted.
METHODS: MappingProxyType[str, Callable[..., Adapter]] = MappingProxyType(
    {
        "recommended": adapters.recommended,
        "reblur-pairs": _with_estimator("reblur_pairs"),
        "reblur-consistency": _with_estimator("reblur_consistency"),
        "siam-ctta": _siam_ctta,
        "causiam": adapters.CauSiam,
        "causiam-repaired": partial(adapters.CauSiam, form="repaired"),
        "tent": adapters.Tent,
        "tent-literal": _literal("tent"),
        "cotta": adapters.CoTTA,
        "cotta-literal": _literal("cotta"),
        "sar": adapters.SAR,
        "sar-literal": _literal("sar"),
        "eata": adapters.EATA,
        "eata-literal": _literal("eata"),
        "roid": adapters.ROID,
        "srtta": adapters.SRTTA,
        "self-ensemble": adapters.SelfEnsemble,
        "source": Adapter,
    }
)


def create_method(name: str, restorer: Restorer, *, seed: int = 0, tile: int = 1024) -> ImageMethod:
    """A method around a restorer; images with a side longer than `tile` are restored in tiles of that size.

    Raises:
        UsageError: there is no such method, or it needs more than a restorer.
    """
    if name not in METHODS:
        raise UsageError(f"no method {name!r}; there are: {', '.join(METHODS)}")
    tiles = adapters.Tiles(size=tile)
    try:
        return ImageMethod(METHODS[name](restorer, seed=seed, tiles=tiles))
    except (ValueError, TypeError) as error:
        raise UsageError(f"method {name!r}: {error}") from error
