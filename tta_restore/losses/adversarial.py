"""Losses of adversarial and cycle-consistent training of a reblurring network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks
from tta_restore.losses._base import (
    SCALAR_REDUCTIONS,
    LossModule,
    Reduction,
    expect_pair,
    expect_reduction,
    reduce,
    widen,
)

__all__ = [
    "AdversarialLoss",
    "CycleLoss",
    "DiscriminatorLoss",
    "adversarial_loss",
    "cycle_loss",
    "discriminator_loss",
]

Kind = Literal["wasserstein", "least_squares"]

_KINDS = ("wasserstein", "least_squares")


def adversarial_loss(fake: Tensor, *, kind: Kind = "wasserstein", reduction: Reduction = "mean") -> Tensor:
    """Return the generator's loss from the discriminator's scores of generated images.

    ``-mean(fake)``, or ``mean((fake - 1)^2)`` with least squares. Half-precision scores are accumulated in float32.

    Args:
        fake: unbounded scores of generated images.
        kind: ``"wasserstein"`` or ``"least_squares"``.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per score.

    Shape: fake of any shape -> scalar, or the shape of ``fake`` with ``reduction="none"``.

    Raises:
        TypeError: ``fake`` is not a floating-point tensor.
        ValueError: ``kind`` or ``reduction`` is unknown.

    Source: Arjovsky et al., Wasserstein GAN, ICML 2017; Mao et al., Least squares GAN, ICCV 2017.
    """
    checks.expect_floating("adversarial_loss", fake=fake)
    checks.expect_choice("adversarial_loss", "kind", kind, _KINDS)
    expect_reduction("adversarial_loss", reduction)
    fake = widen(fake)
    return -reduce(fake, reduction) if kind == "wasserstein" else reduce((fake - 1).square(), reduction)


class AdversarialLoss(LossModule):
    """Module form of :func:`adversarial_loss`."""

    def __init__(self, *, kind: Kind = "wasserstein", reduction: Reduction = "mean") -> None:
        super().__init__(kind=kind, reduction=reduction)

    def forward(self, fake: Tensor) -> Tensor:
        """Return the loss of a generator."""
        return adversarial_loss(fake, **self.settings)


def discriminator_loss(
    fake: Tensor, real: Tensor, *, kind: Kind = "wasserstein", reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Return the discriminator's loss from its scores of generated and of real images.

    ``mean(fake) - mean(real)``, or ``mean(fake^2) + mean((real - 1)^2)`` with least squares. A Wasserstein
    discriminator must be kept bounded, for example by clipping its weights after each step. Half-precision scores are
    accumulated in float32.

    Args:
        fake: unbounded scores of generated images.
        real: unbounded scores of real images.
        kind: ``"wasserstein"`` or ``"least_squares"``.
        reduction: ``"mean"`` or ``"sum"`` over the scores of each kind.

    Shape: fake, real of any shapes -> scalar.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: ``kind`` or ``reduction`` is unknown.

    Source: Arjovsky et al., Wasserstein GAN, ICML 2017, its critic; Mao et al., Least squares GAN, ICCV 2017.
    """
    checks.expect_floating("discriminator_loss", fake=fake, real=real)
    checks.expect_choice("discriminator_loss", "kind", kind, _KINDS)
    expect_reduction("discriminator_loss", reduction, SCALAR_REDUCTIONS)
    # Batches of generated and real images may differ in size, so each is reduced by itself.
    fake, real = widen(fake), widen(real)
    if kind == "wasserstein":
        return reduce(fake, reduction) - reduce(real, reduction)
    return reduce(fake.square(), reduction) + reduce((real - 1).square(), reduction)


class DiscriminatorLoss(LossModule):
    """Module form of :func:`discriminator_loss`."""

    def __init__(self, *, kind: Kind = "wasserstein", reduction: Literal["mean", "sum"] = "mean") -> None:
        super().__init__(kind=kind, reduction=reduction)

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """Return the loss of a discriminator."""
        return discriminator_loss(fake, real, **self.settings)


def cycle_loss(
    reblurred: Tensor,
    sharp: Tensor,
    *,
    restore: Callable[[Tensor], Tensor],
    distance: Callable[..., Tensor] = F.l1_loss,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the distance between a sharp image and the restoration of its reblurred form.

    The reblurred image is clamped to [0, 1] before it is restored.

    Args:
        reblurred: reblurred image; receives the gradient, as do the weights used by ``restore``.
        sharp: image that ``restore`` should recover.
        restore: deblurring function of images in [0, 1].
        distance: function of two images; it is also given ``reduction`` unless that is ``"mean"``, as the losses of
            torch and of this package take it.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for what ``distance`` then returns.

    Shape:
        - reblurred, sharp: (B, C, H, W), ``sharp`` in [0, 1]
        - output: scalar, or the shape that ``distance`` returns with ``reduction="none"``

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: The shapes differ, or ``reduction`` is unknown.

    Source: Liu et al., Meta transferring for deblurring, BMVC 2022, equation 4.
    """
    expect_pair("cycle_loss", None, reblurred=reblurred, sharp=sharp)
    expect_reduction("cycle_loss", reduction)
    # A plain function of two images serves as distance as long as its own reduction is asked for.
    options = {} if reduction == "mean" else {"reduction": reduction}
    # Restorers expect [0, 1]; the clamp stops the gradient of pixels outside.
    return distance(restore(reblurred.clamp(0, 1)), sharp, **options)


class CycleLoss(LossModule):
    """Module form of :func:`cycle_loss`."""

    def __init__(
        self,
        *,
        restore: Callable[[Tensor], Tensor],
        distance: Callable[..., Tensor] = F.l1_loss,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(restore=restore, distance=distance, reduction=reduction)

    def forward(self, reblurred: Tensor, sharp: Tensor) -> Tensor:
        """Return the loss of a reblurred image."""
        return cycle_loss(reblurred, sharp, **self.settings)
