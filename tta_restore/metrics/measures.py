"""Everything that is measured of one image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tta_restore.metrics.image import mae, psnr, ssim
from tta_restore.metrics.protocol import Protocol

_DEFAULT = Protocol()


@dataclass(frozen=True)
class Measures:
    """The measures that a record has, each under its protocol.

    Args:
        psnr: protocol of PSNR and MAE.
        ssim: protocol of SSIM.
        lpips: :class:`tta_restore.metrics.Lpips`, or another distance; None leaves it out.
    """

    psnr: Protocol = _DEFAULT
    ssim: Protocol = _DEFAULT
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, restored: Tensor, target: Tensor) -> dict[str, float]:
        """Name -> value of one image. Shape: (1, 3, H, W) in [0, 1], both."""
        values = {
            "psnr": psnr(restored, target, protocol=self.psnr),
            "ssim": ssim(restored, target, protocol=self.ssim),
            "mae": mae(restored, target, protocol=self.psnr),
        }
        if self.lpips is not None:
            values["lpips"] = self.lpips(restored, target)
        return {name: float(value) for name, value in values.items()}

    def as_dict(self) -> dict[str, Any]:
        """The settings, to be stored beside the numbers."""
        lpips = None if self.lpips is None else type(self.lpips).__name__
        return {"psnr": self.psnr.as_dict(), "ssim": self.ssim.as_dict(), "lpips": lpips}
