"""Which part of a large frame adaptation looks at."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tta_restore import _checks
from tta_restore.models import SizeRequirements


@dataclass(frozen=True)
class CentreCrop:
    """The middle of frames that are larger than ``above``; smaller frames whole.

    Attributes:
        size: sides of the crop in pixels; a shorter frame gives its whole side. Sides are rounded down to what the
            model takes without padding, never below one such multiple.
        above: (height, width); a frame is large when either side exceeds its number. None: when larger than ``size``.
    """

    size: int
    above: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _checks.expect_int("CentreCrop", "size", self.size, minimum=1)

    def __call__(self, image: Tensor, requirements: SizeRequirements) -> Tensor:
        """The crop of (..., H, W), or the frame itself."""
        height, width = image.shape[-2:]
        limit = self.above or (self.size, self.size)
        if height <= limit[0] and width <= limit[1]:
            return image
        sides = [self._side(side, requirements) for side in (height, width)]
        top, left = (height - sides[0]) // 2, (width - sides[1]) // 2
        return image[..., top : top + sides[0], left : left + sides[1]]

    def _side(self, side: int, requirements: SizeRequirements) -> int:
        least = max(requirements.minimum, requirements.multiple_of)
        cropped = min(side, self.size) // requirements.multiple_of * requirements.multiple_of
        return min(side, max(cropped, least))


RELEASED_REGION = CentreCrop(1120, above=(1680, 1150))
"""The rule of the released SiamCTTA, with crops that never leave the frame."""
