"""ReblurPairs: DegradationPairs for lenses."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore.adapters.methods.degradation_pairs import DegradationPairs
from tta_restore.degradations import Estimator
from tta_restore.degradations.lens import KERNEL_SIZE
from tta_restore.models.defocus.estimator import DefocusEstimator
from tta_restore.models.defocus.pupil import rasterize_pupil

__all__ = ["ReblurPairs"]


class ReblurPairs(DegradationPairs, method="reblur_pairs"):
    """Fine-tunes a restorer of defocus on pairs blurred with the point spread function (PSF) of the frames' lens.

    :class:`DegradationPairs` with the task ``"defocus"``, for which nothing has to be measured on the model, and with
    the estimated lens at hand: :meth:`aperture` and :meth:`kernels`.

    Args:
        model: a restorer of single frames at scale 1 with 1 or 3 channels.
        estimator: a :class:`tta_restore.degradations.Estimator`, or a ``DefocusEstimator`` to use in one; the shipped
            ones by default.
        options: options of :class:`DegradationPairs`.

    Raises:
        ValueError: a setting is out of range; the model enlarges, or takes clips or other than 1 or 3 channels.
    """

    keeps_size: ClassVar[bool] = True

    def __init__(self, model: Any, estimator: nn.Module | None = None, **options: Any) -> None:
        if isinstance(estimator, DefocusEstimator):
            estimator = Estimator(defocus=estimator)
        options.setdefault("task", "defocus")
        super().__init__(model, estimator, **options)

    def aperture(self) -> Tensor:
        """Return the pupil function that is most likely now: (A, A) at unit root mean square radius, summing to 1.

        Raises:
            ValueError: no frame was seen yet.
        """
        if self.reading is None:
            raise ValueError(f"{type(self).__name__}.aperture: no frame was seen yet")
        return self.reading.pupils[0]

    def kernels(self, x: Tensor, *, grid: int = 4) -> Tensor:
        """Return the estimated PSFs of a frame at a grid of tiles, for display; the state does not change.

        Shape:
            - x: (B, C, H, W), RGB in [0, 1]
            - output: (B, G, G, K, K) with G = `grid`, each summing to 1
        """
        defocus = self.estimator.defocus
        short = [max(32 - side, 0) for side in x.shape[-2:]]
        device = next(defocus.parameters()).device
        padded = F.pad(x.float().to(device), (0, short[1], 0, short[0]), mode="replicate").expand(-1, 3, -1, -1)
        with torch.no_grad():
            estimate = defocus(padded)
            picture = self.aperture() if self.reading is not None else self.estimator.read(x).pupils[0]
            logs = F.interpolate((estimate.radius.log() * estimate.confidence)[:, None], size=(grid, grid), mode="area")
            weights = F.interpolate(estimate.confidence[:, None], size=(grid, grid), mode="area")
        radius = (logs / weights).exp().flatten().cpu()
        kernels = rasterize_pupil(picture, radius, size=KERNEL_SIZE, reach=defocus.reach)
        return kernels.view(len(x), grid, grid, *kernels.shape[-2:])
