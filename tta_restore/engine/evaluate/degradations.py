"""Methods around a user's restorer on photos degraded by named degradations of fixed strength."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore.data.io.files import images_below
from tta_restore.data.io.image import read_image
from tta_restore.data.io.pixels import ImageError
from tta_restore.data.synthetic import photos
from tta_restore.engine.evaluate.lenses import Comparison, Contender, compare
from tta_restore.engine.evaluate.results import StreamResult
from tta_restore.engine.evaluate.rows import Row, row_of
from tta_restore.engine.run.device import resolve_device
from tta_restore.engine.run.extensions import find_metrics, parse_degradation
from tta_restore.engine.run.methods import create_method, expect_one_frame
from tta_restore.engine.run.models import expect_restorer
from tta_restore.engine.run.settings import Named
from tta_restore.engine.run.usage import UsageError
from tta_restore.metrics import ImageMetrics

__all__ = ["DegradedFrame", "degraded_stream", "evaluate_degradations"]

_BASELINE = "self-ensemble"
_LIMITS = (
    "Degradations are simulated from sharp photos; a camera differs.",
    "Self-ensemble is the baseline, because methods that learn also return a mean over views.",
)


@dataclass(frozen=True)
class DegradedFrame:
    """A frame of a stream: degraded, and as it should be restored.

    Shape: blurry (3, H, W), sharp (3, s*H, s*W), in [0, 1].

    Attributes:
        blurry: degraded frame.
        sharp: original.
        family: degradation, as it was named.
        photo: name of the photo.
        position: index since the degradation changed.
    """

    blurry: Tensor
    sharp: Tensor
    family: str
    photo: str
    position: int


def degraded_stream(
    named: Sequence[str], sharp: Sequence[tuple[str, Tensor]], *, frames: int, size: int, scale: int, seed: int
) -> list[DegradedFrame]:
    """Return a stream: every degradation for a number of frames, photos in turn, crops drawn from the seed.

    Raises:
        UsageError: a degradation cannot be read.
        ValueError: a photo is smaller than the crop.
    """
    generator = torch.Generator().manual_seed(seed)
    stream = []
    for index, text in enumerate(named):
        degradation = parse_degradation(text)
        for position in range(frames):
            name, photo = sharp[(index * frames + position) % len(sharp)]
            height, width = photo.shape[-2:]
            if min(height, width) < size:
                raise ValueError(f"{name}: expected a photo of at least {size} x {size} pixels, got {width} x {height}")
            top, left = (int(torch.randint(0, n - size + 1, (), generator=generator)) for n in (height, width))
            target = photo[None, :, top : top + size, left : left + size]
            small = target
            if scale != 1:
                small = F.interpolate(target, scale_factor=1 / scale, mode="bicubic", antialias=True)
            blurry = degradation.apply(small.clamp(0, 1), degradation.sample(generator, 1), generator)
            stream.append(DegradedFrame(blurry[0].clamp(0, 1), target[0], text, name, position))
    return stream


def evaluate_degradations(
    out: str | Path,
    degradations: Sequence[str],
    *,
    model: str | Named,
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    methods: Sequence[str | Row] | None = None,
    photos_folder: str | Path | None = None,
    seeds: Sequence[int] = (1, 2, 3),
    frames: int = 6,
    size: int = 128,
    metrics: Sequence[str] | None = None,
    device: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> StreamResult:
    """Compare methods around a restorer on degraded photos, and write a report, CSV and JSON.

    Args:
        out: folder for the results.
        degradations: see :func:`tta_restore.engine.run.extensions.parse_degradation`; a stream shows one after the
            other, nothing reset in between.
        model: see :func:`tta_restore.engine.run.models.load_restorer`.
        checkpoint: see there.
        config: see there.
        methods: rows besides source and self-ensemble; None for "recommended".
        photos_folder: sharp photos; None for the bundled test photos.
        seeds: one stream each.
        frames: frames per degradation.
        size: side of the sharp crops, in pixels.
        metrics: further metrics, see :func:`tta_restore.engine.run.extensions.find_metrics`.
        device: where everything runs.
        progress: show progress on stderr.
        say: receives the text for the user.

    Raises:
        UsageError: a degradation, method, model or folder cannot be used; nothing was run.
    """
    chosen = resolve_device(device)
    measures = ImageMetrics(more=find_metrics(metrics))
    for text in degradations:
        parse_degradation(text)
    restorer = expect_restorer(model, device=chosen, checkpoint=checkpoint, config=config)
    expect_one_frame(restorer)
    rows = [row_of(row) for row in dict.fromkeys(["source", _BASELINE, *(methods or ["recommended"])])]
    for row in rows:
        create_method(row.method, restorer, seed=0)  # refuses what does not suit before the first frame
    try:
        scale = restorer.known_spec(torch.rand(1, 3, 64, 64, generator=torch.Generator()).to(chosen)).scale
        sharp = _photos(photos_folder)
        streams: dict[int, Any] = {
            seed: degraded_stream(
                degradations, sharp, frames=frames, size=size // scale * scale, scale=scale, seed=seed
            )
            for seed in dict.fromkeys(seeds)
        }
    except (ValueError, TypeError, RuntimeError, ImageError) as error:
        raise error if isinstance(error, UsageError) else UsageError(str(error)) from error
    shown = rows[-1].name
    comparison = Comparison(
        title=f"{model} on {', '.join(degradations)}",
        contenders=[
            Contender(row.name, _builder(row, restorer, chosen), f"Method {row.name} around the model.") for row in rows
        ],
        baseline=_BASELINE,
        contrasts=[(row.name, _BASELINE) for row in rows if row.name != _BASELINE],
        curves=[row.name for row in rows],
        shown=shown,
        before="source",
        limits=_LIMITS,
        group="degradation",
        measures=measures,
    )
    return compare(comparison, streams, out, progress=progress, say=say)


def _builder(row: Row, restorer: Any, device: str) -> Callable[[int], Any]:
    def build(seed: int) -> Any:
        method = create_method(row.method, restorer, seed=seed)

        def run(frame: Tensor) -> Tensor:
            return method(frame.to(device)).clamp(0, 1).cpu()

        run.report = None  # type: ignore[attr-defined]
        return run

    return build


def _photos(folder: str | Path | None) -> list[tuple[str, Tensor]]:
    if folder is None:
        return [(name, photos.load(name)) for name in photos.TEST]
    if not Path(folder).is_dir():
        raise UsageError(f"there is no folder {folder}")
    paths = images_below(Path(folder))
    if not paths:
        raise UsageError(f"{folder}: no image in this folder")
    return [(path.stem, read_image(path).as_rgb()) for path in paths]
