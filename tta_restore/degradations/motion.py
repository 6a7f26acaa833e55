"""Camera motion during the exposure: paths of the camera, and the motion blur of a frame."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks
from tta_restore._core.color import linear_to_srgb, srgb_to_linear
from tta_restore.degradations._convolve import convolve
from tta_restore.degradations._ranges import Range, expect_range, log_uniform, rand, uniform
from tta_restore.degradations.degradation import (
    Degradation,
    Parameters,
    at_least_float32,
    just_noticeable,
    normal,
    quantity,
)
from tta_restore.degradations.registry import register_degradation

__all__ = ["CameraPath", "CameraShake", "MotionBlur", "MotionParameters", "camera_path", "expose"]

_STEPS = 512  # of a rasterized path


@dataclass(frozen=True)
class CameraShake:
    """Motion of a camera and its exposure time.

    Speeds are typical values of the motion between two frames; it changes smoothly, so blur varies within a clip.

    Attributes:
        pan: pixels per frame.
        direction: of the pan: radians from the horizontal; None for directions that change.
        zoom: relative change of scale per frame.
        rotation: radians per frame, around the center of the frame.
        tremor: pixels of fast shaking, several times per exposure, which bends the path of the light.
        exposure_fraction: part of the time between two frames in which the shutter is open.
        variation: 0 for a steady speed, 1 for one that changes between about a fifth and five times the typical one.
        period: frames after which the motion has become another.
        rest_fraction: part of each period in which the camera is held still, below 1.
        noise_std: standard deviation of the sensor's noise, in stored values.
    """

    pan: float = 6.0
    direction: float | None = None
    zoom: float = 0.0
    rotation: float = 0.0
    tremor: float = 0.0
    exposure_fraction: float = 0.8
    variation: float = 0.6
    period: float = 5.0
    rest_fraction: float = 0.0
    noise_std: float = 1 / 255

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "direction":
                checks.expect_number("CameraShake", field.name, getattr(self, field.name), minimum=0, below=math.inf)
        checks.expect_number("CameraShake", "direction", self.direction, above=-math.inf, below=math.inf, optional=True)
        checks.expect_number("CameraShake", "exposure_fraction", self.exposure_fraction, above=0, maximum=1)
        checks.expect_number("CameraShake", "period", self.period, minimum=1)
        checks.expect_number("CameraShake", "rest_fraction", self.rest_fraction, below=1)


@dataclass(frozen=True)
class CameraPath:
    """Poses of a camera at fine time steps.

    Shape:
        - poses: (T, N, 4): at N sub-frames of T exposures, the view's shift in x and y in pixels, log scale, radians
    """

    poses: Tensor

    def displacement(self, size: int) -> Tensor:
        """Return the distance in pixels that a corner of a view of this side travels during each exposure, (T,)."""
        corner = torch.tensor([size / 2, size / 2])
        cos, sin = self.poses[..., 3].cos(), self.poses[..., 3].sin()
        turned = torch.stack([cos * corner[0] - sin * corner[1], sin * corner[0] + cos * corner[1]], -1)
        places = self.poses[..., :2] + turned * self.poses[..., 2:3].exp()
        return (places[:, 1:] - places[:, :-1]).norm(dim=-1).sum(1)


def camera_path(shake: CameraShake, frames: int, generator: torch.Generator, *, num_subframes: int = 17) -> CameraPath:
    """Draw the path of a camera over ``frames`` exposures, each seen at an odd number of ``num_subframes``.

    Raises:
        ValueError: ``frames`` is not positive, or ``num_subframes`` no odd number of at least 3.
    """
    checks.expect_int("camera_path", "frames", frames, minimum=1)
    checks.expect_int("camera_path", "num_subframes", num_subframes, minimum=3, odd=True)
    fine = math.ceil((num_subframes - 1) / shake.exposure_fraction)  # steps of time per frame
    steps = frames * fine + num_subframes
    knots = math.ceil(steps / (fine * shake.period)) + 3

    def smooth(channels: int, points: int) -> Tensor:
        drawn = torch.randn(1, channels, points, generator=generator)
        return F.interpolate(drawn[:, :, None], size=(1, steps), mode="bicubic", align_corners=True)[0, :, 0]

    gain = (shake.variation * 1.6 * smooth(1, knots).clamp(-1, 1)).exp()  # exp(1.6) is about five
    if shake.rest_fraction:
        phase = torch.rand((), generator=generator) + torch.arange(steps) / (fine * shake.period)
        gain = gain * (phase % 1 >= shake.rest_fraction)
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
        path[:2] += shake.tremor * smooth(2, max(4, round(4 * steps / num_subframes)))
    starts = torch.arange(frames) * fine
    return CameraPath(path.T[starts[:, None] + torch.arange(num_subframes)])


def expose(linear: Tensor, poses: Tensor, size: int) -> Tensor:
    """Render the view from each pose: (3, H, W), (N, 4) -> (N, 3, size, size)."""
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


@dataclass(frozen=True, eq=False)
class MotionParameters(Parameters):
    """Poses of the camera at M steps of the exposure: shift in x and y in pixels, log scale, rotation in radians."""

    poses: Tensor = quantity("pixels, pixels, log scale, radians", minimum=-1e4, maximum=1e4, shape="(N, M, 4)")


@register_degradation("motion_blur")
@dataclass(frozen=True)
class MotionBlur(Degradation):
    """Blur of a camera that moves while the shutter is open, averaged in linear light.

    The path is centered, so that the blurred image is not shifted against the sharp one. Paths that only shift are a
    convolution; rotation and zoom are averaged over the ``num_subframes`` poses.

    Args:
        length: length of the path in pixels, of its shift alone. Drawn log-uniformly.
        tremor: fraction of the length by which a random smooth path deviates from the straight streak; 0 is a streak.
        rotation: rotation during the exposure, radians.
        zoom: change of the log scale during the exposure.
        num_subframes: poses per exposure.
        linear: average linear light; False averages stored values.
    """

    length: Range = (2.0, 20.0)
    tremor: Range = (0.0, 0.5)
    rotation: Range = 0.0
    zoom: Range = 0.0
    num_subframes: int = 33
    linear: bool = True

    Parameters = MotionParameters

    def __post_init__(self) -> None:
        for name in ("length", "tremor", "rotation", "zoom"):
            expect_range("MotionBlur", name, getattr(self, name), minimum=0, maximum=1e3)
        checks.expect_int("MotionBlur", "num_subframes", self.num_subframes, minimum=2)

    def sample(self, generator: torch.Generator, n: int) -> MotionParameters:
        """Draw ``n`` paths in random directions."""
        steps = torch.linspace(-0.5, 0.5, self.num_subframes)
        length, tremor = log_uniform(self.length, generator, n, floor=0.5), uniform(self.tremor, generator, n)
        rotation, zoom = uniform(self.rotation, generator, n), uniform(self.zoom, generator, n)
        angle, turn, grow = 2 * math.pi * rand(generator, n), rand(generator, n) < 0.5, rand(generator, n) < 0.5
        path = torch.stack([angle.cos(), angle.sin()], -1)[:, None] * steps[:, None]
        wobble = normal((n, 2, 6), generator, length)
        wobble = F.interpolate(wobble[:, :, None], size=(1, self.num_subframes), mode="bicubic", align_corners=True)
        path = path + tremor[:, None, None] * 0.5 * wobble[:, :, 0].transpose(1, 2)
        traveled = path.diff(dim=1).norm(dim=-1).sum(1).clamp(min=1e-6)
        path = path * (length / traveled)[:, None, None]
        signed = [torch.where(side, value, -value)[:, None] * steps for side, value in ((grow, zoom), (turn, rotation))]
        poses = torch.cat([path - path.mean(1, keepdim=True), torch.stack(signed, -1)], -1)
        return MotionParameters(poses)

    def apply(self, sharp: Tensor, parameters: MotionParameters, generator: torch.Generator | None = None) -> Tensor:
        """Blur along the paths; see :meth:`Degradation.apply`."""
        parameters = self._expect(sharp, parameters)
        x = at_least_float32(sharp)
        x = srgb_to_linear(x) if self.linear else x
        poses = parameters.poses
        if not bool((poses[..., 2:] != 0).any()):
            out = convolve(x, motion_kernels(poses[..., :2])[:, None].to(x))
        else:
            out = _average_views(x, poses.to(x))
        return (linear_to_srgb(out) if self.linear else out).to(sharp.dtype)

    def distance(self, a: MotionParameters, b: MotionParameters) -> Tensor:
        """Return the distance of the lengths along and across the mean direction, of rotation and of zoom, (N,)."""
        parts = [just_noticeable(first, second, 1.0) for first, second in zip(_moments(a), _moments(b), strict=True)]
        return torch.stack(parts).square().sum(0).sqrt()


def motion_kernels(path: Tensor) -> Tensor:
    """Rasterize paths of the camera as point spread functions.

    Shape:
        - path: (N, M, 2), shift in x and y in pixels at equal steps of time
        - output: (N, K, K), each summing to 1, K odd and as small as the longest path allows
    """
    n, count, _ = path.shape
    longest = float(path.diff(dim=1).norm(dim=-1).sum(1).max()) if path.numel() else 0.0
    # steps of at most a quarter of a pixel leave no gaps; as many for every path that is not very long, so that the
    # kernel of a path does not depend on the batch
    dense = (count - 1) * max(math.ceil(_STEPS / (count - 1)), math.ceil(4 * longest / (count - 1))) + 1
    points = F.interpolate(path.transpose(1, 2), size=dense, mode="linear", align_corners=True)
    # a camera that moves right shifts the image left; the kernel is that of a convolution
    points = -points
    reach = math.ceil(float(path.abs().max())) + 1 if path.numel() else 1
    size = 2 * reach + 1
    place = points + reach
    first = place.floor()
    fraction = place - first
    kernels = path.new_zeros(n, size * size)
    for dy in (0, 1):
        for dx in (0, 1):
            offset = torch.tensor([dx, dy], dtype=path.dtype, device=path.device)[:, None]
            weight = (1 - (fraction - offset).abs()).prod(1)
            x, y = (first + offset).long().unbind(1)
            kernels.scatter_add_(1, y * size + x, weight)
    return kernels.view(n, size, size) / dense


def _average_views(x: Tensor, poses: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device, dtype=x.dtype) - (height - 1) / 2
    columns = torch.arange(width, device=x.device, dtype=x.dtype) - (width - 1) / 2
    total = torch.zeros_like(x)
    for pose in poses.unbind(1):
        shift_x, shift_y, log_scale, angle = (value[:, None, None] for value in pose.unbind(-1))
        cos, sin = log_scale.exp() * angle.cos(), log_scale.exp() * angle.sin()
        across = cos * columns - sin * rows[:, None] + shift_x
        down = sin * columns + cos * rows[:, None] + shift_y
        grid = torch.stack([2 * across / width, 2 * down / height], -1)
        total += F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return total / poses.shape[1]


def _moments(parameters: MotionParameters) -> list[Tensor]:
    """Spread in x, y and both diagonals in pixels, and 100 times that of scale and angle (1 % of 100 pixels is one)."""
    poses = parameters.poses
    x, y, scale, angle = poses.unbind(-1)
    spread = [x, y, (x + y) / math.sqrt(2), (x - y) / math.sqrt(2), 100 * scale, 100 * angle]
    return [value.std(1, correction=0) for value in spread]
