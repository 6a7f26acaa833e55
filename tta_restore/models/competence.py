"""Measure which degradations a restorer removes, and which images it spoils.

A restorer is run on synthetic images that were degraded in about twenty known ways. The gain in PSNR over its input
shows what it was trained for, which no checkpoint states.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tta_restore._core.ambient import with_usual_defaults
from tta_restore.models.complexity import Operators
from tta_restore.models.restorer.inference import example_frame
from tta_restore.models.restorer.preserve import preserve_state
from tta_restore.models.restorer.restorer import Restorer, as_restorer
from tta_restore.models.restorer.spec import RestorerSpec

__all__ = ["Competence", "competence"]

_LEVELS: dict[str, tuple[float, ...]] = {
    "defocus": (1.0, 2.0, 3.0),  # root mean square radius of a uniform disk, pixels
    "motion": (5.0, 9.0, 15.0),  # length of a straight path, pixels
    "noise": (5.0, 15.0, 30.0, 50.0),  # standard deviation, 1/255
    "jpeg": (10.0, 30.0, 70.0),  # quality
    "mixed": (1.0,),  # disk of 1 px, noise of 10/255 and JPEG of quality 50
    "none": (0.0,),
}
_TASKS = {"defocus": "defocus", "motion": "motion", "noise": "denoise", "jpeg": "jpeg"}
_MIN_GAIN = 0.2  # dB at the best level, from which a kind counts as removed
_DISKS = 60  # of a synthetic image
_SETUPS = ((2, 96), (2, 48), (1, 48))  # images and their side in pixels: the first of at most _MAX_MACS, else the last
_SIDE_BESIDE_BORDER = 32  # for models of several times that without padding
_MAX_MACS = 1e11  # of all passes, about 2 s of a CPU core
_FEWER = {"defocus": (2.0,), "motion": (9.0,), "noise": (15.0,), "jpeg": (30.0,), "mixed": (1.0,), "none": (0.0,)}
_CLEAN = 50.0  # PSNR in dB up to which outputs are told apart; higher ones count as equal


@dataclass(frozen=True)
class Competence:
    """Gain of a restorer over its input in dB, per kind and level of degradation. ``print`` it.

    Attributes:
        gains: PSNR of the output minus PSNR of the input (for scale > 1, of its bicubic upsampling) in dB, by kind
            ("defocus", "motion", "noise", "jpeg", "mixed", "none") and level. Negative: the restorer makes it worse.
        scale: upscaling factor.
        declared: task stated by ``RestorerSpec(task=...)``, which overrides the measurement; None where none was.
    """

    gains: Mapping[str, Mapping[float, float]]
    scale: int = 1
    declared: str | None = None

    @property
    def task(self) -> str:
        """``"sr"``, ``"defocus"``, ``"motion"``, ``"denoise"``, ``"jpeg"``, or ``"any"`` where no kind stands out.

        It is the kind with the largest mean gain over its levels, among those with a gain of 0.2 dB or more at one
        level; ``"any"`` if there is no such kind.
        """
        if self.declared is not None:
            return self.declared
        if self.scale > 1:
            return "sr"
        means = {kind: sum(self.gains[kind].values()) / len(self.gains[kind]) for kind in sorted(self.removes)}
        return _TASKS[max(means, key=lambda kind: means[kind])] if means else "any"

    @property
    def removes(self) -> frozenset[str]:
        """Kinds of degradation that the restorer reduces by 0.2 dB or more at some level."""
        return frozenset(kind for kind in _TASKS if max(self.gains.get(kind, {0.0: 0.0}).values()) >= _MIN_GAIN)

    @property
    def sharpens(self) -> bool:
        """Return whether blur is removed, as by deblurring and super-resolution, not by denoising or JPEG cleaning."""
        return self.scale > 1 or self.task in ("defocus", "motion", "sr")

    @property
    def spoils(self) -> float:
        """Loss in dB on an image without degradation, 0 where there is none."""
        return max(0.0, -self.gains["none"][0.0]) if "none" in self.gains else 0.0

    def __str__(self) -> str:
        rows = [f"task  {self.task}{'' if self.declared is None else ' (declared)'}"]
        rows.append(f"{'':10}gain over the input, dB, at level")
        for kind, levels in self.gains.items():
            cells = "  ".join(f"{level:>4g}: {gain:+6.2f}" for level, gain in levels.items())
            rows.append(f"{kind:<10}{cells}")
        if all(gain < _MIN_GAIN for levels in self.gains.values() for gain in levels.values()):
            rows.append("no gain at any level: the weights are of another network, or it restores something else")
        return "\n".join(rows)


@with_usual_defaults
def competence(model: Any, spec: RestorerSpec | None = None, *, seed: int = 0) -> Competence:
    """Measure what a restorer removes, by about twenty small forward passes on synthetic images.

    There are two images of 96 pixels a side, of 48 for a model of more than about 0.36 million multiply-adds per pixel,
    and one for a model of more than 1.4 million. Above 2.9 million, or less for a model without padding, which has to
    be given larger images, each kind is measured at one level, and the image has 32 pixels a side for a model without
    padding that takes several times as long. Nothing stays changed in the model, and global random
    state is not used.

    Args:
        model: module, function, spandrel descriptor or :class:`tta_restore.models.Restorer` of single frames.
        spec: how to run the model; inferred where neither given nor declared. ``spec.task`` overrides the inferred
            task.
        seed: seed of the synthetic images and of their noise.

    Raises:
        ValueError: the model takes clips, or neither 1 nor 3 channels, or returns no image.
    """
    restorer = as_restorer(model, spec)
    generator = torch.Generator().manual_seed(seed)
    weight = _weight(restorer)
    channels = restorer.spec.in_channels if restorer.spec is not None else None
    if channels not in (None, 1, 3) or (restorer.spec is not None and restorer.spec.frames != 1):
        raise ValueError(
            "competence: expected a restorer of single frames with 1 or 3 channels, got frames = "
            f"{restorer.spec and restorer.spec.frames}, in_channels = {channels}"
        )
    with torch.no_grad(), _quiet(restorer):
        channels = channels or example_frame("competence", restorer).shape[-3]
        if channels not in (1, 3):
            raise ValueError(f"competence: expected a restorer with 1 or 3 channels, got one with {channels}")
        example = torch.rand(1, channels, 32, 32, generator=generator).to(weight)
        known = restorer.known_spec(example)
        if not known.dense or known.frames != 1:
            raise ValueError("competence: expected a restorer that returns an image for a single frame")
        per_pixel = multiply_adds(restorer, example) / math.prod(known.padded(32, 32))
        costs = {setup: per_pixel * _num_pixels(known, *setup) for setup in _SETUPS}
        count, side = next((setup for setup in _SETUPS if costs[setup] <= _MAX_MACS), _SETUPS[-1])
        kinds = _LEVELS if costs[count, side] <= _MAX_MACS else _FEWER
        if kinds is _FEWER and known.border and costs[count, side] > 4 * _MAX_MACS:
            side = _SIDE_BESIDE_BORDER
        scale, height = known.scale, known.padded(side, side)[0] - 2 * known.border
        sharp = _sharp_images(count, height * scale, generator)
        if channels == 1:
            sharp = sharp.mean(1, keepdim=True)
        gains: dict[str, dict[float, float]] = {}
        for kind, levels in kinds.items():
            gains[kind] = {
                level: _gain(restorer, sharp, _degrade(sharp, kind, level, scale, generator), weight)
                for level in levels
            }
    return Competence(gains, scale, getattr(known, "task", None))


def _num_pixels(spec: RestorerSpec, count: int, side: int) -> int:
    """Return the pixels that a model without padding sees in all passes, its border among them."""
    return count * sum(map(len, _LEVELS.values())) * math.prod(spec.padded(side, side))


def multiply_adds(restorer: Restorer, frame: Tensor) -> int:
    """Return the multiply-adds of one pass, as far as operators have a formula."""
    restorer.known_spec(frame)  # which runs the model to infer what is unknown
    with torch.no_grad(), Operators() as counter:
        restorer(frame)
    return counter.total


def _gain(restorer: Restorer, sharp: Tensor, degraded: Tensor, weight: Tensor) -> float:
    restored = restorer(degraded.to(weight)).to(sharp).clamp(0, 1)
    before = degraded
    if before.shape != sharp.shape:
        before = F.interpolate(degraded, size=sharp.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
    return _psnr(restored, sharp) - _psnr(before, sharp)


def _psnr(image: Tensor, sharp: Tensor) -> float:
    """Return the mean PSNR of the images of a batch without a border of 6 pixels, in dB, at most 50."""
    error = (image - sharp)[..., 6:-6, 6:-6].square().flatten(1).mean(1).nan_to_num(1.0, 1.0)
    return float((-10 * torch.log10(error.clamp(min=10 ** (-_CLEAN / 10)))).mean())


def _sharp_images(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Overlapping textured disks of random size and color, (N, 3, S, S): edges of all contrasts and orientations."""
    fine = 2 * side
    axis = torch.arange(fine, dtype=torch.float32)
    images = []
    for _ in range(count):
        image = torch.rand(3, 1, 1, generator=generator).expand(3, fine, fine)
        # areas fall with the number of disks, so that every size covers about the same part of the image
        for radius in torch.logspace(math.log2(fine / 3), 2.6, _DISKS, base=2).tolist():
            x, y, angle, frequency, contrast, value, *chroma = torch.rand(9, generator=generator).tolist()
            down, right = axis[:, None] - y * fine, axis - x * fine
            phase = math.pi / 2 * frequency * (math.cos(math.pi * angle) * right + math.sin(math.pi * angle) * down)
            color = value + 0.3 * (torch.tensor(chroma) - 0.5)  # muted
            paint = color[:, None, None] + 0.15 * contrast**4 * torch.sin(phase)
            image = torch.where(down.square() + right.square() <= radius * radius, paint, image)
        images.append(F.avg_pool2d(image[None], 2)[0].clamp(0, 1))
    return torch.stack(images)


def _degrade(sharp: Tensor, kind: str, level: float, scale: int, generator: torch.Generator) -> Tensor:
    """Degrade sharp images (N, C, S, S) in one way; blur is in pixels of the restorer's input."""
    x = sharp
    if kind in ("defocus", "mixed"):
        x = _blur(x, _disk(level * scale))
    elif kind == "motion":
        x = _blur(x, _path(level * scale))
    if scale > 1:
        x = F.interpolate(x, scale_factor=1 / scale, mode="bicubic", antialias=True, align_corners=False)
    std = {"noise": level, "mixed": 10.0}.get(kind, 0.0)
    if std:
        x = x + std / 255 * torch.randn(x.shape, generator=generator)
    quality = {"jpeg": level, "mixed": 50.0}.get(kind)
    x = (x.clamp(0, 1) * 255).round() / 255
    return x if quality is None else torch.stack([_jpeg(image, int(quality)) for image in x])


def _blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Blur in linear light, taken as the power 2.2 of stored values."""
    half = kernel.shape[-1] // 2
    padded = F.pad(x.clamp(min=0) ** 2.2, (half,) * 4, mode="reflect")
    channels = x.shape[1]
    return F.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels).clamp(min=0) ** (1 / 2.2)


def _disk(rms: float) -> Tensor:
    """A uniform disk with a root mean square radius in pixels, (K, K), rasterized with 4 x 4 samples per pixel."""
    radius = rms * math.sqrt(2)
    size = 2 * math.ceil(radius) + 1
    axis = (torch.arange(4 * size) + 0.5) / 4 - size / 2
    inside = (axis[:, None].square() + axis.square() <= radius * radius).float()
    kernel = F.avg_pool2d(inside[None, None], 4)[0, 0]
    return kernel / kernel.sum()


def _path(length: float) -> Tensor:
    """Return a straight path at 30 degrees, (K, K)."""
    size = 2 * math.ceil(length / 2) + 1
    place = torch.linspace(-length / 2, length / 2, 8 * size)
    kernel = torch.zeros(size, size)
    rows, columns = size // 2 + 0.5 * place, size // 2 + math.cos(math.pi / 6) * place
    top, left = rows.floor().long(), columns.floor().long()
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):  # bilinear splatting
        weight = (1 - (rows - top - down).abs()) * (1 - (columns - left - right).abs())
        inside = (top + down < size) & (left + right < size)
        kernel.index_put_(((top + down)[inside], (left + right)[inside]), weight[inside], accumulate=True)
    return kernel / kernel.sum()


def _jpeg(image: Tensor, quality: int) -> Tensor:
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).save(file, "JPEG", quality=quality)
    decoded = torch.from_numpy(np.array(Image.open(file)))
    return (decoded.movedim(-1, 0) if decoded.ndim == 3 else decoded[None]).float() / 255


def _weight(restorer: Restorer) -> Tensor:
    """Return a tensor with the device and dtype of the model's weights."""
    if isinstance(restorer.module, nn.Module):
        for parameter in restorer.module.parameters():
            if parameter.is_floating_point():
                return parameter.detach()
    return torch.zeros(())


def _quiet(restorer: Restorer) -> contextlib.AbstractContextManager[Any]:
    """Eval mode, and everything as before afterwards."""
    module = restorer.module
    return preserve_state(module, training=False) if isinstance(module, nn.Module) else contextlib.nullcontext()
