"""Calibrate a restorer on a few frames of a camera, and report what was found and gained."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tta_restore._core.processes import Processes
from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.methods.degradation_pairs import DegradationPairs
from tta_restore.adapters.recommended import recommended

__all__ = ["CalibrationProgress", "CalibrationReport", "calibrate"]

_WORTH = 0.1  # dB on held-out pairs from which the calibrated model is recommended
_OF_FRAME = re.compile(r"frame (\d+): (.*)", re.DOTALL)
_MIN_TRUST = 0.05
_PARAMETERS = {
    "noise": ("noise, standard deviation", "{:.1f} / 255"),
    "noise_filter": ("filter that correlates it, standard deviation", "{:.2f} pixels"),
    "blur": ("blur, root mean square radius", "{:.2f} pixels"),
    "jpeg_quality": ("JPEG quality", "{:.0f}"),
}


@dataclass(frozen=True)
class CalibrationReport:
    """Result of :func:`calibrate`; ``print`` it.

    Attributes:
        model: the calibrated model, a copy of the original with its own parameter names: its ``state_dict()`` loads
            wherever the original's does. A copy of the original if nothing was gained.
        frames: number of frames used.
        steps: number of optimizer steps taken.
        seconds: wall time.
        task: what the model was found to remove.
        degradation: estimated degradation of the frames: noise in 1/255, blur radius in pixels, JPEG quality, and the
            filter of noise that correlates between pixels, standard deviation in pixels.
        gain: PSNR gain of the calibrated model over the original on held-out pairs, in dB; NaN for methods without
            such pairs.
        trust: weight of the adapted model in the average that restores best, 0 to 1.
        learning_rate: learning rate that was found.
        gains: gain after each frame, in dB.
        messages: remarks on single frames.
    """

    model: nn.Module
    frames: int
    steps: int
    seconds: float
    task: str
    degradation: dict[str, float]
    gain: float
    trust: float
    learning_rate: float | None
    gains: tuple[float, ...] = ()
    messages: tuple[str, ...] = field(default=(), repr=False)

    @property
    def worthwhile(self) -> bool:
        """Return whether the calibrated model is better than the original by 0.1 dB or more on held-out pairs."""
        return self.gain >= _WORTH and self.trust >= _MIN_TRUST

    @property
    def verdict(self) -> str:
        """``"worth using"`` or ``"no gain: keep the original"``, with numbers."""
        if math.isnan(self.gain):
            return "not measured: the method has no held-out pairs; compare both models on frames of yours"
        if self.worthwhile:
            return f"worth using: {self.gain:+.2f} dB on held-out pairs, trust {self.trust:.2f}"
        if self.trust < _MIN_TRUST and max(self.gains, default=0.0) >= _WORTH:
            gain = f"up to {max(self.gains):+.2f} dB on held-out pairs, which tests on the frames did not confirm"
            return f"no gain: keep the original ({gain}: trust {self.trust:.2f})"
        return f"no gain: keep the original ({self.gain:+.2f} dB on held-out pairs, trust {self.trust:.2f})"

    @property
    def described_degradation(self) -> tuple[tuple[str, str], ...]:
        """``degradation`` as names in words and values with units."""
        return tuple(
            (name, "none found" if key == "jpeg_quality" and self.degradation[key] >= 100 else form.format(value))
            for key, (name, form) in _PARAMETERS.items()
            if (value := self.degradation.get(key)) is not None
        )

    @property
    def grouped_messages(self) -> tuple[str, ...]:
        """``messages`` with one entry per remark, which names all frames that have it."""
        found: dict[str, list[str]] = {}
        for message in self.messages:
            match = _OF_FRAME.fullmatch(message)
            frames = found.setdefault(message if match is None else match[2], [])
            frames += [] if match is None else [match[1]]
        return tuple(
            f"frame{'' if len(frames) == 1 else 's'} {', '.join(frames)}: {remark}" if frames else remark
            for remark, frames in found.items()
        )

    def __str__(self) -> str:
        found = "; ".join(f"{name} {value}" for name, value in self.described_degradation)
        lines = [
            f"task           {self.task}",
            f"frames         {self.frames}, {self.steps} steps, {self.seconds:.1f} s",
            f"degradation    {found or 'not estimated'}",
            f"gain by frame  {' '.join(f'{gain:+.2f}' for gain in self.gains)} dB on held-out pairs",
            f"verdict        {self.verdict}",
        ]
        return "\n".join([*lines, *(f"               {message}" for message in self.grouped_messages)])


@dataclass(frozen=True)
class CalibrationProgress:
    """Progress of an unfinished calibration, which continues from it and from the state of its adapter.

    Attributes:
        frames: number of frames used.
        steps: number of optimizer steps taken.
        seconds: wall time.
        gains: gain after each frame, in dB.
        messages: remarks on single frames.
    """

    frames: int = 0
    steps: int = 0
    seconds: float = 0.0
    gains: tuple[float, ...] = ()
    messages: tuple[str, ...] = ()


def calibrate(
    model: Any,
    frames: Iterable[Tensor],
    *,
    budget: str | None = None,
    processes: Processes | None = None,
    progress: CalibrationProgress | None = None,
    on_frame: Callable[[CalibrationProgress], None] | None = None,
    **options: Any,
) -> CalibrationReport:
    """Adapt a restorer to the camera that took a few frames, once, and export the result.

    Frames are used one after another until the adapter is steady, the frames end, or the budget is spent. 5 to 25
    frames of one camera with one setting are a good number.

    Args:
        model: a restorer (module, function, spandrel descriptor or :class:`tta_restore.models.Restorer`), or an
            :class:`Adapter`, which is left with what it learned.
        frames: degraded frames (B, C, H, W) or (C, H, W), RGB in [0, 1], on the model's device. Read one at a time.
        budget: total time such as ``"60s"``; None for no limit. ``"10x"`` limits each frame to 10 times a plain forward
            pass.
        processes: those of ``torchrun``, as :class:`Processes` joins them; None for one process. All of them call this
            with the same model and frames, share the pairs of every step, and return the same weights, up to rounding
            those of one process.
        progress: of a calibration to continue, with an :class:`Adapter` that was left or loaded there and the frames
            that were not used; None for a new one.
        on_frame: called after every frame, to keep the adapter's state.
        options: options of the adapter that :func:`recommended` makes for a model, such as ``task`` or ``seed``.

    Raises:
        ValueError: there is no frame, the budget is malformed, the adapter has no weights to adapt, or there are more
            processes than pairs in a batch.
        TypeError: ``options`` are given with an adapter.
    """
    seconds, processes = _seconds(budget), processes or Processes()
    if isinstance(model, Adapter):
        if options:
            raise TypeError(f"calibrate: an adapter takes no options, got {', '.join(options)}")
        adapter = model
    else:
        adapter = recommended(model, **options)
    if not adapter.adapted:
        raise ValueError(f"calibrate: expected an adapter with weights to adapt, got {type(adapter).__name__}")
    pairs = adapter if isinstance(adapter, DegradationPairs) else None
    if pairs is not None and processes.count > pairs.batch_size:
        raise ValueError(f"calibrate: expected batch_size >= {processes.count} processes, got {pairs.batch_size}")
    done = progress or CalibrationProgress()
    started, steps, count = time.perf_counter() - done.seconds, done.steps, done.frames
    gains, messages = list(done.gains), list(done.messages)
    for frame in () if pairs is not None and count and pairs.phase == "steady" else frames:
        left = None if seconds is None else processes.agree(seconds - (time.perf_counter() - started))
        if left is not None and left <= 0:
            messages.append(f"the budget of {budget} was spent after {count} frame{'' if count == 1 else 's'}")
            break
        limit = budget if seconds is None else f"{left:.3f}s"
        adapter.processes = processes
        try:
            with contextlib.nullcontext() if pairs is None else pairs.calibrating(limit, continued=count > 0):
                report = adapter.adapt(frame[None] if frame.ndim == 3 else frame)
        finally:
            adapter.processes = Processes()  # further frames are this process's own
        count, steps = count + 1, steps + report.steps
        if pairs is not None:
            gains.append(report.metrics.get("lead", 0.0))
        messages += [f"frame {count}: {remark}" for remark in report.messages]
        if on_frame is not None:
            spent = time.perf_counter() - started
            on_frame(CalibrationProgress(count, steps, spent, tuple(gains), tuple(messages)))
        if pairs is not None and pairs.phase == "steady":
            break
    if not count:
        raise ValueError("calibrate: expected at least one frame, got none")
    if pairs is None:
        return CalibrationReport(
            model=adapter.export(),
            frames=count,
            steps=steps,
            seconds=time.perf_counter() - started,
            task=(adapter.restorer.spec.task if adapter.restorer.spec is not None else None) or "any",
            degradation={},
            gain=math.nan,
            trust=1.0,
            learning_rate=None,
            messages=tuple(messages),
        )
    reading, memory = pairs.reading, pairs.memory
    gain = memory["exported_lead"]
    mean = {} if reading is None else reading.mean
    worthwhile = gain >= _WORTH and memory["weights"][2] >= _MIN_TRUST
    return CalibrationReport(
        model=adapter.export() if worthwhile else adapter.export("source"),
        frames=count,
        steps=steps,
        seconds=time.perf_counter() - started,
        task=pairs.resolved_task(),
        degradation={
            "noise": 255 * mean.get("noise_std", 0.0),
            "blur": mean.get("blur_radius", 0.0),
            "jpeg_quality": mean.get("jpeg_quality", 100.0),
        }
        | ({"noise_filter": reading.between_pixels} if reading is not None and reading.between_pixels else {}),
        gain=gain,
        trust=memory["weights"][2],
        learning_rate=memory["rate"] or None,
        gains=tuple(gains),
        messages=tuple(messages),
    )


def _seconds(budget: str | None) -> float | None:
    """Total seconds of a budget in seconds; None for none and for a multiple of a forward pass."""
    if budget is None or re.fullmatch(r"\d+(\.\d+)?\s*x", budget):
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*s", budget)
    if match is None or float(match[1]) <= 0:
        raise ValueError(f'calibrate: expected budget such as "60s" or "10x", got {budget!r}')
    return float(match[1])
