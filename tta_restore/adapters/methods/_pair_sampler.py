"""Training pairs that carry the degradation of given frames: sharp material, degraded by samples of a reading."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core.color import linear_to_srgb, srgb_to_linear
from tta_restore.adapters.methods._trust import is_compressed
from tta_restore.data.datasets.mining import random_patches
from tta_restore.data.synthetic import dead_leaves
from tta_restore.data.synthetic.soften import soften
from tta_restore.degradations import Blur, ComposeParameters, Degradation, MotionBlur, NoiseParameters, Reading, Resize
from tta_restore.degradations import lens as optics
from tta_restore.degradations.reading import PARTS
from tta_restore.models import SizeRequirements

_MARGIN = 8  # input pixels at each side of a patch that mirrored borders of the blur may reach
_TILE, _NUM_TILES = 96, 48  # dead leaves: side in pixels, and how many before softening
_SOFT = 0.8  # fraction of the material that has soft content, as most of a photo has
_HEDGE = 1  # rank of the first common pupil function per frame read, and of the second one after it
_HELD_OUT = 4  # every fourth tile is never trained on
_CLIPPED = 0.998  # value from which a pixel counts as clipped
_MIN_CLIPPED = 0.003  # fraction of clipped pixels from which pairs get clipped highlights, too
_HIDDEN_NOISE = 20 / 255  # standard deviation up to which it may
_MAX_GAIN = 12.0  # linear light of a highlight relative to white


@dataclass(frozen=True)
class PairSampler:
    """Draws pairs (degraded, target).

    Attributes:
        scale: upscaling factor of the restorer.
        sharpens: whether pairs are blurred, and the target is sharp; otherwise they carry noise and JPEG artifacts
            only, and material as soft as photos are keeps its softness.
        motion: whether half of the pairs carry motion blur of the frame's strength instead of defocus.
        channels: 1 or 3.
        gray: whether frames have equal channels, and so equal noise in all of them.
        patch_size: side of a degraded patch in pixels.
        scene_fraction: fraction of the pairs whose sharp patch comes from the restored frame.
        spread: multiple of the reading's uncertainty that its samples vary by.
        sharp_images: custom material, (N, 3, S, S); None for dead leaves.
        degradation: what the pairs carry instead of a reading; None for the reading.
    """

    scale: int
    sharpens: bool
    motion: bool
    channels: int
    patch_size: int
    gray: bool = False
    scene_fraction: float = 0.25
    spread: float = 1.0
    sharp_images: Tensor | None = None
    degradation: Degradation | None = None

    @property
    def deblurs(self) -> bool:
        """Whether the restorer is a deblurrer: it removes blur and does not upscale."""
        return self.sharpens and self.scale == 1

    @property
    def side(self) -> int:
        """Side of the sharp patches that pairs are made of."""
        return (self.patch_size + 2 * _MARGIN) * self.scale

    def draw(
        self,
        reading: Reading,
        scene: Tensor | None,
        count: int,
        generator: torch.Generator,
        *,
        clipped: float = 0.0,
        held_out: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return degraded patches (N, C, P, P) and their targets (N, C, scale * P, scale * P), on the CPU.

        Args:
            reading: degradation of the frames.
            scene: restored frame that patches may be taken from, (B, 3, H, W).
            count: number of pairs N.
            generator: source of randomness.
            clipped: fraction of clipped pixels in the frame.
            held_out: use material that is not drawn otherwise, and the scene for half of the pairs.
        """
        sharp = self._material(held_out, generator, count)
        fraction = 0.5 if held_out and self.scene_fraction else self.scene_fraction
        lent = math.floor(fraction * count + torch.rand((), generator=generator).item())
        if lent and scene is not None and min(scene.shape[-2:]) >= self.side:
            sharp[:lent] = random_patches(scene, lent, self.side, generator)
        if self.channels == 1 or self.gray:
            sharp = sharp.mean(1, keepdim=True)
        if self.degradation is not None:
            sharp = sharp.expand(-1, self.channels, -1, -1)
            return self._inner(self._degraded(self.degradation, sharp, generator), sharp)
        if clipped >= _MIN_CLIPPED:
            sharp = _with_highlights(sharp, generator)
        # Estimates mistake noise for blur more often than blur matters to a restorer that keeps it.
        parts = PARTS if self.sharpens else PARTS[1:]
        camera = reading.degradation(parts, scale=self.scale)
        parameters = _hedged(reading).sample(generator, count, parts, scale=self.scale, spread=self.spread)
        if is_compressed([reading]):  # noise from before the compression may be hidden
            parameters = _with_hidden_noise(parameters, generator)
        degraded = sharp
        for stage, part in zip(camera.degradations, parameters.parts, strict=True):
            degraded = stage.apply(degraded, part, generator)
            if isinstance(stage, Blur):
                degraded = self._moved(sharp, degraded, reading, generator)
        return self._inner(*(image.expand(-1, self.channels, -1, -1) for image in (degraded, sharp)))

    def _inner(self, degraded: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
        """Return pairs without the margins that borders reach."""
        inner, outer = _MARGIN, _MARGIN * self.scale
        return degraded[..., inner:-inner, inner:-inner], sharp[..., outer:-outer, outer:-outer].clamp(0, 1)

    def _degraded(self, degradation: Degradation, sharp: Tensor, generator: torch.Generator) -> Tensor:
        """Apply draws of a degradation, and reduce what is still as large as the material."""
        parameters = degradation.sample(generator, len(sharp))
        degraded = degradation.apply(sharp.clamp(0, 1), parameters, generator).clamp(0, 1)
        if self.scale > 1 and degraded.shape == sharp.shape:
            reduction = Resize(self.scale)
            degraded = reduction.apply(degraded, reduction.sample(generator, len(sharp))).clamp(0, 1)
        side = self.patch_size + 2 * _MARGIN
        if degraded.shape != (*sharp.shape[:2], side, side):
            raise ValueError(
                f"DegradationPairs: expected {type(degradation).__name__} to return (N, C, H, W) = "
                f"{(*sharp.shape[:2], side, side)}, or {tuple(sharp.shape)} as it got, got {tuple(degraded.shape)}"
            )
        return degraded

    def _moved(self, sharp: Tensor, blurred: Tensor, reading: Reading, generator: torch.Generator) -> Tensor:
        """Blur half of the patches by motion as strong as the defocus that was read."""
        count = len(sharp) // 2 if self.motion else 0
        if not count:
            return blurred
        # a straight path of length L has a root mean square radius of L / sqrt(12)
        length = reading.mean["blur_radius"] * math.sqrt(12) * self.scale
        motion = MotionBlur(length=(0.6 * length, 1.6 * length))
        moved = motion.apply(sharp[:count], motion.sample(generator, count), generator)
        return torch.cat([moved, blurred[count:]])

    def _material(self, held_out: bool, generator: torch.Generator, count: int) -> Tensor:
        if self.sharp_images is not None:
            return random_patches(self.sharp_images, count, self.side, generator)
        return random_patches(_tiles(max(_TILE, self.side), held_out), count, self.side, generator)


def patch_size_for(size: SizeRequirements, scale: int, wanted: int | None = None) -> int:
    """Return the side of the smallest patch that a model takes and that is not smaller than the wanted one."""
    if wanted is None:
        wanted = 48 if scale == 1 else 40 if scale == 2 else 32
    return max(size.fit(wanted, wanted))


def _hedged(reading: Reading) -> Reading:
    """Add the pupil functions of common lenses, the less likely the more frames were read."""
    pupils = list(reading.pupils)
    for index, pupil in enumerate(_common_pupils(), 1):
        pupils.insert(min(index * _HEDGE * reading.frames, len(pupils)), pupil)
    return replace(reading, pupils=torch.stack(pupils))


@cache
def _common_pupils() -> Tensor:
    lenses = [optics.Lens("disk", optics.disk, (1.0, 1.0)), optics.Lens("gaussian", optics.gaussian, (1.0, 1.0))]
    return optics.rasterize_pupils(lenses)


def _with_hidden_noise(parameters: ComposeParameters, generator: torch.Generator) -> ComposeParameters:
    """Raise the noise of half of the samples: quantization removes noise from what the estimate is made of."""
    count = len(parameters)
    chosen, position = torch.rand(2, count, generator=generator)
    parts = []
    for part in parameters.parts:
        if isinstance(part, NoiseParameters):
            low = part.read_std.clamp(1 / 255, _HIDDEN_NOISE)
            raised = low * (_HIDDEN_NOISE / low) ** position
            part = replace(part, read_std=torch.where(chosen < 0.5, raised, part.read_std))
        parts.append(part)
    return ComposeParameters(tuple(parts))


def _with_highlights(sharp: Tensor, generator: torch.Generator) -> Tensor:
    """Raise the brightest parts of half of the patches above white, as lamps are, which blur spreads and clipping cuts.

    Values above 1 stand for light beyond the sensor's range.
    """
    count = len(sharp)
    chosen, fraction, gain = torch.rand(3, count, 1, 1, 1, generator=generator)
    light = srgb_to_linear(sharp)
    level = sharp.mean(1, keepdim=True)
    threshold = torch.stack(
        [one.flatten().quantile(1 - 0.15 * float(f)) for one, f in zip(level, fraction, strict=True)]
    )
    bright = (level >= threshold.view(-1, 1, 1, 1)).float()
    raised = light * (1 - bright) + bright * (1 + light * _MAX_GAIN * gain)
    return torch.where(chosen < 0.5, linear_to_srgb(raised), sharp)


@cache
def _tiles(side: int, held_out: bool) -> Tensor:
    """Return the dead leaves that are trained on, or those that are not."""
    leaves = _dead_leaves(side)
    return leaves[(torch.arange(len(leaves)) % _HELD_OUT == 0) == held_out]


@cache
def _dead_leaves(side: int) -> Tensor:
    """Dead leaves as uint8, most of them soft, so that the student undoes blur instead of sharpening everything."""
    generator = torch.Generator().manual_seed(0)
    count = max(12, round(_NUM_TILES * (_TILE / side) ** 2))
    leaves = dead_leaves.bank(count, side, generator).repeat(2, 1, 1, 1)
    return (soften(leaves, generator, share=_SOFT) * 255).round().to(torch.uint8)


def upsampled(x: Tensor, scale: int) -> Tensor:
    """Return the input as a candidate restoration: itself, or its bicubic upsampling."""
    if scale == 1:
        return x
    return F.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False).clamp(0, 1)


def clipped_fraction(image: Tensor) -> float:
    """Return the fraction of pixels in which all channels are clipped at white."""
    return float((image >= _CLIPPED).all(1).float().mean())
