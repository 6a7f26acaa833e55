"""Run methods over a stream of frames, and measure every output."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tta_restore import metrics
from tta_restore._core.progress import ProgressBar
from tta_restore.engine.evaluate.results import IDENTICAL, FrameRecord, StreamResult

__all__ = [
    "StreamFrame",
    "StreamMethod",
    "evaluate_frame",
    "evaluate_stream",
    "finite_metrics",
    "identity",
    "inputs_of",
    "scalars",
]


StreamMethod = Callable[..., Tensor]
"""From a frame (1, C, H, W), and its views where it has any, to the restored one."""


class StreamFrame(Protocol):
    """Element of a stream: `data.synthetic.defocus.DefocusFrame`, or anything with the same fields.

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


def evaluate_stream(
    frames: Sequence[StreamFrame],
    methods: Mapping[str, Callable[[], StreamMethod]],
    *,
    stream: int = 0,
    progress: bool = True,
    on_frame: Callable[[FrameRecord, Tensor, StreamMethod], None] | None = None,
    measures: metrics.ImageMetrics = metrics.ImageMetrics(),  # noqa: B008 (frozen)
) -> StreamResult:
    """Show the frames to each method in turn, from its construction on, and measure what comes out.

    Args:
        frames: in the order of the stream.
        methods: name -> factory; the factory's result maps (1, C, H, W) to (1, C, H, W) and may keep state.
        stream: number written into the records, such as the seed that made the frames.
        progress: show progress on stderr.
        on_frame: called after each frame with the record, the output (1, C, H, W) and the method.
        measures: how the outputs are measured.

    Raises:
        ValueError: no frames or no methods, or an output of another shape than the sharp original.
    """
    if not frames or not methods:
        raise ValueError(f"evaluate_stream: expected frames and methods, got {len(frames)} and {len(methods)}")
    records = []
    kinds = dict.fromkeys(methods, len(frames))
    with ProgressBar(total=sum(kinds.values()), kinds=kinds, unit="frame", shown=progress, leave=False) as bar:
        for name, factory in methods.items():
            bar.set_description(name)
            method = factory()
            for index, frame in enumerate(frames):
                record, output = evaluate_frame(name, method, frame, stream, index, measures)
                records.append(record)
                if on_frame is not None:
                    on_frame(record, output, method)
                bar.update(kind=name)
    return StreamResult(tuple(records), settings={"measures": measures.as_dict()})


def evaluate_frame(
    name: str,
    method: StreamMethod,
    frame: StreamFrame,
    stream: int,
    index: int,
    measures: metrics.ImageMetrics,
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
        path = getattr(frame, "blurry_path", None)
        raise ValueError(
            f"evaluate_stream: {name} returned {tuple(output.shape)} for frame {index}{f' ({path})' if path else ''}, "
            f"expected {tuple(sharp.shape)}"
        )
    sharp = sharp.to(output.device)
    values: dict[str, Any] = dict(finite_metrics(measures(output, sharp)))
    more = {name: values.pop(name) for name in measures.more}
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
        metrics=more,
        **values,
    )
    return record, output


def finite_metrics(values: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a frame, PSNR of at most :data:`IDENTICAL`, so that means over frames stay finite."""
    return {name: min(value, IDENTICAL) if name == "psnr" else value for name, value in values.items()}


def inputs_of(frame: StreamFrame, device: torch.device | str) -> list[Tensor]:
    """Return the blurry picture, then the views of a frame that has ``views``: (1, C, H, W) each."""
    return [picture[None].to(device) for picture in (frame.blurry, *getattr(frame, "views", ()))]


def scalars(report: Any) -> dict[str, Any]:
    """Return the numbers, flags and words of a step report, ready for JSON; `{}` for a method that reports nothing."""
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
    """Return the method that does nothing: its row shows the input."""
    return frame
