"""Give a model a description of what the frame shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Semantic(nn.Module):
    """Passes a context, read from the source's restoration, to a model that takes one.

    Attributes:
        encoder: from images (B, 3, H, W) in [0, 1] to a context, such as (B, D) or (B, S, D). A module is run in eval
            mode and never trained.
        argument: keyword by which the model takes the context.
    """

    def __init__(self, encoder: Callable[[Tensor], Tensor], *, argument: str) -> None:
        super().__init__()
        if not callable(encoder):
            raise TypeError(f"Semantic: expected encoder to be callable, got {type(encoder).__name__}")
        if not argument.isidentifier():
            raise ValueError(f"Semantic: expected argument to be the name of a keyword, got {argument!r}")
        self.encoder = encoder
        self.argument = argument

    def forward(self, restored: Tensor) -> dict[str, Any]:
        """Keywords for the model, from the source's restoration, which is clamped to [0, 1] first."""
        return {self.argument: self.encoder(restored.clamp(0, 1))}
