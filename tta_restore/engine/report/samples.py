"""Samples of a run that the report shows: frames with their restorations, kept as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tta_restore import metrics
from tta_restore.data.datasets.layouts import FolderFrame
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.engine.evaluate.results import StreamResult
from tta_restore.engine.report.page import Sample

__all__ = ["INPUT", "KeptPictures"]

_GAP = 4


_SIDE = 320  # of the crop that is shown, in pixels of the original
INPUT = "input"


class KeptPictures:
    """The middle image with an original of every data set in the last round, as every method left it.

    Crops of the center are written as PNG into ``folder``, so that a run that is continued has those of before.
    """

    def __init__(self, frames: Sequence[FolderFrame], folder: str | Path) -> None:
        self.frames, self.folder = frames, Path(folder)
        places: dict[str, list[int]] = {}
        for index, frame in enumerate(frames):
            if frame.sharp_path is not None:
                if frame.position == 0:
                    places[frame.family] = []  # a new round
                places.setdefault(frame.family, []).append(index)
        self.chosen = [where[len(where) // 2] for where in places.values()]

    def keep(self, name: str, index: int, output: Tensor) -> None:
        """Write the crop of a method's output (1, C, H, W), if the frame is one of those chosen."""
        if index in self.chosen:
            write_image(self._path(name, index), Image(_crop(output[0]).detach().float().cpu().clamp(0, 1)))

    def samples(self, result: StreamResult, *, before: str, after: str) -> list[Sample]:
        """Return one sample per data set; the PSNR next to a crop is that of the whole image."""
        samples = []
        for index in self.chosen:
            frame = self.frames[index]
            psnr = {r.method: r.psnr for r in result.records if r.index == index}
            sharp, blurry = frame.sharp, frame.blurry
            pictures = {name: read_image(self._path(name, index)).as_rgb() for name in psnr}
            if blurry.shape == sharp.shape:
                pictures = {INPUT: _crop(blurry), **pictures}
                psnr[INPUT] = float(metrics.psnr(blurry[None], sharp[None]))
            samples.append(
                Sample(
                    title=f"{frame.family}: {frame.photo}",
                    rule=f"The middle picture of this data set, its central {_SIDE} pixels; PSNR of the whole picture.",
                    pictures=pictures,
                    sharp=_crop(sharp),
                    psnr=psnr,
                    before=before if before in pictures else after,
                    after=after,
                )
            )
        return samples

    def _path(self, name: str, index: int) -> Path:
        return self.folder / f"{name}.{index}.png"


def _crop(picture: Tensor) -> Tensor:
    """Return the center of (C, H, W)."""
    starts = [max(side - _SIDE, 0) // 2 for side in picture.shape[-2:]]
    crop = picture[..., starts[0] : starts[0] + _SIDE, starts[1] : starts[1] + _SIDE]
    return torch.empty_like(crop, memory_format=torch.contiguous_format).copy_(crop)
