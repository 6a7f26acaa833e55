"""Measure a restorer on pairs of files that may not be aligned: as they are, and after the sharp one was warped."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from tta_restore import metrics, ops
from tta_restore.data.datasets.layouts import find_pairs
from tta_restore.data.io.atomic import atomic_file
from tta_restore.data.io.image import read_image
from tta_restore.engine.evaluate.stream import IDENTICAL
from tta_restore.engine.run.device import resolve_device
from tta_restore.engine.run.methods import expect_one_input
from tta_restore.engine.run.models import expect_restorer
from tta_restore.engine.run.outputs import expect_file
from tta_restore.engine.run.settings import Named
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
        records.append(PairRecord(paths[0].stem, *(min(float(value.mean()), IDENTICAL) for value in values)))
    return records


def evaluate_pairs_dataset(
    root: str | Path,
    *,
    layout: str,
    split: Literal["train", "val", "test"] = "test",
    model: str | Named,
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    flow: str = "auto",
    flow_checkpoint: str | Path | None = None,
    device: str | None = None,
    out: str | Path | None = None,
) -> str:
    """Measure a restorer on a data set of pairs, against the sharp image as it is and warped onto the restoration.

    Args:
        root: folder of the data set.
        layout: sdd, dpdd, realdof, ded, or folders for blurry/ and sharp/.
        split: of the data set.
        model: shipped weights, a checkpoint file, module.path:callable, or a registered model such as ifan.
        checkpoint: weights of a registered model, or of the module that module.path:callable returns.
        config: keywords of the model's builder.
        flow: optical flow estimator: raft, lucas_kanade, pwc (needs --flow-checkpoint), or auto.
        flow_checkpoint: weights of the flow estimator, for pwc.
        device: such as cpu or cuda (default: cuda where there is one)
        out: CSV file, a row per pair.

    Returns:
        Means over the pairs.

    Raises:
        UsageError: the data set, the model or the estimator cannot be used.
    """
    chosen = resolve_device(device)
    expect_file(out)
    restorer = expect_restorer(model, device=chosen, checkpoint=checkpoint, config=config)
    expect_one_input(restorer)
    try:
        pairs = find_pairs(root, layout, split)
        weights = {} if flow_checkpoint is None else {"checkpoint": flow_checkpoint}
        estimator = create_flow(flow, **weights).to(chosen)
        records = evaluate_pairs(restorer, pairs, flow=estimator, device=chosen)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    if out is not None:
        write_csv(records, out)
    return summarize(records, flow=type(estimator).__name__)


def write_csv(records: Sequence[PairRecord], path: str | Path) -> None:
    """Write one row per pair."""
    with atomic_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(PairRecord)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)


def summarize(records: Sequence[PairRecord], *, flow: str) -> str:
    """Return the means over the pairs as a sentence."""
    means = {
        field.name: sum(getattr(record, field.name) for record in records) / len(records)
        for field in fields(PairRecord)[1:]
    }
    return (
        f"{len(records)} pairs: input {means['input_psnr']:.2f} dB, restored {means['psnr']:.2f} dB, "
        f"SSIM {means['ssim']:.4f}; against the sharp image warped by {flow} {means['aligned_psnr']:.2f} dB, "
        f"SSIM {means['aligned_ssim']:.4f}"
    )
