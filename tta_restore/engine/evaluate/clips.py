"""Measure a method on the videos of a data set by the protocol that the data set is reported under."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tta_restore import metrics
from tta_restore._core.processes import Processes
from tta_restore.data.datasets.clip_folders import find_clips
from tta_restore.data.datasets.clips import Clip
from tta_restore.engine.evaluate.results import FrameRecord, StreamResult
from tta_restore.engine.evaluate.runner import Unit, run_folder, run_units
from tta_restore.engine.evaluate.stream import scalars
from tta_restore.engine.run.calibrate import write_checkpoint
from tta_restore.engine.run.device import resolve_device
from tta_restore.engine.run.extensions import find_metrics, use_layout
from tta_restore.engine.run.methods import ClipMethod, create_clip_method
from tta_restore.engine.run.models import expect_restorer, origin_of
from tta_restore.engine.run.outputs import expect_file, expect_folder, locks_output
from tta_restore.engine.run.settings import Named
from tta_restore.engine.run.usage import UsageError
from tta_restore.models.restorer.spec import SizeRequirements, pad

__all__ = ["evaluate_clips", "evaluate_clips_dataset", "summarize"]


def evaluate_clips(
    method: ClipMethod,
    clips: Sequence[Clip],
    *,
    name: str = "restored",
    align: bool = False,
    multiple: int = 1,
    limit: int | None = None,
    look: Callable[[int, int, Tensor, Tensor, Tensor], None] | None = None,
    more: Mapping[str, Callable[[Tensor, Tensor], Tensor]] | None = None,
    checkpoints: Path | None = None,
    origin: Mapping[str, str] | None = None,
    progress: bool = True,
    folder: Path | None = None,
    processes: Processes = Processes(),
) -> list[FrameRecord]:
    """Restore every clip and compare its frames with their originals, which the method never sees.

    Results are rounded to 8 bits first. SSIM is that of the luma, except for aligned scores, which are RGB after
    brightness and geometry were fitted. A record's ``metrics`` are "input_psnr", "input_ssim", and "aligned": 0 where
    the fit failed and the frames were compared as they are.

    Args:
        method: maps the blurred frames of a clip to the restored ones.
        clips: with originals.
        name: of the method, for the records.
        align: score by :func:`tta_restore.metrics.aligned_scores`, as for RealBlur.
        multiple: extend blurred frames and originals by reflection at the right and the bottom to a multiple of this
            before they are compared; the method returns frames of that size, see
            :func:`tta_restore.engine.run.methods.create_clip_method`.
        limit: first frames of each clip only; None for all.
        more: further metrics by name, of the restored and the sharp frame.
        look: called with the numbers of every clip and frame, the blurred, the sharp and the restored frame.
        checkpoints: folder for the adapted weights of every clip, under the model's own keys; for methods of
            :func:`tta_restore.engine.run.methods.create_clip_method`.
        origin: of the model, for the metadata of these files, see :func:`tta_restore.engine.run.models.origin_of`.
        progress: show progress on stderr.
        folder: see :func:`tta_restore.engine.evaluate.runner.run_units`.
        processes: see there.

    Raises:
        ValueError: there are no clips, they have no originals, or frames and originals differ in size.
    """
    if not clips:
        raise ValueError("evaluate_clips: expected at least one clip")
    size, found = SizeRequirements(1, multiple), dict(more or {})

    def measure(number: int) -> list[FrameRecord]:
        clip = clips[number]
        seen = clip if limit is None else Clip(clip.name, clip.blurry[:limit], clip.originals()[:limit])
        records = []
        wall, cpu = time.perf_counter(), time.process_time()
        for index, restored in enumerate(method(seen.blurry)):
            timing = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
            blurry, sharp = (pad(part[index][None], size) for part in (seen.blurry, seen.originals()))
            before, _ = _scores(blurry, sharp, align)
            after, aligned = _scores(restored.detach().float().cpu()[None], sharp, align)
            if look is not None:
                look(number, index, blurry[0], sharp[0], restored.detach().float().cpu())
            own = {"input_psnr": before[0], "input_ssim": before[1], "aligned": float(aligned)}
            own |= {what: float(metric(restored.detach().float().cpu()[None], sharp)) for what, metric in found.items()}
            report = scalars(getattr(getattr(method, "adapter", None), "report", None))
            records.append(
                FrameRecord(
                    method=name, stream=number, index=index, family=clip.name, photo=clip.name, position=index,
                    psnr=after[0], ssim=after[1], **timing, metrics=own, report=report,
                )
            )  # fmt: skip
            wall, cpu = time.perf_counter(), time.process_time()
        if checkpoints is not None:
            adapted = method.adapter.export()  # type: ignore[missing-attribute]
            path = checkpoints / f"{clip.name}.safetensors"
            write_checkpoint(adapted, path, {"clip": clip.name, **(origin or {})})
        return records

    units = [Unit(str(number), partial(measure, number)) for number in range(len(clips))]
    return run_units(units, folder, progress=progress, processes=processes)


@locks_output
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
    metrics: Sequence[str] | None = None,
    device: str | None = None,
    seed: int = 0,
    checkpoints: str | Path | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> str:
    """Measure a method on the videos of a data set, by the protocol that results on it are published under.

    Args:
        root: folder of the data set.
        layout: gopro, dvd, reds, realblur, a plug-in, or module.path:function of root and split.
        split: of the data set.
        model: shipped weights, a checkpoint file, module.path:callable, or a registered model such as ifan.
        checkpoint: weights of a registered model, or of the module that module.path:callable returns.
        config: keywords of the model's builder.
        method: meta-transfer, any method for images, or module.path:Class.
        method_options: settings of the method.
        reblur: file of a reblurring network, for meta-transfer (default: one that needs no training)
        discriminator: file of a discriminator, for meta-transfer.
        limit: first frames of each video only.
        metrics: further metrics, by the name of a plug-in or by module.path:function; columns of the CSV file.
        device: such as cpu or cuda (default: cuda where there is one)
        seed: of the method.
        checkpoints: folder for the adapted weights of every video.
        out: CSV file, a row per frame; an interrupted run continues, and torchrun shares the clips.
        progress: show progress on stderr.

    Returns:
        Means over frames and over clips.

    Raises:
        UsageError: the data set, the model or the method cannot be used.
    """
    chosen = resolve_device(device)
    expect_file(out)
    try:
        clips = find_clips(root, use_layout(layout), split)
        more = find_metrics(metrics)
        kept = None if checkpoints is None else expect_folder(checkpoints, flag="--checkpoints")
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    restorer = expect_restorer(model, device=chosen, checkpoint=checkpoint, config=config)
    networks = {"reblur": reblur, "discriminator": discriminator}
    restore = create_clip_method(method, restorer, **networks, seed=seed, device=chosen, **(method_options or {}))
    try:
        task: dict[str, Any] = {
            "model": str(model),
            "checkpoint": str(checkpoint),
            "config": dict(config or {}),
            "seed": seed,
        }
        task |= {
            "method": str(method),
            "options": dict(method_options or {}),
            "limit": limit,
            "metrics": list(metrics or ()),
        }
        task |= {"networks": [str(reblur), str(discriminator)], "clips": [str(root), split, *(c.name for c in clips)]}
        with Processes.join(chosen) as processes, run_folder(out, task, processes) as folder:
            options: dict[str, Any] = {"folder": folder, "processes": processes, "progress": progress}
            records = evaluate_clips(
                restore,
                clips,
                name=str(method),
                align=layout == "realblur",
                limit=limit,
                more=more,
                checkpoints=kept,
                origin=origin_of(model, checkpoint, config) if kept else None,
                **options,
            )
            if out is not None and processes.first:
                StreamResult(tuple(records)).to_csv(out)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    return summarize(records)


def summarize(records: Sequence[FrameRecord]) -> str:
    """Return the means over all frames, as papers report them, and over clips."""
    clips = {record.family for record in records}

    def means(name: str) -> str:
        values: dict[str, list[float]] = {clip: [] for clip in clips}
        for record in records:
            value = record.metrics[name] if name in record.metrics else getattr(record, name)
            values[record.family].append(value)
        every = [value for found in values.values() for value in found]
        per_clip = sum(sum(found) / len(found) for found in values.values()) / len(values)
        return f"{sum(every) / len(every):.4g} ({per_clip:.4g})"

    lines = [f"{len(records)} frames of {len(clips)} clips; means over frames (over clips)"]
    lines += [
        f"  {what:9} PSNR {means(f'{prefix}psnr')} dB, SSIM {means(f'{prefix}ssim')}"
        for what, prefix in (("blurred", "input_"), ("restored", ""))
    ]
    lost = sum(not record.metrics["aligned"] for record in records)
    if lost and lost < len(records):
        lines.append(f"  {lost} frames could not be aligned and were compared as they are")
    reasons: dict[str, list[str]] = {}
    for record in records:
        if (why := record.report.get("skipped_because")) and record.family not in reasons.setdefault(str(why), []):
            reasons[str(why)].append(record.family)
    lines += [f"  not adapted to, in part or at all: {', '.join(names)} ({why})" for why, names in reasons.items()]
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
