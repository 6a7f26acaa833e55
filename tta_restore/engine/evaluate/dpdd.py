"""The published protocol for defocus deblurring: one restorer, whole images, its numbers beside those in the paper.

Source: Iterative Filter Adaptive Network for Single Image Defocus Deblurring (Lee, Son, Rim, Cho, Lee; CVPR 2021).
"""

from __future__ import annotations

import csv
import inspect
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tta_restore import __version__, metrics
from tta_restore._core.processes import Processes
from tta_restore.data.datasets.layouts import FolderFrame, folder_frames
from tta_restore.data.io.atomic import atomic_file
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.engine.evaluate.maps import restorer_maps, write_maps
from tta_restore.engine.evaluate.published import TABLES
from tta_restore.engine.evaluate.results import QUANTITIES, FrameRecord, StreamResult, written
from tta_restore.engine.evaluate.runner import Unit, claim, open_lpips, run_units, task_of
from tta_restore.engine.evaluate.stream import evaluate_frame, identity, inputs_of
from tta_restore.engine.report.images import to_bytes
from tta_restore.engine.report.page import MethodNote, Report, Sample, require_packages, write_report
from tta_restore.engine.report.table import lay_out
from tta_restore.engine.run.device import resolve_device
from tta_restore.engine.run.extensions import find_metrics
from tta_restore.engine.run.methods import expect_one_frame
from tta_restore.engine.run.models import load_restorer
from tta_restore.engine.run.usage import UsageError
from tta_restore.models import Restorer

__all__ = [
    "INPUT",
    "LIMITS",
    "PUBLISHED",
    "FrameOfFiles",
    "Plain",
    "PublishedFrame",
    "beside",
    "result_paths",
    "run_published",
    "takes_views",
]

INPUT = "input"
_MULTIPLE = 8
_WINDOW = 384
_ROTATED = ("pixeldp",)
LIMITS = (
    "Pictures are cropped at the right and the bottom to multiples of 8 and restored whole; results are clipped to "
    "[0, 1] and measured as floats, without rounding; SSIM is scikit-image's with a uniform 7x7 window.",
    "Published numbers are quoted, not measured here; theirs was a GPU, whose convolutions differ in the last digits.",
)

#: Data set -> row -> PSNR (dB), SSIM, MAE, LPIPS, as printed in the paper and on its project page.
PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    data: {row.name: tuple(row.published[name].values()) for row in TABLES[table].rows}
    for data, name, table in (("dpdd", "DPDD", "ifan-dpdd"), ("realdof", "RealDOF", "ifan-realdof"))
}


@dataclass(frozen=True)
class FrameOfFiles:
    """An image of a data set as a protocol shows it; a subclass reads it.

    Attributes:
        files: the image and its original.
    """

    files: FolderFrame

    @property
    def blurry(self) -> Tensor:
        """(3, H, W) in [0, 1]."""
        return self._shown(self.files.blurry)

    @property
    def sharp(self) -> Tensor:
        """Likewise."""
        return self._shown(self.files.sharp)

    @property
    def blurry_path(self) -> Path:
        """The file."""
        return self.files.blurry_path

    @property
    def sharp_path(self) -> Path | None:
        """That of the original."""
        return self.files.sharp_path

    @property
    def family(self) -> str:
        """The data set."""
        return self.files.family

    @property
    def photo(self) -> str:
        """The file's name."""
        return self.files.photo

    @property
    def position(self) -> int:
        """In the data set."""
        return self.files.position

    def _shown(self, image: Tensor) -> Tensor:
        return image


@dataclass(frozen=True)
class PublishedFrame(FrameOfFiles):
    """A picture as the protocol shows it: cropped to multiples of 8, on 8 or 16 bits, PixelDP's turned upright."""

    bits: int = 8

    @property
    def blurry(self) -> Tensor:
        """(3, H, W) in [0, 1]."""
        return self._read(self.files.blurry_path)

    @property
    def sharp(self) -> Tensor:
        """Likewise."""
        return self._read(self.files.sharp_path) if self.files.sharp_path is not None else self.files.sharp

    @property
    def views(self) -> tuple[Tensor, ...]:
        """Right and left view; nothing where they were not asked for."""
        return tuple(self._read(p) for p in (self.files.right_path, self.files.left_path) if p is not None)

    def back(self, picture: Tensor) -> Tensor:
        """Return a result as the file lies. Shape: (..., H, W)."""
        return picture.rot90(-1, (-2, -1)) if self._rotated else picture

    @property
    def _rotated(self) -> bool:
        return self.family.lower() in _ROTATED

    def _read(self, path: Path) -> Tensor:
        picture = read_image(path).as_rgb(bit_depth=8 if self.bits == 8 else None)
        height, width = (side // _MULTIPLE * _MULTIPLE for side in picture.shape[1:])
        if not height or not width:
            raise ValueError(f"{path}: smaller than {_MULTIPLE} pixels")
        picture = picture[:, :height, :width]
        return picture.rot90(1, (1, 2)) if self._rotated else picture


class Plain:
    """A restorer, or nothing at all, as a method that learns nothing."""

    report = None

    def __init__(self, restorer: Restorer | None) -> None:
        self._restorer = restorer

    @torch.no_grad()
    def __call__(self, x: Tensor, *views: Tensor) -> Tensor:
        """Return the restored frame, clipped to [0, 1]."""
        if self._restorer is None:
            return identity(x)
        return self._restorer(x, **dict(zip(("right", "left"), views, strict=False))).clamp(0, 1)

    def save(self, path: Path, /) -> None:
        """Write an empty state: nothing is adapted."""
        save_file({}, path)

    def load(self, path: Path, /) -> None:
        """Do nothing: the state is empty."""


def run_published(
    domains: Mapping[str, str | Path],
    out: str | Path,
    *,
    model: str,
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    bits: int = 8,
    limit: int | None = None,
    lpips_weights: str | Path | None = None,
    more_metrics: Sequence[str] | None = None,
    save_pictures: bool = False,
    device: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> StreamResult | None:
    """Measure a restorer as the paper did; print the table beside the published one, write report, CSV and JSON.

    Results of images without an original (CUHK, PixelDP) are written to ``pictures/`` instead; those of the others
    when ``save_pictures``. An interrupted run is continued when it is called again with the same ``out``. Under
    torchrun the processes share the images, and all but the first return None.

    Args:
        domains: name -> folder; the names DPDD, RealDOF, CUHK and PixelDP say where in it files are looked for.
        out: folder for everything.
        model: what :func:`tta_restore.engine.run.models.load_restorer` takes, like the next two.
        checkpoint: weights of a registered model.
        config: keywords of its builder.
        bits: 8 cuts the lower bits of 16-bit files off, as the published numbers were measured; 16 keeps them.
        limit: first images of each data set only.
        lpips_weights: see :class:`tta_restore.metrics.Lpips`; without them LPIPS is left out, and said.
        more_metrics: see :func:`tta_restore.engine.run.extensions.find_metrics`.
        save_pictures: write all results, and below ``maps/`` the disparity and the strength of the filters of IFAN, or
            the blur map of a restorer that has one.
        device: where to run; None takes a CUDA device where there is one.
        progress: show a bar on stderr where it is a terminal.
        say: takes the text for the user.

    Returns:
        The records; None when no image has an original.

    Raises:
        UsageError: a folder, file or package is missing; nothing was run.
    """
    require_packages("torchmetrics", "jinja2", "matplotlib", "skimage")
    if bits not in (8, 16):
        raise UsageError(f"expected 8 or 16 bits, got {bits}")
    device = resolve_device(device)
    try:
        restorer = load_restorer(model, device=device, checkpoint=checkpoint, config=config)
        if not takes_views(restorer):
            expect_one_frame(restorer)
        frames = [PublishedFrame(f, bits) for f in folder_frames(domains, limit=limit, views=takes_views(restorer))]
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    out, name = Path(out), f"{model} (restored)" if model == INPUT else model.replace("/", "_").replace(":", ".")
    lpips, without = open_lpips(lpips_weights, device)
    psnr, ssim = metrics.protocols["ifan"]
    measures = metrics.ImageMetrics(psnr, ssim, lpips, find_metrics(more_metrics))
    settings = {"model": model, "checkpoint": None if checkpoint is None else str(checkpoint), "bits": bits}
    task = task_of([frame.files for frame in frames], measures, config=config, **settings)
    methods = {INPUT: Plain(None), name: Plain(restorer)}

    places = result_paths(frames)

    def keep(index: int, output: Tensor) -> None:
        frame = frames[index]
        if save_pictures or frame.sharp_path is None:
            path = out / "pictures" / frame.family / places[index]
            write_image(path, Image(frame.back(output)[0].clamp(0, 1).cpu()), bit_depth=8)
        if save_pictures:
            found = restorer_maps(restorer, *inputs_of(frame, device))
            found = {kind: frame.back(tensor).float() for kind, tensor in found.items()}
            write_maps(out / "maps" / frame.family / places[index].with_suffix(""), found)

    def measure(name: str, index: int) -> list[FrameRecord]:
        frame, look = frames[index], name != INPUT
        if frame.sharp_path is None:
            if look:
                keep(index, methods[name](*inputs_of(frame, device)))
            return []
        record, output = evaluate_frame(name, methods[name], frame, 0, index, measures, device=device)
        if look:
            keep(index, output)
        return [record]

    units = [
        Unit(f"{order}.{index}", partial(measure, row, index))
        for order, row in enumerate(methods)
        for index in range(len(frames))
    ]
    with Processes.join(device) as processes:
        if processes.first:
            claim(out / "run", task)
        processes.wait()
        records = run_units(units, out / "run", progress=progress, processes=processes)
        if not processes.first:
            return None
    counts = ", ".join(f"{family} {sum(f.family == family for f in frames)}" for family in domains)
    if blind := [family for family in domains if not any(r.family == family for r in records)]:
        kept = f"no originals, nothing to measure; results are in {out / 'pictures'}."
        without = [*without, f"{', '.join(blind)}: {kept}"]
    if not records:
        say("\n".join(without))
        return None
    stored = settings | {"config": dict(config or {}), "measures": measures.as_dict()}
    result = StreamResult(tuple(records), stored | {"domains": {n: str(path) for n, path in domains.items()}})
    table = beside(result, name)
    say("\n".join([lay_out("Means over pictures", table[0], table[1:]), *without]))
    facts = {
        "model": model, "checkpoint": str(checkpoint), "pictures": counts, "bits": str(bits), "device": device,
        "versions": f"tta_restore {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }  # fmt: skip
    notes = {INPUT: MethodNote("As the camera took it."), name: MethodNote(f"{type(restorer.module).__name__}.")}
    samples = _samples(result, frames, name, methods[name], device)
    report = Report(
        "The published protocol", result, INPUT, [(name, INPUT)], [name], notes, samples,
        facts=facts, limits=[*LIMITS, *without], group="data set", stream=False, beside=table,
    )  # fmt: skip
    write_report(out / "report.html", report)
    result.to_csv(out / "frames.csv")
    result.to_json(out / "results.json", INPUT)
    with atomic_file(out / "table.csv") as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(table)
    say(f"\nReport: {out / 'report.html'}   table: {out / 'table.csv'}   numbers: {out / 'results.json'}")
    return result


def result_paths(frames: Sequence[PublishedFrame]) -> list[Path]:
    """Return where results lie below the folder of their data set: as their inputs do, each under its own name."""
    folders = {
        family: os.path.commonpath([frame.blurry_path.parent.absolute() for frame in frames if frame.family == family])
        for family in {frame.family for frame in frames}
    }
    stems = Counter((frame.family, frame.blurry_path.with_suffix("")) for frame in frames)
    found = []
    for frame in frames:
        path = frame.blurry_path.absolute().relative_to(folders[frame.family])
        alone = stems[frame.family, frame.blurry_path.with_suffix("")] == 1
        found.append(path.with_name(f"{path.stem if alone else path.name}.png"))
    return found


def beside(result: StreamResult, name: str) -> list[list[str]]:
    """Header and rows: what was measured on each data set, then what was published for it."""
    shown = [*QUANTITIES, *(q for q in result.quantities if q not in QUANTITIES)]
    rows = [["", "data set", "pictures", *(written(quantity)[0] for quantity in shown), ""]]
    for family in result.families:
        for method in (INPUT, name):
            values = [
                f"{result.value(method, q, family).mean:.{written(q)[2]}f}" if q in result.quantities else "-"
                for q in shown
            ]
            rows.append([method, family, str(len(result.of(method, family))), *values, "measured"])
        for row, numbers in PUBLISHED.get(family.lower(), {}).items():
            values = [f"{n:.{QUANTITIES[q][2]}f}" for q, n in zip(QUANTITIES, numbers, strict=True)]
            values += ["-"] * (len(shown) - len(QUANTITIES))
            rows.append([row, family, "", *values, "published"])
    return rows


def takes_views(restorer: Restorer) -> bool:
    """Return whether a network takes the right and the left dual-pixel view."""
    module = restorer.module
    call = module.forward if isinstance(module, torch.nn.Module) else module
    return {"right", "left"} <= set(inspect.signature(call).parameters)


def _samples(
    result: StreamResult, frames: Sequence[PublishedFrame], name: str, method: Plain, device: str
) -> list[Sample]:
    """Return the image of median gain per data set and the worst image of all, as center crops."""

    def sample(frame: PublishedFrame, rule: str, psnr: Mapping[str, float], *, failure: bool = False) -> Sample:
        restored = frame.back(method(*inputs_of(frame, device)))[0]
        pictures = {INPUT: frame.back(frame.blurry), name: restored}
        sharp = None if frame.sharp_path is None else frame.sharp
        return Sample(
            title=f"{frame.family}: {frame.photo}",
            rule=rule,
            pictures={key: to_bytes(_middle(picture)) for key, picture in pictures.items()},
            sharp=None if sharp is None else to_bytes(_middle(sharp)),
            psnr=psnr,
            before=INPUT,
            after=name,
            failure=failure,
        )

    def known(record: FrameRecord) -> dict[str, float]:
        return {r.method: r.psnr for r in result.records if r.index == record.index}

    samples = []
    for family in dict.fromkeys(frame.family for frame in frames):
        if family in result.families:
            ranked = sorted(result.gains(name, INPUT, family=family), key=lambda pair: pair[1])
            record, gain = ranked[(len(ranked) - 1) // 2]
            rule = (
                f"The picture of this data set with the median gain over the input: {gain:+.2f} dB. The middle of it."
            )
            samples.append(sample(frames[record.index], rule, known(record)))
        else:
            first = next(frame for frame in frames if frame.family == family)
            samples.append(sample(first, "The first picture of a data set without originals. The middle of it.", {}))
    record, gain = result.worst(name, INPUT)
    rule = f"The picture with the smallest gain over the input of all: {gain:+.2f} dB. The middle of it."
    return [*samples, sample(frames[record.index], rule, known(record), failure=True)]


def _middle(picture: Tensor) -> Tensor:
    top, left = ((side - min(side, _WINDOW)) // 2 for side in picture.shape[-2:])
    return picture[..., top : top + _WINDOW, left : left + _WINDOW]
