"""Measure a restorer on pairs of files that may not be aligned: as they are, and after the sharp one was warped."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tta_restore import metrics, ops
from tta_restore.data.datasets.layouts import find_pairs
from tta_restore.data.io.atomic import atomic_file
from tta_restore.data.io.image import read_image
from tta_restore.engine.run.models import load_restorer
from tta_restore.engine.run.usage import UsageError
from tta_restore.models import Restorer
from tta_restore.models.optical_flow import create_flow


@dataclass(frozen=True)
class PairRecord:
    """One pair: PSNR in dB and SSIM against the sharp image as it is, and warped onto the restoration.

    Warped and plain values are not comparable, nor are warped ones of two estimators; JDRL reports warped ones for SDD.
    """

    name: str
    input_psnr: float
    psnr: float
    ssim: float
    aligned_psnr: float
    aligned_ssim: float


def evaluate_pairs(
    restorer: Restorer,
    pairs: Sequence[tuple[Path, Path]],
    *,
    flow: Callable[[Tensor, Tensor], Tensor],
    exact: bool = True,
    device: str = "cpu",
    progress: bool = True,
) -> list[PairRecord]:
    """Restore the blurry file of every pair and compare it with the sharp one.

    Args:
        restorer: what is measured.
        pairs: paths, see :func:`tta_restore.data.datasets.layouts.find_pairs`.
        flow: estimator, for the aligned columns.
        exact: warp exactly; False as released, half a pixel off at the borders.
        device: that everything runs on.
        progress: whether a bar is shown on a terminal.

    Raises:
        ValueError: there are no pairs, or the files of one differ in size.
    """
    if not pairs:
        raise ValueError("evaluate_pairs: expected at least one pair of files")
    records = []
    for paths in tqdm(pairs, disable=None if progress else True):
        blurry, sharp = (read_image(path).as_rgb()[None].to(device) for path in paths)
        if blurry.shape != sharp.shape:
            raise ValueError(f"{paths[0]} and {paths[1]}: expected one size, got {blurry.shape} and {sharp.shape}")
        with torch.no_grad():
            restored = restorer(blurry).clamp(0, 1)
            warped = ops.flow_warp(sharp, flow(restored, sharp), padding_mode="border", align_corners=exact)
        values = [
            metrics.psnr(blurry, sharp),
            metrics.psnr(restored, sharp),
            metrics.ssim(restored, sharp),
            metrics.psnr(restored, warped),
            metrics.ssim(restored, warped),
        ]
        records.append(PairRecord(paths[0].stem, *(float(value.mean()) for value in values)))
    return records


def run(
    root: Path,
    layout: str,
    split: str,
    *,
    model: str,
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    flow: str = "auto",
    device: str = "cpu",
    out: Path | None = None,
) -> str:
    """Measure a model on a data set, write the records, and return their summary.

    `model`, `checkpoint` and `config` are what :func:`tta_restore.engine.run.models.load_restorer` takes.

    Raises:
        UsageError: the data set, the model or the estimator cannot be used; the message says why.
    """
    try:
        pairs = find_pairs(root, layout, split)
        estimator = create_flow(flow).to(device)
        restorer = load_restorer(model, device=device, checkpoint=checkpoint, config=config)
        records = evaluate_pairs(restorer, pairs, flow=estimator, device=device)
    except (ValueError, ImportError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    if out is not None:
        write_records(records, out)
    return summary(records, flow=type(estimator).__name__)


def write_records(records: Sequence[PairRecord], path: str | Path) -> None:
    """Write one row per pair."""
    with atomic_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(PairRecord)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)


def summary(records: Sequence[PairRecord], *, flow: str) -> str:
    """Means over the pairs, in words."""
    means = {
        field.name: sum(getattr(record, field.name) for record in records) / len(records)
        for field in fields(PairRecord)[1:]
    }
    return (
        f"{len(records)} pairs: input {means['input_psnr']:.2f} dB, restored {means['psnr']:.2f} dB, "
        f"SSIM {means['ssim']:.4f}; against the sharp image warped by {flow} {means['aligned_psnr']:.2f} dB, "
        f"SSIM {means['aligned_ssim']:.4f}"
    )
