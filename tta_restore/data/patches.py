"""Random patches of a stack of pictures."""

from __future__ import annotations

import torch
from torch import Tensor


def random_patches(pictures: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Crops at random places of random pictures, turned by quarter turns and flipped at random.

    Shape:
        - pictures: (N, C, S, S), uint8, or floating point in [0, 1]
        - output: (count, C, size, size) in [0, 1]

    Raises:
        ValueError: the pictures are smaller than a patch, or there are none.
    """
    room = pictures.shape[-1] - size + 1
    if pictures.ndim != 4 or min(pictures.shape[-2:]) < size or len(pictures) == 0:
        raise ValueError(
            f"random_patches: expected pictures (N, C, S, S) with S >= {size}, got {tuple(pictures.shape)}"
        )
    rows = pictures.shape[-2] - size + 1
    patches = []
    for index in torch.randint(0, len(pictures), (count,), generator=generator).tolist():
        top, left, turns, flip = (int(torch.randint(0, n, (), generator=generator)) for n in (rows, room, 4, 2))
        patch = pictures[index, :, top : top + size, left : left + size].rot90(turns, (1, 2))
        patches.append(patch.flip(2) if flip else patch)
    stack = torch.stack(patches)
    return stack.float() / 255 if stack.dtype == torch.uint8 else stack.float()
