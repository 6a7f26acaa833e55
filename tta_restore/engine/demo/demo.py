"""The demo: a deblurrer, a denoiser and an upscaler on frames that they were and were not trained for."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore import adapters
from tta_restore.data.synthetic import photos
from tta_restore.degradations import Blur, Clip, Compose, Degradation, Noise, Quantize, Resize
from tta_restore.engine.evaluate.degradations import DegradedFrame
from tta_restore.engine.evaluate.lenses import Comparison, Contender, compare
from tta_restore.engine.evaluate.results import StreamResult
from tta_restore.engine.report.page import require_packages
from tta_restore.engine.run.outputs import expect_folder, locks_output
from tta_restore.engine.run.usage import UsageError
from tta_restore.models import Restorer, as_restorer, create_model

__all__ = ["BASELINE", "SHOWN", "comparison", "demo_streams", "run_demo"]

BASELINE = "self-ensemble"
SHOWN = "recommended"
_SIZE = 144  # side of the restored frames in pixels
_LIMITS = (
    "Degradations are simulated on photographs that no model was trained on; a camera differs.",
    "Self-ensemble, the mean over four quarter turns, is the baseline: the adapted restorer returns such a mean, too, "
    "and it needs no adaptation.",
    "A few frames per row: docs/measurements.md has the measured tables.",
)


def _camera(*parts: Degradation) -> Compose:
    return Compose([*parts, Clip(), Quantize()])


def _noise(std: float) -> Noise:
    return Noise(read_std=(std / 255, std / 255))


_LENS = partial(Blur, radius=(2.2, 2.2))
_RESTORERS = {
    "deblurrer": ("lens_unet", "specialist"),
    "denoiser": ("small_unet", "denoiser"),
    "upscaler": ("residual_upscaler", "upscaler"),
}
_STREAMS: list[tuple[str, dict[str, Compose]]] = [  # in an order in which two processes end at about the same time
    ("upscaler", {"as in its training": _camera(Resize(2)), "noise": _camera(Resize(2), _noise(8))}),
    (
        "deblurrer",
        {
            "lens of its training": _camera(Blur(radius=(1.8, 1.8), lens="disk"), _noise(1)),
            "ring-shaped lens": _camera(_LENS(lens="ring"), _noise(1)),
        },
    ),
    ("deblurrer", {"lens and noise": _camera(_LENS(lens="gaussian"), _noise(10))}),
    ("denoiser", {"noise of its training": _camera(_noise(15)), "twice the noise": _camera(_noise(30))}),
]


def comparison() -> Comparison:
    """Return the rows; the restorer of a stream goes by the stream's position in :func:`demo_streams`."""
    return Comparison(
        title="One line adapts any restorer",
        contenders=[
            Contender(
                "input",
                partial(_around, _input),
                "The degraded frame, enlarged where the restorer enlarges.",
                "#8a93a0",
            ),
            Contender("source", partial(_around, _plain), "The restorer as it was trained.", "#56B4E9"),
            Contender(
                BASELINE, partial(_around, adapters.SelfEnsemble), "Its mean over four quarter turns.", "#1c2430"
            ),
            Contender(
                SHOWN,
                partial(_around, adapters.recommended),
                "adapters.recommended(model), with no option set: estimates how the frames are degraded, fine-tunes "
                "the restorer on pairs that carry the same degradation, and returns as much of it as was earned.",
                "#0072B2",
            ),
        ],
        baseline=BASELINE,
        contrasts=[(SHOWN, BASELINE)],
        curves=["source", BASELINE, SHOWN],
        shown=SHOWN,
        before=BASELINE,
        limits=_LIMITS,
        group="condition",
    )


@cache
def _restorer(name: str) -> Restorer:
    model, weights = _RESTORERS[name]
    return as_restorer(create_model(model, checkpoint=weights).eval())


def _around(method: Callable[[Restorer], Any], stream: int) -> Any:
    return method(_restorer(_STREAMS[stream][0]))


def demo_streams(frames: int, seed: int) -> dict[int, Any]:
    """Return the frames of each camera: one condition after the other.

    Args:
        frames: frames per condition.
        seed: of crops and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    streams: dict[int, Any] = {}
    for index, (name, conditions) in enumerate(_STREAMS):
        streams[index] = []
        for number, (condition, camera) in enumerate(conditions.items()):
            for position in range(frames):
                photo = photos.TEST[(number * frames + position) % len(photos.TEST)]
                image = photos.load(photo)
                top, left = (int(torch.randint(0, n - _SIZE + 1, (), generator=generator)) for n in image.shape[1:])
                sharp = image[None, :, top : top + _SIZE, left : left + _SIZE]
                blurry = camera.apply(sharp, camera.sample(generator, 1), generator).clamp(0, 1)
                streams[index].append(DegradedFrame(blurry[0], sharp[0], f"{name}: {condition}", photo, position))
    return streams


@locks_output
def run_demo(
    *,
    out: str | Path = "runs/demo",
    seed: int = 0,
    frames: int | None = None,
    quick: bool = False,
    processes: int = 1,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> StreamResult:
    """Run the demo: three restorers, tables, and a report with pictures.

    Args:
        out: folder for report, CSV and JSON.
        seed: of crops, noise and adapters.
        frames: frames per condition (default: 3, with --quick 1)
        quick: process a few frames only.
        processes: how many share the work and the threads of torch.
        progress: show progress on stderr.
        say: receives the text for the user.

    Raises:
        UsageError: the folder cannot be written, a package is missing, or a number is out of range.
    """
    if frames is not None and frames < 1:
        raise UsageError(f"--frames: expected at least 1, got {frames}")
    if processes < 1:
        raise UsageError(f"--processes: expected at least 1, got {processes}")
    require_packages("skimage", "sklearn", load=False)
    expect_folder(out)
    count = frames or (1 if quick else 3)
    started = time.perf_counter()
    say(f"{', '.join(_RESTORERS)}: {count} frames per condition, restored with and without adaptation\n")
    result = compare(comparison(), demo_streams(count, seed), out, processes=processes, progress=progress, say=say)
    say(f"{time.perf_counter() - started:.0f} s")
    return result


def _input(restorer: Restorer) -> Callable[[Tensor], Tensor]:
    def run(frame: Tensor) -> Tensor:
        scale = restorer.known_spec(frame).scale
        return frame if scale == 1 else F.interpolate(frame, scale_factor=scale, mode="bicubic").clamp(0, 1)

    return run


def _plain(restorer: Restorer) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def run(frame: Tensor) -> Tensor:
        return restorer(frame)

    return run
