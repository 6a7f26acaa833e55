"""Restore one image that does not fit into memory, strip by strip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from tta_restore._core.progress import ProgressBar
from tta_restore.data.io.carry import fit_format, strip_metadata
from tta_restore.data.io.color import is_srgb, profile_note, to_model_space
from tta_restore.data.io.image import MAX_PIXELS
from tta_restore.data.io.image_writer import check_writable
from tta_restore.data.io.large import LargeImage, declared_pixels, open_large, samples_of, write_large
from tta_restore.data.io.pixels import ImageError
from tta_restore.engine.run.restore_clips import Output, is_constant, sized
from tta_restore.engine.run.restore_plan import Job

__all__ = ["LARGE_PIXELS", "is_large", "restore_large"]

#: Images with more pixels are restored in strips.
LARGE_PIXELS = MAX_PIXELS
_STRIP = 512  # rows of a strip
_OVERLAP = 64  # rows above and below that a strip is restored with, so that no seam shows
_WINDOW, _WINDOWS = 384, 3  # side in pixels of the windows that a method adapts to, and how many along each side


def is_large(path: Path, output: Output) -> bool:
    """Return whether an image is restored in strips: above :data:`LARGE_PIXELS`, and allowed by the limit."""
    return output.max_pixels > LARGE_PIXELS and LARGE_PIXELS < declared_pixels(path) <= output.max_pixels


def restore_large(
    job: Job, method: Any, device: str | torch.device, output: Output, say: Callable[[str], None]
) -> bool:
    """Restore a PNG or TIFF file in bounded memory, with samples on disk next to the result.

    The method adapts once, to windows all over the image, and restores all strips as it is then. Returns True: the
    file could be read whole.

    Raises:
        ImageError: the file cannot be read or written in strips.
    """
    if job.destination.suffix.lower() not in (".png", ".tif", ".tiff"):
        raise ImageError(f"{job.source}: an image of this size is written as PNG or TIFF")
    folder = job.destination.parent
    with open_large(job.source, folder, max_pixels=output.max_pixels) as large:
        depth = output.bit_depth or large.samples.dtype.itemsize * 8
        if depth not in (8, 16):
            raise ImageError(f"{job.source}: an image of this size is written with 8 or 16 bits, not {depth}")
        corner = large.rows(0, 1, slice(1))
        check_writable(job.destination, corner, bit_depth=depth, source=job.source)
        if corner.gamma and not is_srgb(corner) and job.destination.suffix.lower() != ".png":
            raise ImageError(f"{job.source}: a PNG file of this size with a gamma of its own is written as PNG")
        with TemporaryDirectory(dir=folder, prefix=".strips-") as name:
            with sized(method, *large.size) as note:
                if note:
                    say(f"note: {job.source}: {note}")
                restore, how = _adapted(large, method, device)
                shown = getattr(getattr(method, "adapter", None), "show_progress", False)
                result = _restore_strips(large, restore, device, depth, Path(name) / "result", progress=shown)
            carried = replace(large.carried, bit_depth=depth)
            carried = carried.without_sized(result.shape[0] // large.size[0])
            notes = [*carried.notes, *filter(None, [profile_note(corner)])]
            if output.strip:
                carried = strip_metadata(carried)
            kind = "png" if job.destination.suffix.lower() == ".png" else "tiff"
            carried, lost = fit_format(carried, kind, depth, embeds_exif=kind == "png")
            write_large(job.destination, result, carried)
        height, width = large.size
        say(f"note: {job.source}: {width} x {height} pixels restored in strips, {how}")
        for note in [*notes, *lost]:
            say(f"note: {job.source}: {note}")
    return True


def _restore_strips(
    large: LargeImage,
    restore: Callable[[torch.Tensor], torch.Tensor],
    device: Any,
    depth: int,
    target: Path,
    *,
    progress: bool,
) -> np.ndarray:
    height, width = large.size
    levels = 2**depth - 1
    result: Any = None
    bar: dict[str, Any] = {"desc": "strips", "unit": "strip", "leave": False, "shown": progress}
    for top in ProgressBar(range(0, height, _STRIP), **bar):
        first, last = max(0, top - _OVERLAP), min(height, top + _STRIP + _OVERLAP)
        strip = large.rows(first, last)
        rgb, back = to_model_space(strip)
        restored = restore(rgb[None].to(device))[0].detach().float().cpu()
        scale = restored.shape[-1] // width
        samples = samples_of(back(restored), levels)
        if result is None:
            shape = (height * scale, width * scale, samples.shape[2])
            result = np.memmap(target, samples.dtype, "w+", shape=shape)
        bottom = min(height, top + _STRIP)
        result[top * scale : bottom * scale] = samples[(top - first) * scale : (bottom - first) * scale]
    return result


def _adapted(
    large: LargeImage, method: Any, device: str | torch.device
) -> tuple[Callable[[torch.Tensor], torch.Tensor], str]:
    """Adapt to windows all over the image; return what restores without adapting further, and a note on it."""
    if not callable(getattr(method, "predict", None)):
        return method, "each as an image of its own"
    rows, columns = (
        sorted({round(i * max(0, side - _WINDOW) / (_WINDOWS - 1)) for i in range(_WINDOWS)}) for side in large.size
    )
    crops = [
        to_model_space(large.rows(top, top + _WINDOW, slice(left, left + _WINDOW)))[0]
        for top in rows
        for left in columns
    ]
    crops = [crop for crop in crops if not is_constant(crop)]
    if not crops:
        return method.predict, "without adapting: the parts that were looked at are constant"
    method.adapter.adapt(torch.stack(crops).to(device))
    return method.predict, f"adapted to {len(crops)} windows of it"
