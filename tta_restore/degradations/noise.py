"""Sensor noise: Poisson-Gaussian, white or correlated between neighboring pixels or between channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core.color import linear_to_srgb, srgb_to_linear
from tta_restore.degradations._ranges import Range, expect_range, spaced, uniform
from tta_restore.degradations.degradation import (
    Degradation,
    Parameters,
    at_least_float32,
    just_noticeable,
    normal,
    quantity,
)
from tta_restore.degradations.registry import register_degradation

__all__ = ["Noise", "NoiseParameters"]

_INVISIBLE = 0.5 / 255  # standard deviation that rounding to 8 bits hides, about
_COLOR_STEP = 0.3  # difference of the correlations of channels that is just noticeable, about


@dataclass(frozen=True, eq=False)
class NoiseParameters(Parameters):
    """Variance ``read_std^2 + shot * value``, correlated over ``correlation`` pixels and between channels."""

    read_std: Tensor = quantity("standard deviation, values in [0, 1]", minimum=0, maximum=1)
    shot: Tensor = quantity("variance per value", minimum=0, maximum=1)
    correlation: Tensor = quantity("standard deviation of the noise's Gaussian filter in pixels", minimum=0, maximum=8)
    channel_correlation: Tensor | None = quantity("correlation of two channels", minimum=0, maximum=1, default=None)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Concatenate batches; without a correlation of channels it is 0 beside those that have one."""
        if any(part.channel_correlation is not None for part in parts):
            parts = [replace(part, channel_correlation=_between_channels(part)) for part in parts]
        return super().cat(parts)


@register_degradation("noise")
@dataclass(frozen=True)
class Noise(Degradation):
    """Poisson-Gaussian noise in the Gaussian approximation; values may leave [0, 1], see :class:`Clip`.

    Args:
        read_std: standard deviation of the noise that does not depend on the value, in [0, 1] values.
        shot: variance per value of the photon noise, in [0, 1] values.
        correlation: standard deviation in pixels of the Gaussian filter that correlates the noise, as demosaicking and
            resizing do; 0 is white noise. The variance of a pixel does not depend on it.
        channel_correlation: correlation of the noise of any two channels: 0 is independent noise, 1 the same in all of
            them, as film grain and cameras that remove color noise leave it.
        linear: add the noise to linear light instead of to stored (sRGB) values.
        log_uniform: draw levels log-uniformly where they are visible (above 0.5/255); False draws them uniformly.

    Example:
        >>> import torch
        >>> from tta_restore.degradations import Noise
        >>> generator = torch.Generator().manual_seed(0)
        >>> noise = Noise(read_std=(1 / 255, 50 / 255))
        >>> parameters = noise.sample(generator, 4)
        >>> noise.apply(torch.rand(4, 3, 32, 32), parameters, generator).shape
        torch.Size([4, 3, 32, 32])
    """

    read_std: Range = (0.5 / 255, 50 / 255)
    shot: Range = 0.0
    correlation: Range = 0.0
    channel_correlation: Range = 0.0
    linear: bool = False
    log_uniform: bool = True

    Parameters = NoiseParameters

    def __post_init__(self) -> None:
        expect_range("Noise", "read_std", self.read_std, minimum=0, maximum=1)
        expect_range("Noise", "shot", self.shot, minimum=0, maximum=1)
        expect_range("Noise", "correlation", self.correlation, minimum=0, maximum=8)
        expect_range("Noise", "channel_correlation", self.channel_correlation, minimum=0, maximum=1)

    def sample(self, generator: torch.Generator, n: int) -> NoiseParameters:
        """Draw ``n`` sets of parameters."""
        return NoiseParameters(
            read_std=spaced(self.read_std, generator, n, floor=_INVISIBLE, log=self.log_uniform),
            shot=spaced(self.shot, generator, n, floor=_INVISIBLE**2, log=self.log_uniform),
            correlation=uniform(self.correlation, generator, n),
            channel_correlation=(
                None if self.channel_correlation == 0 else uniform(self.channel_correlation, generator, n)
            ),
        )

    def apply(self, sharp: Tensor, parameters: NoiseParameters, generator: torch.Generator) -> Tensor:
        """Add noise drawn from the generator; see :meth:`Degradation.apply`."""
        parameters = self._expect(sharp, parameters).to(sharp.device)
        x = at_least_float32(sharp)
        x = srgb_to_linear(x) if self.linear else x
        read, shot = (value.to(x)[:, None, None, None] for value in (parameters.read_std, parameters.shot))
        std = (read.square() + shot * x.clamp(min=0)).sqrt()
        noisy = x + std * unit_noise(x, parameters.correlation, _between_channels(parameters), generator)
        return (linear_to_srgb(noisy) if self.linear else noisy).to(sharp.dtype)

    def distance(self, a: NoiseParameters, b: NoiseParameters) -> Tensor:
        """Return the distance of the standard deviations at mid-gray, grain sizes and channel correlations, (N,)."""
        strength = just_noticeable(_std(a), _std(b), _INVISIBLE)
        # a noise that cannot be seen has no grain
        visible = torch.minimum(_std(a), _std(b)) / (torch.minimum(_std(a), _std(b)) + _INVISIBLE)
        grain = just_noticeable(a.correlation, b.correlation, 0.5) * visible
        color = (_between_channels(a) - _between_channels(b)) / _COLOR_STEP * visible
        return torch.hypot(torch.hypot(strength, grain), color)


def _std(parameters: NoiseParameters) -> Tensor:
    return (parameters.read_std.square() + 0.5 * parameters.shot).sqrt()


def _between_channels(parameters: NoiseParameters) -> Tensor:
    given = parameters.channel_correlation
    return torch.zeros_like(parameters.read_std) if given is None else given


def unit_noise(like: Tensor, correlation: Tensor, channel_correlation: Tensor, generator: torch.Generator) -> Tensor:
    """Draw noise of unit variance (B, C, H, W) with correlations (B,) or () as in :class:`Noise`."""
    b, c, h, w = like.shape
    correlation, between = (value.to(like).expand(b) for value in (correlation, channel_correlation))
    if not bool((correlation > 0).any()):
        return _white_noise(like, between, generator)
    taps = filter_taps(correlation).repeat_interleave(c, 0)
    margin = taps.shape[1] - 1
    drawn = _white_noise(like.new_empty(()).expand(b, c, h + margin, w + margin), between, generator)
    stack: Any = drawn.reshape(1, b * c, *drawn.shape[-2:])
    for kernel in (taps[:, None, :, None], taps[:, None, None, :]):
        stack = F.conv2d(stack, kernel, groups=b * c)
    return stack.view(like.shape)


def filter_taps(correlation: Tensor) -> Tensor:
    """Return the Gaussian filters (B, K) of standard deviations (B,) that keep the variance of white noise."""
    reach = math.ceil(3 * float(correlation.max())) if len(correlation) else 0
    axis = torch.arange(-reach, reach + 1, device=correlation.device, dtype=correlation.dtype)
    taps = torch.exp(-axis.square() / (2 * correlation[:, None].clamp(min=1e-3).square()))
    return taps / taps.square().sum(1, keepdim=True).sqrt()


def _white_noise(like: Tensor, channel_correlation: Tensor, generator: torch.Generator) -> Tensor:
    b, c, h, w = like.shape
    shared = channel_correlation.view(-1, 1, 1, 1)
    if c > 1 and bool((shared == 1).all()):
        return normal((b, 1, h, w), generator, like).to(like).expand(b, c, h, w)
    own = normal((b, c, h, w), generator, like).to(like)
    if c == 1 or not bool((shared > 0).any()):
        return own
    return (1 - shared).sqrt() * own + shared.sqrt() * normal((b, 1, h, w), generator, like).to(like)
