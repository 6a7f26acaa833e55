"""Adversarial losses: what a generator and its critic want of the critic's scores."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tta_restore import _checks

Kind = Literal["wasserstein", "least_squares"]

_KINDS = ("wasserstein", "least_squares")


def adversarial(fake: Tensor, *, kind: Kind = "wasserstein") -> Tensor:
    """What a generator minimises, given the critic's scores of what it made.

    ``-mean(fake)``, or with least squares ``mean((fake - 1)^2)``. Half types are accumulated in float32.

    Shape: fake of any shape, scores without bounds -> scalar.

    Raises:
        TypeError: ``fake`` is no floating-point tensor.
        ValueError: ``kind`` is unknown.

    Source: Arjovsky et al., Wasserstein GAN, ICML 2017; Mao et al., Least squares GAN, ICCV 2017.
    """
    _checks.expect_floating("adversarial", fake=fake)
    _checks.expect_choice("adversarial", "kind", kind, _KINDS)
    fake = _wide(fake)
    return -fake.mean() if kind == "wasserstein" else (fake - 1).square().mean()


def critic(fake: Tensor, real: Tensor, *, kind: Kind = "wasserstein") -> Tensor:
    """What a critic minimises, given its scores of made and of real pictures.

    ``mean(fake) - mean(real)``, or with least squares ``mean(fake^2) + mean((real - 1)^2)``. A Wasserstein critic must
    be kept from growing, as by clipping its weights after each step. Half types are accumulated in float32.

    Shape: fake, real of any shapes, scores without bounds -> scalar.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: ``kind`` is unknown.

    Source: as of :func:`adversarial`.
    """
    _checks.expect_floating("critic", fake=fake, real=real)
    _checks.expect_choice("critic", "kind", kind, _KINDS)
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
