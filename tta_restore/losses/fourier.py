"""Loss of the spectrum: what differs at each frequency counts alike."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tta_restore import _checks


def l1_fourier(
    restored: Tensor, target: Tensor, *, fourier_weight: float = 0.1, axes: Literal["width", "both"] = "both"
) -> Tensor:
    """Mean absolute difference of two pictures, plus ``fourier_weight`` times that of their Fourier coefficients.

    Args:
        restored: gets the gradient.
        target: what it is to be.
        fourier_weight: of the second term; coefficients are complex, not normalised.
        axes: transformed: "both", as MIMO-UNet does, or "width", as Meta Transferring does with MIMO-UNet.

    Shape: restored, target (B, C, H, W) in [0, 1] -> scalar.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: the shapes differ, or ``axes`` is unknown.

    Source: Cho et al., Rethinking coarse-to-fine approach in single image deblurring, ICCV 2021 (MIMO-UNet).
    """
    _checks.expect_floating("l1_fourier", restored=restored, target=target)
    _checks.expect_shape("l1_fourier", "restored", restored, "(B, C, H, W)")
    _checks.expect_shape("l1_fourier", "target", target, "restored.shape", tuple(restored.shape))
    _checks.expect_choice("l1_fourier", "axes", axes, ("width", "both"))
    if restored.dtype.itemsize < 4:
        restored, target = restored.float(), target.float()
    difference = restored - target
    spectrum = torch.fft.fft(difference) if axes == "width" else torch.fft.fft2(difference)
    return difference.abs().mean() + fourier_weight * spectrum.abs().mean()


class L1Fourier(nn.Module):
    """Module of :func:`l1_fourier`."""

    def __init__(self, *, fourier_weight: float = 0.1, axes: Literal["width", "both"] = "both") -> None:
        super().__init__()
        self.fourier_weight = fourier_weight
        self.axes: Literal["width", "both"] = axes

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """Loss of a restored picture."""
        return l1_fourier(restored, target, fourier_weight=self.fourier_weight, axes=self.axes)

    def extra_repr(self) -> str:
        """Arguments shown by repr."""
        return f"fourier_weight={self.fourier_weight}, axes={self.axes!r}"
