"""Restore photos one after another with and without adaptation, and record what each gained and cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tta_restore.adapters import StepReport
from tta_restore.data.io.color import to_model_space
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import check_writable, write_image
from tta_restore.data.io.pixels import Image, ImageError
from tta_restore.engine.report.images import crop, find_most_changed
from tta_restore.engine.run.calibrate import write_checkpoint
from tta_restore.engine.run.device import resolve_device
from tta_restore.engine.run.methods import ImageMethod, create_method
from tta_restore.engine.run.models import expect_restorer, origin_of
from tta_restore.engine.run.restore_clips import reason_not_to_adapt
from tta_restore.engine.run.restore_plan import written_suffix
from tta_restore.engine.run.settings import Named
from tta_restore.engine.run.usage import UsageError

__all__ = ["PhotoLimits", "PhotoRecord", "PhotoRestorer"]

_DEGRADATION = ("noise", "noise_filter", "blur", "jpeg_quality")  # of the metrics
_DETAIL = 1024  # longest side of the part that is shown at full resolution


@dataclass(frozen=True)
class PhotoLimits:
    """Limits on the photos that are accepted.

    Attributes:
        max_pixels: largest number of pixels of a photo.
        max_bytes: largest size of a file.
        max_files: largest number of photos at a time.

    Raises:
        UsageError: a limit is below 1.
    """

    max_pixels: int = 50_000_000
    max_bytes: int = 500_000_000
    max_files: int = 50

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_bytes", "max_files"):
            if getattr(self, name) < 1:
                raise UsageError(f"expected {name} >= 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class PhotoRecord:
    """Result for one photo.

    Attributes:
        name: file name of the photo.
        error: why it was not restored, in one line; None if it was.
        result: restored file in the format of the photo; None if it was not restored.
        before: PNG file of the part that is shown, restored by the self-ensemble of the unadapted model.
        after: the same part restored by the adapted model.
        size: (H, W) of the result in pixels.
        detail: (top, left, H, W) of the part that is shown, in pixels; None where the whole image is shown.
        trust: weight of the adapted model in the result, 0 to 1; None if the method does not measure it.
        gain: PSNR gain of the adapted model over the unadapted one on held-out pairs, dB; None if not measured.
        input_weight: weight of the photo itself in the result, 0 to 1.
        degradation: estimated noise in 1/255, its filter and the blur radius in pixels, JPEG quality, by name; may be
            empty.
        steps: optimizer steps taken.
        seconds: wall time with adaptation.
        baseline_seconds: wall time of the self-ensemble of the unadapted model.
        messages: remarks on the photo.
    """

    name: str
    error: str | None = None
    result: Path | None = None
    before: Path | None = None
    after: Path | None = None
    size: tuple[int, int] = (0, 0)
    detail: tuple[int, int, int, int] | None = None
    trust: float | None = None
    gain: float | None = None
    input_weight: float = 0.0
    degradation: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    baseline_seconds: float = 0.0
    messages: tuple[str, ...] = ()


class PhotoRestorer:
    """Adapts a restorer to photos one after another, as ``tta-restore restore`` does, and compares with the source.

    Args:
        model: shipped weights, a checkpoint file, ``module.path:callable``, or a registered model.
        folder: where results and previews are written; made where it is missing.
        checkpoint: weights of a registered model.
        config: keywords of the model's builder.
        task: what the model removes: defocus, motion, denoise, jpeg, sr or any; None to measure it.
        device: where to run, such as cpu or cuda; None for a CUDA device where there is one.
        seed: of the method.
        limits: largest photos that are accepted.
        options: settings of :class:`tta_restore.adapters.DegradationPairs`, such as ``budget`` or ``steps``.

    Raises:
        UsageError: the model cannot be loaded, or does not take single images.
    """

    def __init__(
        self,
        model: str | Named,
        folder: str | Path,
        *,
        checkpoint: str | Path | None = None,
        config: Mapping[str, Any] | None = None,
        task: str | None = None,
        device: str | None = None,
        seed: int = 0,
        limits: PhotoLimits | None = None,
        **options: Any,
    ) -> None:
        self.folder, self.limits = Path(folder), limits or PhotoLimits()
        self.device = resolve_device(device)
        self.model = str(model)
        restorer = expect_restorer(model, device=self.device, checkpoint=checkpoint, config=config)
        self._origin = origin_of(model, checkpoint, config)
        chosen: dict[str, Any] = {"seed": seed} if task is None else {"seed": seed, "task": task}
        self._adapted = create_method("recommended", restorer, **chosen)
        if options and self.learns:  # a method that adapts nothing takes none of them
            self._adapted = create_method("recommended", restorer, **chosen, **options)
        self._baseline = create_method("self-ensemble", restorer)

    @property
    def learns(self) -> bool:
        """Return whether the model has weights that adaptation changes."""
        return bool(self._adapted.adapter.adapted)

    def restore(self, path: str | Path) -> PhotoRecord:
        """Restore a photo, learn from it, and write the result and two previews; never raises for a bad photo.

        Args:
            path: image file of any format that ``tta-restore restore`` reads.

        Returns:
            A record, with ``error`` set where the photo cannot be read, is too large, or the model fails on it.
        """
        path = Path(path)
        try:
            return self._restore(path)
        except ImageError as error:
            reason = str(error).replace(f"{path}: ", "").replace(str(path), path.name)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
        except (Exception, SystemExit) as error:  # whatever a third-party model raises concerns this photo alone
            reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
        return PhotoRecord(path.name, error=reason)

    def save_checkpoint(self, path: str | Path) -> bool:
        """Write the adapted weights under the model's own keys; return whether they differ from the original ones.

        Raises:
            UsageError: the model has no weights to adapt.
        """
        adapter = self._adapted.adapter
        if not self.learns:
            raise UsageError(f"{self.model} has no weights to adapt")
        exported = adapter.export()
        write_checkpoint(exported, path, {"source": self.model, **self._origin})
        original = adapter.export("source").state_dict()
        return any(not tensor.equal(original[name]) for name, tensor in exported.state_dict().items())

    def _restore(self, path: Path) -> PhotoRecord:
        if path.stat().st_size > self.limits.max_bytes:
            raise ImageError(
                f"{path}: {path.stat().st_size / 1e6:.0f} MB, the limit is {self.limits.max_bytes / 1e6:.0f} MB"
            )
        image = read_image(path, max_pixels=self.limits.max_pixels)
        target = self._target(path)
        check_writable(target, image, source=path)
        rgb, back = to_model_space(image)
        reason = reason_not_to_adapt(rgb)
        before, baseline_seconds, _ = self._timed(self._baseline, rgb, adapt=False)
        after, seconds, note = self._timed(self._adapted, rgb, adapt=reason is None)
        remarks = (*image.notes, *write_image(target, back(after)))
        box = find_most_changed(before, after, _DETAIL)
        previews = [self.folder / f"{target.name}.{kind}.png" for kind in ("before", "after")]
        for preview, shown in zip(previews, (before, after), strict=True):
            write_image(preview, Image(shown if box is None else crop(shown, box)))
        if reason is not None:
            remarks += (reason,)
        record = PhotoRecord(
            path.name,
            result=target,
            before=previews[0],
            after=previews[1],
            size=(after.shape[-2], after.shape[-1]),
            detail=box,
            seconds=seconds,
            baseline_seconds=baseline_seconds,
            messages=(*(() if note is None else (note,)), *remarks),
        )
        report = self._adapted.report
        return record if reason is not None or report is None or not self.learns else _with_report(record, report)

    def _timed(self, method: ImageMethod, rgb: Tensor, *, adapt: bool) -> tuple[Tensor, float, str | None]:
        """Return the restored image (3, s*H, s*W) in [0, 1], the wall time, and a note on the averaged views."""
        started = time.perf_counter()
        with method.sized(rgb.shape[-2], rgb.shape[-1]) as note:
            restored = (method if adapt else method.predict)(rgb[None].to(self.device))
        return restored[0].detach().float().cpu().clamp(0, 1), time.perf_counter() - started, note

    def _target(self, path: Path) -> Path:
        """Return a new name for the result, in a format that can be written."""
        suffix = written_suffix(path, None) or path.suffix
        target, count = self.folder / f"{path.stem}-restored{suffix}", 2
        while target.exists():
            target, count = self.folder / f"{path.stem}-restored-{count}{suffix}", count + 1
        return target


def _with_report(record: PhotoRecord, report: StepReport) -> PhotoRecord:
    """Return a record with what an adapter reported on the photo."""
    metrics = report.metrics
    idle = not report.updated and report.skipped_because is not None
    skipped = (f"nothing was learned: {report.skipped_because}",) if idle else ()
    return replace(
        record,
        trust=report.trust,
        gain=metrics.get("lead"),
        input_weight=metrics.get("input_weight", 0.0),
        degradation={name: metrics[name] for name in _DEGRADATION if name in metrics},
        steps=report.steps,
        messages=(*skipped, *report.messages, *record.messages),
    )
