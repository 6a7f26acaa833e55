"""Cycle loss: what was reblurred can be restored again."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore import _checks


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
    _checks.expect_floating("cycle", reblurred=reblurred, sharp=sharp)
    _checks.expect_shape("cycle", "sharp", sharp, "reblurred.shape", tuple(reblurred.shape))
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
