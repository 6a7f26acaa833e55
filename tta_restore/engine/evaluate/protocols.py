"""Protocols of the published tables: how one row is measured on the table's data sets.

A protocol is a function of a :class:`Job` that returns a record for every image or frame, with the data set as its
``family`` and the row as its ``method``. The number of a record's quantity is its field, or its entry of ``metrics``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tta_restore import metrics
from tta_restore._core.processes import Processes
from tta_restore.data.datasets.clip_folders import find_clips
from tta_restore.data.datasets.layouts import FolderFrame, find_pairs, folder_frames
from tta_restore.engine.evaluate.clips import evaluate_clips
from tta_restore.engine.evaluate.dpdd import FrameOfFiles, Plain, PublishedFrame, takes_views
from tta_restore.engine.evaluate.pairs import evaluate_pairs
from tta_restore.engine.evaluate.results import FrameRecord
from tta_restore.engine.evaluate.runner import Unit, run_resumable, run_units
from tta_restore.engine.evaluate.stream import evaluate_frame
from tta_restore.engine.evaluate.tables import DataSet, Row, Table
from tta_restore.engine.run.extensions import use_layout
from tta_restore.engine.run.methods import create_clip_method, create_method
from tta_restore.engine.run.settings import merge, nested
from tta_restore.engine.run.user_code import import_named, is_named
from tta_restore.models import Restorer
from tta_restore.models.optical_flow import create_flow
from tta_restore.models.restorer.spec import SizeRequirements, pad

__all__ = ["PROTOCOLS", "Job", "find_images", "find_protocol"]

#: Sides of tiles that no image has: the papers restore whole images.
_WHOLE = 1 << 20

Look = Callable[[str, int, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class Job:
    """One row of a table, and everything that it is measured with.

    Attributes:
        table: the table.
        row: the row.
        domains: folder of each data set that there is, in the order of the table.
        restorer: the network; None for the row of the degraded images.
        networks: files of further networks by argument.
        folder: where records and states are kept, so that an interrupted run continues.
        device: of everything.
        limit: first images, or frames of each video, of each data set only.
        lpips: distance of two images; None leaves LPIPS out.
        more: further metrics of the table by name.
        look: called with data set, number of the image in it, and its blurry, sharp and restored version, (3, H, W).
        processes: those that torchrun started.
        progress: show progress on stderr.
    """

    table: Table
    row: Row
    domains: Mapping[str, Path]
    restorer: Restorer | None
    networks: Mapping[str, Path | str]
    folder: Path
    device: str = "cpu"
    limit: int | None = None
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    more: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)
    look: Look | None = None
    processes: Processes = field(default_factory=Processes)
    progress: bool = True

    def settings(self) -> dict[str, Any]:
        """Return the settings of the row's method, with the files of its networks where their arguments are dotted."""
        own = nested({key: str(path) for key, path in self.networks.items() if "." in key})
        return merge(dict(self.row.method.settings), own)


Protocol = Callable[[Job], list[FrameRecord]]


def ifan(job: Job) -> list[FrameRecord]:
    """Measure as IFAN was: cropped to multiples of 8, whole images, floats, uniform 7 x 7 SSIM."""
    views = job.restorer is not None and takes_views(job.restorer)
    frames = [PublishedFrame(f, job.table.bits) for f in _frames(job, views=views)]
    psnr, ssim = metrics.protocols["ifan"]
    measures = metrics.ImageMetrics(psnr, ssim, job.lpips, job.more)
    method = Plain(job.restorer)

    def measure(index: int) -> list[FrameRecord]:
        frame = frames[index]
        record, output = evaluate_frame(job.row.name, method, frame, 0, index, measures, device=job.device)
        _look(job, frame.family, frame.position, frame.blurry, frame.sharp, output[0])
        return [record]

    return _units(job, [Unit(str(index), partial(measure, index)) for index in range(len(frames))])


def jdrl(job: Job) -> list[FrameRecord]:
    """Measure as JDRL was: floats, uniform 7 x 7 SSIM, and against the sharp image warped onto the restoration."""
    flow = None
    if "flow" in job.networks:
        flow = create_flow("pwc", checkpoint=job.networks["flow"]).to(job.device)
    records: list[FrameRecord] = []
    for name, folder in job.domains.items():
        data = job.table.data_set(name)
        use_layout(data.layout)
        found = evaluate_pairs(
            job.restorer, find_pairs(folder, data.layout, "test")[: job.limit],
            flow=flow if any(q.startswith("aligned") for q in data.quantities) else None,
            align_corners=False, bgr=job.row.bgr, multiple=max(data.multiple, 1), name=job.row.name,
            more=job.more, look=partial(_look, job, name), folder=_subfolder(job, name),
            device=job.device, processes=job.processes, progress=job.progress,
        )  # fmt: skip
        records += [replace(record, family=name) for record in found]
    return records


def meta(job: Job) -> list[FrameRecord]:
    """Measure as Meta Transferring was: 8 bits, luma SSIM, 100 dB for identical frames, RealBlur aligned."""
    records: list[FrameRecord] = []
    for name, folder in job.domains.items():
        data = job.table.data_set(name)
        use_layout(data.layout)
        clips = find_clips(folder, data.layout, "test")
        multiple = max(data.multiple, 1)
        networks: dict[str, Any] = {
            key: job.networks[key] for key in ("reblur", "discriminator") if key in job.networks
        }
        if job.restorer is None:
            method: Any = partial(_unrestored, SizeRequirements(1, multiple))
        else:
            method = create_clip_method(
                replace(job.row.method, settings=job.settings()), job.restorer,
                multiple=multiple, tile=_WHOLE, device=job.device, **networks,
            )  # fmt: skip
        first = {number: sum(_length(job, clip) for clip in clips[:number]) for number in range(len(clips))}

        def look(number: int, index: int, *images: Tensor, name: str = name, first: dict[int, int] = first) -> None:
            _look(job, name, first[number] + index, *images)

        found = evaluate_clips(
            method, clips, name=job.row.name, align=data.align, multiple=multiple, limit=job.limit, look=look,
            more=job.more, folder=_subfolder(job, name), processes=job.processes, progress=job.progress,
        )  # fmt: skip
        records += [replace(record, family=name) for record in found]
    return records


def causiam(job: Job) -> list[FrameRecord]:
    """Measure as CauSiam was: one stream over all data sets, padded images, truncated to 8 bits.

    Images of a stream follow one another, so that processes share rows, not images.
    """
    frames = [
        _PaddedFrame(frame, SizeRequirements(1, max(job.table.data_set(frame.family).multiple, 1)))
        for frame in _frames(job)
    ]
    if job.restorer is None:
        method: Any = Plain(None)
    else:
        named = replace(job.row.method, settings=job.settings())
        method = create_method(named, job.restorer, tile=_WHOLE)

    def look(index: int, output: Tensor) -> None:
        frame = frames[index]
        if frame.sharp_path is not None:
            _look(job, frame.family, frame.position, frame.blurry, frame.sharp, output[0])

    psnr, ssim = metrics.protocols["causiam"]
    measures = metrics.ImageMetrics(psnr, ssim, job.lpips, job.more)
    return run_resumable(
        frames, job.row.name, method, job.folder, file="stream", measures=measures, device=job.device,
        progress=job.progress, look=look,
    )  # fmt: skip


@dataclass(frozen=True)
class _PaddedFrame(FrameOfFiles):
    """An image and its original, extended by reflection at the right and the bottom to legal sizes."""

    size: SizeRequirements

    def _shown(self, image: Tensor) -> Tensor:
        return pad(image, self.size)


#: Protocol of a table -> function that measures a row.
PROTOCOLS: dict[str, Protocol] = {"ifan": ifan, "jdrl": jdrl, "meta": meta, "causiam": causiam}


def find_protocol(name: str) -> Protocol:
    """Return a protocol by name, or the function that ``module.path:function`` names.

    Raises:
        ValueError: there is none.
    """
    if is_named(name):
        return import_named(name)
    if name not in PROTOCOLS:
        raise ValueError(
            f"no protocol {name!r}; there are: {', '.join(PROTOCOLS)}, and your own by module.path:function"
        )
    return PROTOCOLS[name]


def find_images(data: DataSet, folder: Path, protocol: str, limit: int | None) -> int:
    """Return the number of images that a protocol measures in a folder; nothing is read.

    Raises:
        ValueError: the folder does not have the layout of the data set; the message has what is missing.
    """
    use_layout(data.layout)
    if protocol == "meta":
        return sum(min(len(clip), limit or len(clip)) for clip in find_clips(folder, data.layout, "test"))
    if protocol == "jdrl":
        return len(find_pairs(folder, data.layout, "test")[:limit])
    return len(folder_frames({data.name: folder}, limit=limit, layouts={data.name: data.layout or data.name}))


def _frames(job: Job, *, views: bool = False) -> list[FolderFrame]:
    layouts = {data.name: data.layout for data in job.table.data if data.layout}
    return folder_frames(job.domains, limit=job.limit, views=views, layouts=layouts)


def _units(job: Job, units: Sequence[Unit]) -> list[FrameRecord]:
    return run_units(units, job.folder, progress=job.progress, processes=job.processes)


def _unrestored(size: SizeRequirements, frames: Any) -> Iterator[Tensor]:
    for time in range(len(frames)):
        yield pad(frames[time][None], size)[0]


def _subfolder(job: Job, name: str) -> Path:
    folder = job.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _length(job: Job, clip: Any) -> int:
    return len(clip) if job.limit is None else min(len(clip), job.limit)


def _look(job: Job, name: str, index: int, blurry: Tensor, sharp: Tensor, restored: Tensor) -> None:
    if job.look is not None:
        with torch.no_grad():
            job.look(name, index, *(image.detach().float().cpu() for image in (blurry, sharp, restored)))
