"""Run restoration methods over a stream of frames whose sharp originals are known, and record every frame."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from tta_restore import metrics

Method = Callable[..., Tensor]
"""From a frame (1, C, H, W), and its views where it has any, to the restored one."""


class Frame(Protocol):
    """What a stream consists of: `data.lenses.LensFrame`, or anything with the same fields.

    Shape: blurry, sharp (3, H, W) in [0, 1]. `position` counts from 0 at each change of lens.
    """

    @property
    def blurry(self) -> Tensor: ...  # noqa: D102 (the class says it)
    @property
    def sharp(self) -> Tensor: ...  # noqa: D102
    @property
    def family(self) -> str: ...  # noqa: D102
    @property
    def photo(self) -> str: ...  # noqa: D102
    @property
    def position(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class FrameRecord:
    """What one method did with one frame.

    Args:
        method: its name.
        stream: which stream (its seed) the frame belongs to.
        index: of the frame in the stream.
        family: of the lens.
        photo: the photograph.
        position: frames since the lens changed.
        psnr: of the output, dB.
        ssim: of the output.
        wall_seconds: time the call took.
        cpu_seconds: time it took on all cores together.
        report: what the method said about its step (loss, updated, skipped_because, ...), scalars only.
        mae: mean absolute error of the output.
        lpips: perceptual distance; None where it was not measured.
    """

    method: str
    stream: int
    index: int
    family: str
    photo: str
    position: int
    psnr: float
    ssim: float
    wall_seconds: float
    cpu_seconds: float
    report: dict[str, Any] = field(default_factory=dict)
    mae: float | None = None
    lpips: float | None = None


def run_stream(
    frames: Sequence[Frame],
    methods: Mapping[str, Callable[[], Method]],
    *,
    stream: int = 0,
    progress: bool = True,
    on_frame: Callable[[FrameRecord, Tensor, Method], None] | None = None,
    measures: metrics.Measures = metrics.Measures(),  # noqa: B008 (frozen)
) -> list[FrameRecord]:
    """Show the frames to each method in turn, from its construction on, and measure what comes out.

    Args:
        frames: in the order of the stream.
        methods: name -> factory; the factory's result maps (1, C, H, W) to (1, C, H, W) and may keep state.
        stream: number written into the records, such as the seed that made the frames.
        progress: show a bar on stderr where it is a terminal.
        on_frame: called after each frame with the record, the output (1, C, H, W) and the method.
        measures: how the outputs are measured.

    Raises:
        ValueError: no frames or no methods, or an output of another shape than the sharp original.
    """
    if not frames or not methods:
        raise ValueError(f"run_stream: expected frames and methods, got {len(frames)} and {len(methods)}")
    records = []
    hidden = not (progress and sys.stderr.isatty())
    with tqdm(total=len(frames) * len(methods), unit="frame", disable=hidden, leave=False) as bar:
        for name, factory in methods.items():
            bar.set_description(name)
            method = factory()
            for index, frame in enumerate(frames):
                record, output = measure(name, method, frame, stream, index, measures)
                records.append(record)
                if on_frame is not None:
                    on_frame(record, output, method)
                bar.update()
    return records


def measure(
    name: str,
    method: Method,
    frame: Frame,
    stream: int,
    index: int,
    measures: metrics.Measures,
    *,
    device: torch.device | str = "cpu",
) -> tuple[FrameRecord, Tensor]:
    """Show one frame, and its ``views`` if it has any, to a method; the record, and the output (1, C, H, W)."""
    inputs, sharp = inputs_of(frame, device), frame.sharp[None]
    wall, cpu = time.perf_counter(), time.process_time()
    output = method(*inputs)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    output = output.detach()
    if output.shape != sharp.shape:
        raise ValueError(
            f"run_stream: {name} returned {tuple(output.shape)} for frame {index}, expected {tuple(sharp.shape)}"
        )
    sharp = sharp.to(output.device)
    record = FrameRecord(
        method=name,
        stream=stream,
        index=index,
        family=frame.family,
        photo=frame.photo,
        position=frame.position,
        wall_seconds=wall,
        cpu_seconds=cpu,
        report=scalars(getattr(method, "report", None)),
        **measures(output, sharp),
    )
    return record, output


def inputs_of(frame: Frame, device: torch.device | str) -> list[Tensor]:
    """The blurry picture, then the views of a frame that has ``views``: (1, C, H, W) each."""
    return [picture[None].to(device) for picture in (frame.blurry, *getattr(frame, "views", ()))]


def scalars(report: Any) -> dict[str, Any]:
    """The numbers, flags and words of a step report, ready for JSON; `{}` for a method that reports nothing."""
    if dataclasses.is_dataclass(report) and not isinstance(report, type):
        content = {entry.name: getattr(report, entry.name) for entry in dataclasses.fields(report)}
    elif isinstance(report, Mapping):
        content = dict(report)
    else:
        return {}
    plain = {}
    for name, value in content.items():
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)  # JSON has no word for it
        if value is None or isinstance(value, (bool, int, float, str)):
            plain[name] = value
        elif isinstance(value, Mapping):  # what a method adds of its own
            plain |= {inner: entry for inner, entry in scalars(value).items() if inner not in content}
    return plain


def identity(frame: Tensor) -> Tensor:
    """The method that does nothing: its row shows the input."""
    return frame
