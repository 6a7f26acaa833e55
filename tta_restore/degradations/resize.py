"""Downscaling with a choice of kernels: what super-resolution undoes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks
from tta_restore.degradations._ranges import rand
from tta_restore.degradations.degradation import Degradation, Parameters, at_least_float32, quantity
from tta_restore.degradations.registry import register_degradation

__all__ = ["Resize", "ResizeParameters"]

_KERNELS = ("bicubic", "bilinear", "area", "nearest")
_DIFFERENT = 2.0  # just noticeable steps between two of the kernels, by eye


@dataclass(frozen=True, eq=False)
class ResizeParameters(Parameters):
    """The kernel of each image, by its position among those of the degradation."""

    kernel: Tensor = quantity("position of the kernel in the setting", minimum=0)


@register_degradation("resize")
@dataclass(frozen=True, eq=False)
class Resize(Degradation):
    """Downscaling by a fixed factor.

    Args:
        factor: ratio of input and output side, at least 1; the output side is rounded.
        kernel: "bicubic", "bilinear" (both antialiased), "area", "nearest", a tuple of them to draw from, or a tensor
            (K, K) that sums to 1, applied at every ``factor``-th pixel; then ``factor`` is an integer and K - factor
            is even, so that pixel centers of input and output agree.
    """

    factor: float = 2.0
    kernel: str | tuple[str, ...] | Tensor = "bicubic"

    Parameters = ResizeParameters

    def __post_init__(self) -> None:
        checks.expect_number("Resize", "factor", self.factor, minimum=1)
        if isinstance(self.kernel, Tensor):
            size = checks.expect_shape("Resize", "kernel", self.kernel, "(K, K)")
            if size[0] != size[1] or self.factor != round(self.factor) or (size[0] - round(self.factor)) % 2:
                raise ValueError(
                    f"Resize: expected a kernel (K, K) with K - factor even and factor an integer, "
                    f"got {size} and factor {self.factor}"
                )
            return
        for name in self._names():
            checks.expect_choice("Resize", "kernel", name, _KERNELS)

    def sample(self, generator: torch.Generator, n: int) -> ResizeParameters:
        """Draw ``n`` kernels, each as likely as the others."""
        count = 1 if isinstance(self.kernel, Tensor) else len(self._names())
        return ResizeParameters((rand(generator, n) * count).long().clamp(max=count - 1))

    def apply(self, sharp: Tensor, parameters: ResizeParameters, generator: torch.Generator | None = None) -> Tensor:
        """Downscale; the output is (B, C, round(H / factor), round(W / factor)). See :meth:`Degradation.apply`."""
        parameters = self._expect(sharp, parameters)
        x = at_least_float32(sharp)
        if isinstance(self.kernel, Tensor):
            return self._convolve(x, self.kernel).to(sharp.dtype)
        if self.factor == 1:
            return sharp
        size = [max(round(side / self.factor), 1) for side in x.shape[-2:]]
        chosen, out = parameters.kernel.to(x.device), x.new_zeros(*x.shape[:2], *size)
        for index in parameters.kernel.unique().tolist():
            rows = chosen == index
            out[rows] = _interpolate(x[rows], size, self._names()[index])
        return out.to(sharp.dtype)

    def distance(self, a: ResizeParameters, b: ResizeParameters) -> Tensor:
        """Return 2 where the kernels differ, else 0, (N,)."""
        return (a.kernel != b.kernel).float() * _DIFFERENT

    def _names(self) -> tuple[str, ...]:
        return (self.kernel,) if isinstance(self.kernel, str) else tuple(self.kernel)  # type: ignore[arg-type]

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        step, channels = round(self.factor), x.shape[1]
        margin = (kernel.shape[0] - step) // 2
        taps = kernel.to(x).flip(0, 1).expand(channels, 1, -1, -1)  # conv2d correlates
        if margin > 0:
            x = F.pad(x, (margin,) * 4, mode="reflect")
        return F.conv2d(x, taps, stride=step, groups=channels)


def _interpolate(x: Tensor, size: list[int], name: str) -> Tensor:
    if name == "area":
        return F.interpolate(x, size=size, mode="area")
    if name == "nearest":
        return F.interpolate(x, size=size, mode="nearest-exact")
    return F.interpolate(x, size=size, mode=name, antialias=True, align_corners=False)
