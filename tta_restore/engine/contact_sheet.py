"""Several pictures as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_GAP = 4


def contact_sheet(tiles: Sequence[Tensor], *, columns: int) -> Tensor:
    """Lay pictures of one size out in rows, on white.

    Shape: each (3, H, W) or (1, H, W) in [0, 1] -> (3, R * (H + 4) - 4, columns * (W + 4) - 4), on the CPU.
    """
    height, width = tiles[0].shape[-2:]
    rows = -(-len(tiles) // columns)
    canvas = torch.ones(3, rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + _GAP), i % columns * (width + _GAP)
        canvas[:, top : top + height, left : left + width] = tile.detach().float().cpu().clamp(0, 1)
    return canvas
