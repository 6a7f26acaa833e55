"""Adversarial losses: what a generator and its critic want of the critic's scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore._core import checks

Kind = Literal["wasserstein", "least_squares"]

_KINDS = ("wasserstein", "least_squares")


def adversarial(fake: Tensor, *, kind: Kind = "wasserstein") -> Tensor:
    """What a generator minimizes, given the critic's scores of what it made.

    ``-mean(fake)``, or with least squares ``mean((fake - 1)^2)``. Half types are accumulated in float32.

    Shape: fake of any shape, scores without bounds -> scalar.

    Raises:
        TypeError: ``fake`` is no floating-point tensor.
        ValueError: ``kind`` is unknown.

    Source: Arjovsky et al., Wasserstein GAN, ICML 2017; Mao et al., Least squares GAN, ICCV 2017.
    """
    checks.expect_floating("adversarial", fake=fake)
    checks.expect_choice("adversarial", "kind", kind, _KINDS)
    fake = _wide(fake)
    return -fake.mean() if kind == "wasserstein" else (fake - 1).square().mean()


def critic(fake: Tensor, real: Tensor, *, kind: Kind = "wasserstein") -> Tensor:
    """What a critic minimizes, given its scores of made and of real pictures.

    ``mean(fake) - mean(real)``, or with least squares ``mean(fake^2) + mean((real - 1)^2)``. A Wasserstein critic must
    be kept from growing, as by clipping its weights after each step. Half types are accumulated in float32.

    Shape: fake, real of any shapes, scores without bounds -> scalar.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: ``kind`` is unknown.

    Source: as of :func:`adversarial`.
    """
    checks.expect_floating("critic", fake=fake, real=real)
    checks.expect_choice("critic", "kind", kind, _KINDS)
    fake, real = _wide(fake), _wide(real)
    if kind == "wasserstein":
        return fake.mean() - real.mean()
    return fake.square().mean() + (real - 1).square().mean()


def _wide(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype.itemsize < 4 else scores


class Adversarial(nn.Module):
    """Module of :func:`adversarial`."""

    def __init__(self, *, kind: Kind = "wasserstein") -> None:
        super().__init__()
        self.kind: Kind = kind

    def forward(self, fake: Tensor) -> Tensor:
        """Loss of a generator."""
        return adversarial(fake, kind=self.kind)

    def extra_repr(self) -> str:
        """Arguments shown by repr."""
        return f"kind={self.kind!r}"


class Critic(nn.Module):
    """Module of :func:`critic`."""

    def __init__(self, *, kind: Kind = "wasserstein") -> None:
        super().__init__()
        self.kind: Kind = kind

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """Loss of a critic."""
        return critic(fake, real, kind=self.kind)

    def extra_repr(self) -> str:
        """Arguments shown by repr."""
        return f"kind={self.kind!r}"


def cycle(
    reblurred: Tensor,
    sharp: Tensor,
    *,
    restore: Callable[[Tensor], Tensor],
    distance: Callable[[Tensor, Tensor], Tensor] = F.l1_loss,
) -> Tensor:
    """Distance of a sharp picture from the restoration of its reblurred form, which is cut to [0, 1] first.

    Args:
        reblurred: gets the gradient, and through ``restore`` so do its weights.
        sharp: what ``restore`` is to find again.
        restore: a deblurrer from pictures in [0, 1] to pictures.
        distance: of two pictures, a scalar.

    Shape: reblurred, sharp (B, C, H, W), sharp in [0, 1] -> scalar.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: the shapes differ.

    Source: Meta Transferring for Deblurring (Liu et al., BMVC 2022), equation 4.
    """
    checks.expect_floating("cycle", reblurred=reblurred, sharp=sharp)
    checks.expect_shape("cycle", "sharp", sharp, "reblurred.shape", tuple(reblurred.shape))
    return distance(restore(reblurred.clamp(0, 1)), sharp)


class Cycle(nn.Module):
    """Module of :func:`cycle`."""

    def __init__(
        self, *, restore: Callable[[Tensor], Tensor], distance: Callable[[Tensor, Tensor], Tensor] = F.l1_loss
    ) -> None:
        super().__init__()
        self.restore, self.distance = restore, distance

    def forward(self, reblurred: Tensor, sharp: Tensor) -> Tensor:
        """Loss of a reblurred picture."""
        return cycle(reblurred, sharp, restore=self.restore, distance=self.distance)
