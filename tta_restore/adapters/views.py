"""Views of a frame and the way back: groups of flips and quarter turns, or custom pairs of functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

View = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
Views = str | Sequence[View]


def _turned(x: Tensor, quarters: int, flip: bool) -> Tensor:
    """Flip left to right if asked, then turn counter-clockwise."""
    x = x.flip(-1) if flip else x
    return torch.rot90(x, quarters, (-2, -1)) if quarters else x


def _turned_back(x: Tensor, quarters: int, flip: bool) -> Tensor:
    x = torch.rot90(x, -quarters, (-2, -1)) if quarters else x
    return x.flip(-1) if flip else x


def _view(quarters: int = 0, flip: bool = False) -> View:
    return partial(_turned, quarters=quarters, flip=flip), partial(_turned_back, quarters=quarters, flip=flip)


NAMED: dict[str, tuple[View, ...]] = {
    "identity": (_view(),),
    "rot4": tuple(_view(k) for k in range(4)),
    "rot4_flip": (*(_view(k) for k in range(4)), _view(0, flip=True)),
    "d4": tuple(_view(k, flip) for flip in (False, True) for k in range(4)),
}


def resolve_views(views: Views) -> tuple[View, ...]:
    """Return pairs (view, way back) of a named group, or of a sequence of such pairs.

    Groups, identity first: ``"identity"``, ``"rot4"`` (quarter turns, counter-clockwise), ``"rot4_flip"`` (and one
    flip left to right), ``"d4"`` (quarter turns with and without that flip). A view takes a frame (..., H, W); its way
    back takes the restored image, which may be larger by the model's scale. The way back may lose nothing of the
    image: flips and turns keep every pixel.

    Raises:
        ValueError: the group is unknown, or there is no view.
        TypeError: an entry is no pair of functions.
    """
    if isinstance(views, str):
        if views not in NAMED:
            raise ValueError(f"views: expected one of {', '.join(NAMED)} or a list of (view, way back), got {views!r}")
        return NAMED[views]
    pairs = tuple(views)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(callable(side) for side in pair):
            raise TypeError(f"views: expected pairs of functions (view, way back), got {pair!r}")
    if not pairs:
        raise ValueError("views: expected at least one view, got none")
    return tuple((there, back) for there, back in pairs)
