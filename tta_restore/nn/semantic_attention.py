"""Cross-attention from features to a description of what the picture shows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .. import _checks


class SemanticCrossAttention(nn.Module):
    """Adds to features what they read in a context: ``x + scale * attention(x, context)``.

    With one context vector per image the softmax has one entry and is 1, whatever the features are, so that the layer
    is a shift per channel: it is computed as one, without attention, at a cost that does not grow with the image beyond
    the addition. The query and key weights then get no gradient. From two tokens on, the shift differs from place to
    place.

    Args:
        dim: C of the features.
        context_dim: D of the context.
        num_heads: heads of the attention.
        head_dim: width of a head; by default ``dim / num_heads``, at least 1.
        scale: of what is added.
        zero_init: start as the identity, by an output projection of zeros.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - x: (B, C, H, W) or (B, L, C)
        - context: (B, D), or (B, S, D) with S tokens
        - output: as x

    Source: CauSiam (arXiv 2501.09052), fusion at the first decoder stage; zero_init is ours.

    >>> layer = SemanticCrossAttention(16, 12, num_heads=2)
    >>> layer(torch.rand(1, 16, 4, 5), torch.rand(1, 12)).shape
    torch.Size([1, 16, 4, 5])
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        *,
        num_heads: int = 8,
        head_dim: int | None = None,
        scale: float = 0.05,
        zero_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        head_dim = max(1, dim // num_heads) if head_dim is None else head_dim
        for name, value in (("dim", dim), ("context_dim", context_dim), ("num_heads", num_heads)):
            _checks.expect_int("SemanticCrossAttention", name, value, minimum=1)
        _checks.expect_int("SemanticCrossAttention", "head_dim", head_dim, minimum=1)
        self.dim, self.context_dim, self.num_heads, self.head_dim = dim, context_dim, num_heads, head_dim
        self.scale, self.zero_init = scale, zero_init
        inner = num_heads * head_dim
        self.to_q = nn.Linear(dim, inner, bias=False, device=device, dtype=dtype)
        self.to_k = nn.Linear(context_dim, inner, bias=False, device=device, dtype=dtype)
        self.to_v = nn.Linear(context_dim, inner, bias=False, device=device, dtype=dtype)
        self.to_out = nn.Linear(inner, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start again, as the identity if so built."""
        for layer in (self.to_q, self.to_k, self.to_v, self.to_out):
            layer.reset_parameters()
        if self.zero_init:
            nn.init.zeros_(self.to_out.weight)
            nn.init.zeros_(self.to_out.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Features (B, C, H, W) or (B, L, C), changed as ``context`` (B, D) or (B, S, D) says."""
        _checks.expect_floating("SemanticCrossAttention", x=x, context=context)
        channels = 1 if x.ndim == 4 else -1
        if x.ndim not in (3, 4) or x.shape[channels] != self.dim:
            raise ValueError(
                f"SemanticCrossAttention: expected x (B, C, H, W) or (B, L, C) with C = {self.dim}, "
                f"got {tuple(x.shape)}"
            )
        if context.ndim not in (2, 3) or context.shape[-1] != self.context_dim or context.shape[0] != x.shape[0]:
            raise ValueError(
                f"SemanticCrossAttention: expected context (B, D) or (B, S, D) with B = {x.shape[0]}, "
                f"D = {self.context_dim}, got {tuple(context.shape)}"
            )
        context = context.to(x.dtype)
        if context.ndim == 2 or context.shape[1] == 1:
            shift = self.scale * self.to_out(self.to_v(context.flatten(1)))
            return x + (shift[:, :, None, None] if x.ndim == 4 else shift[:, None]).to(x.dtype)
        tokens = rearrange(x, "b c h w -> b (h w) c") if x.ndim == 4 else x
        q, k, v = (
            rearrange(part, "b s (heads d) -> b heads s d", heads=self.num_heads)
            for part in (self.to_q(tokens), self.to_k(context), self.to_v(context))
        )
        read = self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads s d -> b s (heads d)"))
        if x.ndim == 4:
            read = rearrange(read, "b (h w) c -> b c h w", h=x.shape[2])
        return x + (self.scale * read).to(x.dtype)

    def extra_repr(self) -> str:
        """Show what the layer was built with."""
        return (
            f"{self.dim}, {self.context_dim}, num_heads={self.num_heads}, head_dim={self.head_dim}, "
            f"scale={self.scale}, zero_init={self.zero_init}"
        )
