"""Give a model a description of what the frame shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore import _checks
from tta_restore.adapters.injection import CONTEXT, Injection
from tta_restore.adapters.sites import find_site
from tta_restore.models import Restorer
from tta_restore.nn import SemanticCrossAttention


class Semantic(nn.Module):
    """Tells a model what the frame shows: a context, read from the source's restoration.

    Either by cross-attention behind modules of the model, ``Semantic(encoder, at="decoder.0")``, or, where the model
    takes a context, by keyword, ``Semantic(encoder, argument="context")``. Injected layers start as the identity. They
    live in hooks that exist only while the adapter runs the model.

    Args:
        encoder: from images (B, 3, H, W) in [0, 1] to a context (B, D) or (B, S, D), such as
            :class:`tta_restore.nn.OpenClipEncoder`. A module is run in eval mode and never trained.
        at: path of the module behind which to inject, or several; "auto" for the deepest wide one, which ``plan()``
            shows.
        argument: keyword by which the model takes the context.
        every: frames for which one context serves; 1 reads a new one for each.
        num_heads: heads of the cross-attention.
        scale: of what it adds.
        zero_init: whether it starts as the identity; False for random weights.
        seed: of its weights.

    Raises:
        ValueError: neither or both of ``at`` and ``argument`` are given, or ``argument`` cannot be a keyword.
        TypeError: ``encoder`` cannot be called.

    Source: CauSiam (arXiv 2501.09052), semantic prior by cross-attention.
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Tensor],
        at: str | Sequence[str] | None = None,
        *,
        argument: str | None = None,
        every: int = 1,
        num_heads: int = 8,
        scale: float = 0.05,
        zero_init: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not callable(encoder):
            raise TypeError(f"Semantic: expected encoder to be callable, got {type(encoder).__name__}")
        if (at is None) == (argument is None):
            raise ValueError("Semantic: expected either at=<module path> or argument=<keyword of the model>")
        if argument is not None and not argument.isidentifier():
            raise ValueError(f"Semantic: expected argument to be the name of a keyword, got {argument!r}")
        _checks.expect_int("Semantic", "every", every, minimum=1)
        self.encoder, self.argument, self.every = encoder, argument, every
        self.at = None if at is None else (at,) if isinstance(at, str) else tuple(at)
        self.num_heads, self.scale, self.zero_init, self.seed = num_heads, scale, zero_init, seed

    def forward(self, restored: Tensor) -> Tensor:
        """Context of a source restoration (B, C, H, W), or of a clip's (B, T, C, H, W) middle frame."""
        if restored.ndim == 5:
            restored = restored[:, restored.shape[1] // 2]
        return self.encoder(restored.clamp(0, 1)).detach()

    def keywords(self, context: Tensor) -> dict[str, Any]:
        """Keywords for ``run`` and ``ensemble``."""
        return {self.argument or CONTEXT: context}

    def injection(self, restorer: Restorer) -> Injection | None:
        """The layers to inject into ``restorer``, after one run of it and of the encoder; None for ``argument=``."""
        if self.at is None:
            return None
        sites = [find_site(restorer, path) for path in self.at]
        with torch.inference_mode(False), torch.no_grad():
            width = self(sites[0].restored).shape[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            layers = [
                SemanticCrossAttention(
                    site.channels, width, num_heads=self.num_heads, scale=self.scale, zero_init=self.zero_init
                ).to(site.device, site.dtype)
                for site in sites
            ]
        return Injection(sites, layers)

    def extra_repr(self) -> str:
        """Show where the context goes."""
        where = f"argument={self.argument!r}" if self.at is None else f"at={self.at!r}"
        return f"{where}, every={self.every}"
