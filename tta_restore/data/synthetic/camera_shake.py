"""Clips of a camera that moves over a photograph: pans, zooms and rotations, exposed over many sub-frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks
from tta_restore._core.color import srgb_to_linear
from tta_restore.data.datasets.clips import Clip
from tta_restore.data.synthetic.defocus import sense


@dataclass(frozen=True)
class CameraShake:
    """How a camera moves, and how long its shutter is open.

    Speeds are typical values of the motion between two frames; it changes smoothly, so blur varies within a clip.

    Attributes:
        pan: pixels per frame.
        direction: of the pan: radians from the horizontal; None for directions that change.
        zoom: relative change of scale per frame.
        rotation: radians per frame, around the center of the frame.
        tremor: pixels of fast shaking, several times per exposure, which bends the path of the light.
        exposure: part of the time between two frames in which the shutter is open.
        variation: 0 for a steady speed, 1 for one that changes between about a fifth and five times the typical one.
        period: frames after which the motion has become another.
        rest: part of each period in which the camera is held still, below 1.
        noise: standard deviation of the sensor's noise, in stored values.
    """

    pan: float = 6.0
    direction: float | None = None
    zoom: float = 0.0
    rotation: float = 0.0
    tremor: float = 0.0
    exposure: float = 0.8
    variation: float = 0.6
    period: float = 5.0
    rest: float = 0.0
    noise: float = 1 / 255

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "direction":
                checks.expect_number("CameraShake", field.name, getattr(self, field.name), minimum=0, below=math.inf)
        checks.expect_number("CameraShake", "direction", self.direction, above=-math.inf, below=math.inf, optional=True)
        checks.expect_number("CameraShake", "exposure", self.exposure, above=0, maximum=1)
        checks.expect_number("CameraShake", "period", self.period, minimum=1)
        checks.expect_number("CameraShake", "rest", self.rest, below=1)


@dataclass(frozen=True)
class CameraPath:
    """Where the camera looks at fine steps of time.

    Shape:
        - poses: (T, N, 4): at N moments of T exposures, the view's shift in x and y in pixels, log scale, radians
    """

    poses: Tensor

    def displacement(self, size: int) -> Tensor:
        """How far, in pixels, a corner of a view of this side travels during each exposure: (T,)."""
        corner = torch.tensor([size / 2, size / 2])
        cos, sin = self.poses[..., 3].cos(), self.poses[..., 3].sin()
        turned = torch.stack([cos * corner[0] - sin * corner[1], sin * corner[0] + cos * corner[1]], -1)
        places = self.poses[..., :2] + turned * self.poses[..., 2:3].exp()
        return (places[:, 1:] - places[:, :-1]).norm(dim=-1).sum(1)


def camera_path(shake: CameraShake, frames: int, generator: torch.Generator, *, moments: int = 17) -> CameraPath:
    """Draw the path of a camera over ``frames`` exposures, each seen at an odd number of ``moments``.

    Raises:
        ValueError: ``frames`` is not positive, or ``moments`` no odd number of at least 3.
    """
    checks.expect_int("camera_path", "frames", frames, minimum=1)
    checks.expect_int("camera_path", "moments", moments, minimum=3, odd=True)
    fine = math.ceil((moments - 1) / shake.exposure)  # steps of time per frame
    steps = frames * fine + moments
    knots = math.ceil(steps / (fine * shake.period)) + 3

    def smooth(channels: int, points: int) -> Tensor:
        drawn = torch.randn(1, channels, points, generator=generator)
        return F.interpolate(drawn[:, :, None], size=(1, steps), mode="bicubic", align_corners=True)[0, :, 0]

    gain = (shake.variation * 1.6 * smooth(1, knots).clamp(-1, 1)).exp()  # exp(1.6) is about five
    if shake.rest:
        phase = torch.rand((), generator=generator) + torch.arange(steps) / (fine * shake.period)
        gain = gain * (phase % 1 >= shake.rest)
    if shake.direction is None:
        pan = smooth(2, knots)
        pan = pan / pan.norm(dim=0).clamp(min=0.3)
    else:
        side = 1.0 if torch.rand((), generator=generator) < 0.5 else -1.0
        pan = side * torch.tensor([[math.cos(shake.direction)], [math.sin(shake.direction)]]).expand(2, steps)
    turn = smooth(2, knots).clamp(-1.5, 1.5)
    speed = torch.cat([shake.pan * pan, shake.zoom * turn[:1], shake.rotation * turn[1:]]) * gain / fine
    path = speed.cumsum(1)
    path[2:] -= path[2:].mean(1, keepdim=True)  # scale and angle stay around those of the photograph
    if shake.tremor:
        path[:2] += shake.tremor * smooth(2, max(4, round(4 * steps / moments)))
    starts = torch.arange(frames) * fine
    return CameraPath(path.T[starts[:, None] + torch.arange(moments)])


def simulate_shake(
    photo: Tensor,
    shake: CameraShake,
    generator: torch.Generator,
    *,
    frames: int = 10,
    size: int = 96,
    name: str = "clip",
    moments: int = 17,
) -> Clip:
    """Film a photograph with a moving camera.

    Each frame is the mean, in linear light, of what the camera sees at ``moments`` of its exposure, as a sensor stores
    it; its original is what the camera sees in the middle. Beyond its border the photograph is mirrored.

    Shape:
        - photo: (3, H, W), RGB in [0, 1], both sides at least ``size``
        - frames of the clip: (T, 3, size, size)

    Raises:
        ValueError: the photograph is smaller than a frame.
    """
    if photo.ndim != 3 or photo.shape[0] != 3 or min(photo.shape[1:]) < size:
        raise ValueError(f"simulate_shake: expected photo (3, H, W) with H, W >= {size}, got {tuple(photo.shape)}")
    path = camera_path(shake, frames, generator, moments=moments)
    height, width = photo.shape[1:]
    room = torch.tensor([width - size, height - size], dtype=torch.float32)
    poses = path.poses.clone()
    start = torch.rand(2, generator=generator) * room - room / 2
    poses[..., :2] += start - poses[..., :2].mean((0, 1))
    linear = srgb_to_linear(photo)
    blurry, sharp = [], []
    for exposure in poses:
        seen = _look(linear, exposure, size)
        blurry.append(sense(seen.mean(0), generator, noise=shake.noise))
        sharp.append(sense(seen[moments // 2], generator, noise=0.0))
    return Clip(name, torch.stack(blurry), torch.stack(sharp))


def _look(linear: Tensor, poses: Tensor, size: int) -> Tensor:
    """What the camera sees from each pose: (3, H, W), (N, 4) -> (N, 3, size, size)."""
    height, width = linear.shape[1:]
    axis = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    x, y = axis.expand(size, size), axis[:, None].expand(size, size)
    scale = poses[:, 2].exp()
    cos, sin = ((scale * f(poses[:, 3]))[:, None, None] for f in (torch.cos, torch.sin))
    across = cos * x - sin * y + poses[:, 0, None, None]
    down = sin * x + cos * y + poses[:, 1, None, None]
    grid = torch.stack([2 * across / width, 2 * down / height], -1).view(1, -1, size, 2)  # one tall view: no copies
    seen = F.grid_sample(linear[None], grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return seen.view(3, len(poses), size, size).transpose(0, 1).clamp(0, 1)


class ShakenClips(Sequence[Clip]):
    """Clips made of photographs when they are asked for; clip number n is always the same.

    Args:
        photos: name and picture (3, H, W), in order; a clip takes the next one, when it is made.
        shakes: kinds of motion; a clip takes the next one after every round of the photographs.
        length: clips in all; None for one per photograph and kind.
        frames: per clip.
        size: side of the frames in pixels.
        seed: of motion, places and noise.
        moments: of each exposure, odd.

    Raises:
        ValueError: there are no photographs or no kinds of motion.
    """

    def __init__(
        self,
        photos: Sequence[tuple[str, Tensor]],
        shakes: Sequence[CameraShake],
        *,
        length: int | None = None,
        frames: int = 10,
        size: int = 96,
        seed: int = 0,
        moments: int = 17,
    ) -> None:
        if not photos or not shakes:
            raise ValueError(f"ShakenClips: expected photographs and motions, got {len(photos)} and {len(shakes)}")
        self.photos, self.shakes = photos, tuple(shakes)
        self.frames, self.size, self.seed, self.moments = frames, size, seed, moments
        self.length = len(photos) * len(shakes) if length is None else length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Clip:  # type: ignore[override]
        """A clip, made anew."""
        if not 0 <= index < self.length:
            raise IndexError(f"ShakenClips: clip {index} of {self.length}")
        name, photo = self.photos[index % len(self.photos)]
        kind = index // len(self.photos) % len(self.shakes)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        label = f"{name}-{kind}-{index:04d}"
        options = {"frames": self.frames, "size": self.size, "moments": self.moments}
        return simulate_shake(photo, self.shakes[kind], generator, name=label, **options)
