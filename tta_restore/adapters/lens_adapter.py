"""What methods share that read the lens of a frame."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore.adapters.base import Adapter
from tta_restore.adapters.frame import Frame
from tta_restore.adapters.frame_blur import seeds_of
from tta_restore.models import create_model
from tta_restore.models.lens_estimator import LensEstimate

SMALLEST = 32  # side in pixels that the estimator can read


class LensAdapter(Adapter):
    """An adapter of still frames at scale 1 that carries a lens estimator, which it does not train.

    Args:
        model: a restorer of single frames at scale 1; see :class:`Adapter`, as for ``options``.
        estimator: reads lenses as :class:`tta_restore.models.lens_estimator.LensEstimator` does; None: the shipped one.
    """

    def __init__(self, model: Any, estimator: nn.Module | None = None, **options: Any) -> None:
        super().__init__(model, **options)
        if estimator is None:
            estimator = create_model("lens_estimator", checkpoint="lens_estimator")
        self.estimator: Any = estimator

    def begin_frame(self, frame: Frame) -> None:
        """Refuse what has no lens to read or another size than its restoration."""
        if frame.image.ndim != 4 or frame.image.shape[1] not in (1, 3):
            raise ValueError(
                f"{type(self).__name__}: expected frames (B, C, H, W) with C of 1 or 3, got {tuple(frame.image.shape)}"
            )
        if (scale := self.restorer.known_spec(frame.image).scale) != 1:
            raise ValueError(f"{type(self).__name__}: expected a model of scale 1, got scale {scale}")

    def read_lens(self, x: Tensor) -> LensEstimate:
        """The estimate of (B, C, H, W) with C of 1 or 3, smaller frames continued at their border."""
        device = self._estimator_device()
        short = [max(SMALLEST - side, 0) for side in x.shape[-2:]]
        padded = F.pad(x.float().to(device), (0, short[1], 0, short[0]), mode="replicate")
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self.estimator(padded.expand(-1, 3, -1, -1))

    def blur_map(self, x: Tensor) -> Tensor:
        """Seeds of the isotropic kernels that the estimator reads from a frame; nothing changes.

        Shape:
            - x: (B, C, H, W), RGB in [0, 1]
            - output: (B, (K+1)/2, H, W), for :func:`tta_restore.ops.isotropic_kernels` with K = 17
        """
        height, width = x.shape[-2:]
        covered = max(height, SMALLEST), max(width, SMALLEST)
        return seeds_of(self.estimator, self.read_lens(x), covered=covered, size=(height, width)).to(x.device)

    def _estimator_device(self) -> torch.device:
        return next(self.estimator.parameters()).device
