"""Measure a restorer on pairs that may be misaligned, against the sharp image as it is and after warping."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tta_restore import metrics, ops
from tta_restore._core.processes import Processes
from tta_restore.data.datasets.layouts import find_pairs
from tta_restore.data.io.image import read_image
from tta_restore.engine.evaluate.maps import pair_maps, write_maps
from tta_restore.engine.evaluate.results import IDENTICAL, FrameRecord, StreamResult
from tta_restore.engine.evaluate.runner import Unit, run_folder, run_units
from tta_restore.engine.run.device import resolve_device
from tta_restore.engine.run.extensions import find_metrics, use_layout
from tta_restore.engine.run.methods import expect_one_frame
from tta_restore.engine.run.models import build_module, expect_restorer
from tta_restore.engine.run.outputs import expect_file, expect_folder, locks_output
from tta_restore.engine.run.settings import Named
from tta_restore.engine.run.usage import UsageError
from tta_restore.models import Restorer
from tta_restore.models.jdrl import JDRLReblur
from tta_restore.models.optical_flow import create_flow

__all__ = ["evaluate_pairs", "evaluate_pairs_dataset", "summarize"]


def evaluate_pairs(
    restorer: Restorer | None,
    pairs: Sequence[tuple[Path, Path]],
    *,
    flow: Callable[[Tensor, Tensor], Tensor] | None,
    align_corners: bool = True,
    multiple: int = 1,
    bgr: bool = False,
    name: str = "restored",
    device: str = "cpu",
    progress: bool = True,
    folder: Path | None = None,
    processes: Processes = Processes(),
    look: Callable[[int, Tensor, Tensor, Tensor], None] | None = None,
    more: Mapping[str, Callable[[Tensor, Tensor], Tensor]] | None = None,
    maps: Path | None = None,
    reblur: JDRLReblur | None = None,
) -> list[FrameRecord]:
    """Restore the blurry file of every pair and compare it with the sharp one, as it is and warped.

    A record's ``metrics`` are "input_psnr" and, against the sharp image warped onto the restoration, "aligned_psnr" and
    "aligned_ssim". Warped and plain values are not comparable, nor are warped values of two estimators. Images are
    floats in [0, 1], not rounded; SSIM has a uniform 7 x 7 window (``protocols["jdrl"]``).

    Args:
        restorer: what is measured; None for the blurry images themselves.
        pairs: paths, see :func:`tta_restore.data.datasets.layouts.find_pairs`.
        flow: optical flow estimator for the aligned metrics; None leaves them out.
        align_corners: warp exactly; False as released, half a pixel off at the borders.
        multiple: crop both images at the right and the bottom to a multiple of this; 1 for whole images.
        bgr: give the estimator the color channels in reverse order.
        name: of the method, for the records.
        device: where everything runs.
        progress: show progress on stderr.
        folder: see :func:`tta_restore.engine.evaluate.runner.run_units`.
        processes: see there.
        look: called with the number of every pair, its blurry, sharp and restored image, (3, H, W) each.
        more: further metrics by name, of the restored and the sharp image.
        maps: folder for what is estimated on the way, see :func:`tta_restore.engine.evaluate.maps.pair_maps`.
        reblur: reblurring network for the kernels among them.

    Raises:
        ValueError: there are no pairs, or the files of one differ in size.
    """
    if not pairs:
        raise ValueError("evaluate_pairs: expected at least one pair of files")
    protocol = metrics.protocols["jdrl"][1]

    def measure(index: int) -> list[FrameRecord]:
        paths = pairs[index]
        blurry, sharp = (read_image(path).as_rgb()[None].to(device) for path in paths)
        if blurry.shape != sharp.shape:
            raise ValueError(f"{paths[0]} and {paths[1]}: expected one size, got {blurry.shape} and {sharp.shape}")
        height, width = (side // multiple * multiple for side in blurry.shape[-2:])
        if not height or not width:
            raise ValueError(f"{paths[0]}: smaller than {multiple} pixels")
        blurry, sharp = (image[..., :height, :width] for image in (blurry, sharp))
        started, cpu = time.perf_counter(), time.process_time()
        with torch.no_grad():
            restored = blurry if restorer is None else restorer(blurry).clamp(0, 1)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        values = {"input_psnr": _psnr(blurry, sharp)}
        warped = None
        if flow is not None:
            first, second = (image.flip(1) if bgr else image for image in (restored, sharp))
            with torch.no_grad():
                found = flow(first, second)
                warped = ops.flow_warp(sharp, found, padding_mode="border", align_corners=align_corners)
            values["aligned_psnr"] = _psnr(restored, warped)
            values["aligned_ssim"] = float(metrics.ssim(restored, warped, protocol=protocol).mean())
        values |= {name: float(metric(restored, sharp)) for name, metric in (more or {}).items()}
        if maps is not None:
            estimator = None if flow is None else lambda a, b: flow(a.flip(1), b.flip(1)) if bgr else flow(a, b)
            found = pair_maps(restorer, blurry, sharp, restored, flow=estimator, warped=warped, reblur=reblur)
            write_maps(maps / f"{index:04d}_{paths[0].stem}", found)
        if look is not None:
            look(index, blurry[0], sharp[0], restored[0])
        plain = {"psnr": _psnr(restored, sharp), "ssim": float(metrics.ssim(restored, sharp, protocol=protocol).mean())}
        own: dict[str, Any] = {"family": "pairs", "photo": paths[0].stem, "position": index}
        timing = {"wall_seconds": wall, "cpu_seconds": cpu}
        return [FrameRecord(method=name, stream=0, index=index, **own, **plain, **timing, metrics=values)]

    units = [Unit(str(index), partial(measure, index)) for index in range(len(pairs))]
    return run_units(units, folder, progress=progress, processes=processes)


def _psnr(restored: Tensor, sharp: Tensor) -> float:
    return min(float(metrics.psnr(restored, sharp).mean()), IDENTICAL)


@locks_output
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
    multiple: int = 1,
    metrics: Sequence[str] | None = None,
    maps: str | Path | None = None,
    reblur: str | Path | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> str:
    """Measure a restorer on a data set of pairs, against the sharp image as it is and warped onto the restoration.

    Args:
        root: folder of the data set.
        layout: sdd, dpdd, realdof, ded, folders for blurry/ and sharp/, a plug-in, or module.path:function of root
            and split.
        split: of the data set.
        model: shipped weights, a checkpoint file, module.path:callable, or a registered model such as ifan.
        checkpoint: weights of a registered model, or of the module that module.path:callable returns.
        config: keywords of the model's builder.
        flow: optical flow estimator: raft, lucas_kanade, pwc (needs --flow-checkpoint), or auto.
        flow_checkpoint: weights of the flow estimator, for pwc.
        multiple: crop images at the right and the bottom to a multiple of this, as JDRL's tests do to 16.
        metrics: further metrics, by the name of a plug-in or by module.path:function; columns of the CSV file.
        maps: folder for blur maps, kernels, masks and flow of every pair, as tensors and as images.
        reblur: file of JDRL's reblurring network, for the kernels among the maps.
        device: such as cpu or cuda (default: cuda where there is one)
        out: CSV file, a row per pair; an interrupted run continues, and torchrun shares the pairs.
        progress: show progress on stderr.

    Returns:
        Means over the pairs.

    Raises:
        UsageError: the data set, the model or the estimator cannot be used.
    """
    chosen = resolve_device(device)
    expect_file(out)
    restorer = expect_restorer(model, device=chosen, checkpoint=checkpoint, config=config)
    expect_one_frame(restorer)
    try:
        pairs = find_pairs(root, use_layout(layout), split)
        weights = {} if flow_checkpoint is None else {"checkpoint": flow_checkpoint}
        estimator = create_flow(flow, **weights).to(chosen)
        blur: Any = None
        if reblur is not None:
            blur = build_module("jdrl_reblur", checkpoint=reblur, kind="reblurrer").to(chosen).eval()
        task = {"model": str(model), "checkpoint": str(checkpoint), "config": dict(config or {}), "flow": flow}
        task |= {"multiple": multiple, "metrics": list(metrics or ()), "pairs": [str(path) for path, _ in pairs]}
        with Processes.join(chosen) as processes, run_folder(out, task, processes) as folder:
            records = evaluate_pairs(
                restorer, pairs, flow=estimator, multiple=multiple, device=chosen, folder=folder, processes=processes,
                progress=progress, maps=None if maps is None else expect_folder(maps, flag="--maps"), reblur=blur,
                more=find_metrics(metrics),
            )  # fmt: skip
            if out is not None and processes.first:
                StreamResult(tuple(records)).to_csv(out)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    return summarize(records, flow=type(estimator).__name__)


def summarize(records: Sequence[FrameRecord], *, flow: str) -> str:
    """Return the means over the pairs as a sentence."""

    def mean(name: str) -> float:
        return sum(getattr(r, name) if hasattr(r, name) else r.metrics[name] for r in records) / len(records)

    return (
        f"{len(records)} pairs: input {mean('input_psnr'):.2f} dB, restored {mean('psnr'):.2f} dB, "
        f"SSIM {mean('ssim'):.4f}; against the sharp image warped by {flow} {mean('aligned_psnr'):.2f} dB, "
        f"SSIM {mean('aligned_ssim'):.4f}"
    )
