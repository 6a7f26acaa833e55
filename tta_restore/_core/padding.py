"""Padding of the last two axes by torch's modes, and its adjoint: both differentiable to any order, without indices."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tta_restore._core import checks

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def expect_padding(function: str, padding_mode: str, margin: int, name: str, sizes: tuple[int, int]) -> None:
    """Raise ValueError for an unknown mode, or a margin that the frame cannot fill."""
    checks.expect_choice(function, "padding_mode", padding_mode, PADDING_MODES)
    least = {"reflect": margin + 1, "circular": margin}.get(padding_mode, 1)
    if min(sizes) < least:
        raise ValueError(
            f"{function}: expected {name} with H and W at least {least} for padding_mode {padding_mode!r} and a margin "
            f"of {margin} pixels, got H, W = {sizes[0]}, {sizes[1]}"
        )


def pad(x: Tensor, margin: int, padding_mode: str) -> Tensor:
    """(B, C, H, W) -> (B, C, H + 2 * margin, W + 2 * margin)."""
    if margin == 0:
        return x
    mode = "constant" if padding_mode == "zeros" else padding_mode
    return F.pad(x, (margin,) * 4, mode=mode)


def fold(y: Tensor, margin: int, padding_mode: str) -> Tensor:
    """Adjoint of :func:`pad`: add what lies in the margin to the pixels that the margin was filled from."""
    if margin == 0:
        return y
    return _fold_columns(_fold_columns(y, margin, padding_mode).mT, margin, padding_mode).mT


def _fold_columns(y: Tensor, margin: int, padding_mode: str) -> Tensor:
    size = y.shape[-1] - 2 * margin
    low, inside, high = y.split((margin, size, margin), -1)
    if padding_mode == "zeros":
        return inside
    if padding_mode == "replicate":
        low, high = low.sum(-1, keepdim=True), high.sum(-1, keepdim=True)
        places = 0, size - 1
    elif padding_mode == "reflect":
        low, high = low.flip(-1), high.flip(-1)
        places = 1, size - 1 - margin
    else:  # circular
        places = size - margin, 0
    for part, first in zip((low, high), places, strict=True):
        inside = inside + F.pad(part, (first, size - first - part.shape[-1]))
    return inside
