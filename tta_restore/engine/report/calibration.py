"""Self-contained HTML page of a calibration: photos before and after it, gain, cost, and the estimated degradation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore.adapters.calibration import CalibrationReport
from tta_restore.data.io.atomic import atomic_file
from tta_restore.data.io.color import in_range
from tta_restore.engine.report.images import crop, find_most_changed
from tta_restore.engine.report.page import Sample, environment, require_packages, sample_context
from tta_restore.models import Restorer

__all__ = ["CALIBRATED", "ORIGINAL", "PHOTO", "CalibrationPage", "compare_photos", "write_calibration"]

CALIBRATED, ORIGINAL, PHOTO = "calibrated model", "original model", "photo"
_SIDE = 320  # of the part of a photo that is shown, in pixels of the photo
_LARGEST_SIDE = 640  # of the same part of the result


@dataclass(frozen=True)
class CalibrationPage:
    """Everything the page shows.

    Attributes:
        title: of the page.
        report: result of the calibration.
        samples: parts of photos, the one that the page opens with first; may be empty.
        photos: names of the photos that were used, in order.
        remarks: on photos that were not used, a line each.
        facts: what was run.
    """

    title: str
    report: CalibrationReport
    samples: Sequence[Sample] = ()
    photos: Sequence[str] = ()
    remarks: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def write_calibration(path: str | Path, page: CalibrationPage) -> None:
    """Write the page: completely, or not at all. It refers to nothing outside itself.

    Raises:
        UsageError: jinja2 is not installed.
    """
    require_packages("jinja2")  # torch depends on it
    report = page.report
    contexts = [sample_context(sample) for sample in page.samples]
    html = (
        environment()
        .get_template("calibration.html.jinja")
        .render(
            title=page.title,
            report=report,
            is_measured=not math.isnan(report.gain),
            is_adapted=report.worthwhile or math.isnan(report.gain),
            lead=contexts[0] if contexts else None,
            samples=contexts[1:],
            found=report.described_degradation,
            gains=list(zip(page.photos, report.gains, strict=False)),
            remarks=[*report.grouped_messages, *page.remarks],
            facts=page.facts,
        )
    )
    with atomic_file(path) as partial:
        partial.write_text(html, encoding="utf-8")


@torch.no_grad()
def compare_photos(
    photos: Sequence[tuple[str, Tensor]], restorer: Restorer, calibrated: torch.nn.Module | None
) -> list[Sample]:
    """Restore photos with the original and the calibrated model, and take the part of each where they differ most.

    Args:
        photos: name and pixels (3, H, W) of each photo, RGB in [0, 1].
        restorer: original model, in eval mode.
        calibrated: module with the calibrated weights, in eval mode; None compares the photo with the original model.

    Returns:
        A sample per photo, in falling order of the mean difference between the two images compared.
    """
    found: list[tuple[float, Sample]] = []
    for name, photo in photos:
        restored = {ORIGINAL: restorer(photo[None])}
        if calibrated is not None:
            restored[CALIBRATED] = restorer.restore(photo[None], call=calibrated).image
        scale = max(restored[ORIGINAL].shape[-1] // photo.shape[-1], 1)
        images = {PHOTO: photo} | {kind: F.avg_pool2d(image, scale)[0] for kind, image in restored.items()}
        before, after = (PHOTO, ORIGINAL) if calibrated is None else (ORIGINAL, CALIBRATED)
        box = find_most_changed(images[before], images[after], min(_SIDE, _LARGEST_SIDE // scale))
        top, left, height, width = box or (0, 0, *photo.shape[-2:])
        enlarged = (scale * top, scale * left, scale * height, scale * width)
        parts = {PHOTO: crop(photo, (top, left, height, width))}
        parts |= {kind: crop(image[0], enlarged) for kind, image in restored.items()}
        change = float(crop(images[after] - images[before], (top, left, height, width)).abs().mean())
        rule = "The part in which the two differ most." if box else "The whole of what was used."
        shown = {kind: in_range(part.float().cpu()) for kind, part in parts.items()}
        found.append((change, Sample(name, rule, shown, None, {}, before, after)))
    return [sample for _, sample in sorted(found, key=lambda pair: -pair[0])]
