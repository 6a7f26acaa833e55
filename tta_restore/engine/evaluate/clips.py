"""Measure a method on the videos of a data set by the protocol that the data set is reported under."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from tta_restore import metrics
from tta_restore.data.datasets.clips import Clip
from tta_restore.data.datasets.layouts import find_clips
from tta_restore.data.io.atomic import atomic_file
from tta_restore.engine.run.device import resolve_device
from tta_restore.engine.run.methods import ClipMethod, create_clip_method
from tta_restore.engine.run.models import expect_restorer
from tta_restore.engine.run.outputs import expect_file
from tta_restore.engine.run.settings import Named
from tta_restore.engine.run.usage import UsageError


@dataclass(frozen=True)
class ClipFrameRecord:
    """One frame: PSNR in dB and SSIM of the blurred and of the restored frame against the sharp one.

    Results are rounded to 8 bits first. SSIM is that of the luma, except for aligned scores (RealBlur), which are RGB
    after brightness and geometry were fitted; ``aligned`` is False where that failed and the frames were compared as
    they are.
    """

    clip: str
    frame: int
    input_psnr: float
    input_ssim: float
    psnr: float
    ssim: float
    aligned: bool


def evaluate_clips(
    method: ClipMethod, clips: Sequence[Clip], *, align: bool = False, limit: int | None = None, progress: bool = True
) -> list[ClipFrameRecord]:
    """Restore every clip and compare its frames with their originals, which the method never sees.

    Args:
        method: from the blurred frames of a clip to the restored ones.
        clips: with originals.
        align: score by :func:`tta_restore.metrics.aligned_scores`, as RealBlur is.
        limit: frames of each clip, from its beginning; None for all.
        progress: whether a bar is shown on a terminal.

    Raises:
        ValueError: there are no clips, they have no originals, or frames and originals differ in size.
    """
    if not clips:
        raise ValueError("evaluate_clips: expected at least one clip")
    records = []
    for clip in tqdm(clips, disable=None if progress else True):
        seen = clip if limit is None else Clip(clip.name, clip.blurry[:limit], clip.originals()[:limit])
        for time, restored in enumerate(method(seen.blurry)):
            blurry, sharp = seen.blurry[time][None], seen.originals()[time][None]
            before, _ = _scores(blurry, sharp, align)
            after, aligned = _scores(restored.detach().float().cpu()[None], sharp, align)
            records.append(ClipFrameRecord(clip.name, time, *before, *after, aligned))
    return records


def evaluate_clips_dataset(
    root: str | Path,
    *,
    layout: str,
    split: Literal["train", "val", "test"] = "test",
    model: str | Named,
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    method: str | Named = "source",
    method_options: Mapping[str, Any] | None = None,
    reblur: str | Path | None = None,
    discriminator: str | Path | None = None,
    limit: int | None = None,
    device: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> str:
    """Measure a method on the videos of a data set, by the protocol that results on it are published under.

    Args:
        root: folder of the data set.
        layout: gopro, dvd, reds or realblur.
        split: of the data set.
        model: shipped weights, a checkpoint file, module.path:callable, or a registered model such as ifan.
        checkpoint: weights of a registered model, or of the module that module.path:callable returns.
        config: keywords of the model's builder.
        method: meta-transfer, any method for images, or module.path:Class.
        method_options: settings of the method.
        reblur: file of a reblurring network, for meta-transfer.
        discriminator: file of a discriminator, for meta-transfer.
        limit: first frames of each video only.
        device: such as cpu or cuda (default: cuda where there is one)
        seed: of the method.
        out: CSV file, a row per frame.

    Returns:
        Means over frames and over clips.

    Raises:
        UsageError: the data set, the model or the method cannot be used.
    """
    chosen = resolve_device(device)
    expect_file(out)
    try:
        clips = find_clips(root, layout, split)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    restorer = expect_restorer(model, device=chosen, checkpoint=checkpoint, config=config)
    networks = {"reblur": reblur, "discriminator": discriminator}
    restore = create_clip_method(method, restorer, **networks, seed=seed, device=chosen, **(method_options or {}))
    try:
        records = evaluate_clips(restore, clips, align=layout == "realblur", limit=limit)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    if out is not None:
        write_csv(records, out)
    return summarize(records)


def write_csv(records: Sequence[ClipFrameRecord], path: str | Path) -> None:
    """Write one row per frame."""
    with atomic_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(ClipFrameRecord)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)


def summarize(records: Sequence[ClipFrameRecord]) -> str:
    """Means over all frames, as the paper reports them, and over clips."""
    clips = {record.clip for record in records}

    def means(name: str) -> str:
        values: dict[str, list[float]] = {clip: [] for clip in clips}
        for record in records:
            values[record.clip].append(getattr(record, name))
        every = [value for found in values.values() for value in found]
        per_clip = sum(sum(found) / len(found) for found in values.values()) / len(values)
        return f"{sum(every) / len(every):.4g} ({per_clip:.4g})"

    lines = [f"{len(records)} frames of {len(clips)} clips; means over frames (over clips)"]
    lines += [
        f"  {what:9} PSNR {means(f'{prefix}psnr')} dB, SSIM {means(f'{prefix}ssim')}"
        for what, prefix in (("blurred", "input_"), ("restored", ""))
    ]
    lost = sum(not record.aligned for record in records)
    if lost and lost < len(records):
        lines.append(f"  {lost} frames could not be aligned and were compared as they are")
    return "\n".join(lines)


def _scores(picture: Tensor, sharp: Tensor, align: bool) -> tuple[tuple[float, float], bool]:
    for_psnr, for_ssim = metrics.protocols["meta-transferring"]
    if picture.shape != sharp.shape:
        raise ValueError(f"evaluate_clips: expected frames of {tuple(sharp.shape)}, got {tuple(picture.shape)}")
    with torch.no_grad():
        if align:
            found = metrics.aligned_scores(for_psnr.prepare(picture), sharp)
            return (found.psnr, found.ssim), found.converged
        psnr = metrics.psnr(picture, sharp, protocol=for_psnr)
        return (psnr.item(), metrics.ssim(picture, sharp, protocol=for_ssim).item()), False
