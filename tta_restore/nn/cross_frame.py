"""Attention across the windows of a frame, the frames of a clip, and the pixels of a window."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tta_restore._core import checks

__all__ = ["CrossFrameAttention", "CrossFrameFusionBlock", "relative_position_index"]

Variant = Literal["ours", "official"]


def relative_position_index(height: int, width: int) -> Tensor:
    """Return the index of the offset between every pair of pixels of a window: (H*W, H*W), int64, (query, key).

    The offset (y, x) has the index ``(y + H - 1) * (2 W - 1) + x + W - 1``.
    """
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    down, right = rows[:, None] - rows, columns[:, None] - columns
    return (down + height - 1) * (2 * width - 1) + right + width - 1


class _WindowAttention(nn.Module):
    """Self-attention of tokens with an optional relative position bias between the pixels of a window."""

    def __init__(self, dim: int, num_heads: int, window_size: int, **factory: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        table = torch.empty((2 * window_size - 1) ** 2, num_heads, **factory)
        self.relative_position_bias_table = nn.Parameter(table)
        index = relative_position_index(window_size, window_size)
        self.register_buffer("relative_position_index_patch", index.to(table.device))
        self.qkv = nn.Linear(dim, 3 * dim, **factory)
        self.proj = nn.Linear(dim, dim, **factory)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, *, first: int | None = None) -> Tensor:
        """Return the attention of the ``first`` tokens, by default all, to all tokens.

        Shape: tokens (N, S, D), additive mask (1 or N, heads, S, S) -> (N, first, D).
        """
        apart = "n s (kinds heads d) -> kinds n heads s d"
        if first is None:
            q, k, v = rearrange(self.qkv(tokens), apart, kinds=3, heads=self.num_heads)
        else:
            weight, bias, dim = self.qkv.weight, self.qkv.bias, tokens.shape[-1]
            (q,) = rearrange(
                F.linear(tokens[:, :first], weight[:dim], bias[:dim]), apart, kinds=1, heads=self.num_heads
            )
            k, v = rearrange(F.linear(tokens, weight[dim:], bias[dim:]), apart, kinds=2, heads=self.num_heads)
        mask = None if mask is None else mask[..., :first, :].to(q.dtype)
        return self.proj(rearrange(_attend(q, k, v, mask), "n heads s d -> n s (heads d)"))

    def bias(self) -> Tensor:
        """Return the bias of a regional token (zero) followed by its pixels: (1, heads, 1 + r*r, 1 + r*r)."""
        pixels = self.relative_position_bias_table[self.relative_position_index_patch]
        # scaled_dot_product_attention takes its fast path only for masks with a batch axis.
        return F.pad(pixels.permute(2, 0, 1), (1, 0, 1, 0))[None]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention; explicit on a CPU with a trainable mask, for which torch has no fast kernel."""
    if mask is not None and mask.requires_grad and mask.device.type == "cpu":
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
        return scores.add_(mask).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class CrossFrameAttention(nn.Module):
    """Attention from the tokens of the center frame to those of every frame; other frames pass unchanged.

    ``out_c = x_c + W concat_t(softmax(q_c k_t^T / sqrt(d)) v_t)`` over all T frames, the center one c included, with a
    softmax for each frame; ``out_t = x_t`` elsewhere.

    Args:
        dim: width D of the tokens.
        num_heads: number of attention heads.
        num_frames: odd number T of frames.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape: x (B*T, S, D), the frames of a sample adjacent -> (B*T, S, D).

    Raises:
        ValueError: The tokens have another width, or their number is not a multiple of T.

    Source: Liu et al., Meta transferring for deblurring, BMVC 2022, as in the official code.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_frames: int = 5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_heads("CrossFrameAttention", dim, num_heads)
        checks.expect_int("CrossFrameAttention", "num_frames", num_frames, minimum=1, odd=True)
        self.dim, self.num_heads, self.num_frames = dim, num_heads, num_frames
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.kv = nn.Linear(dim, 2 * dim, **factory)
        self.q = nn.Linear(dim, dim, **factory)
        self.proj = nn.Linear(num_frames * dim, dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens of all frames, those of the center frame updated."""
        _check_tokens("CrossFrameAttention", "x", x, self.dim, self.num_frames)
        frames = rearrange(x, "(b t) s d -> b t s d", t=self.num_frames)
        middle = self.num_frames // 2
        q = rearrange(self.q(frames[:, middle]), "b s (heads d) -> b 1 heads s d", heads=self.num_heads)
        k, v = rearrange(self.kv(frames), "b t s (kinds heads d) -> kinds b t heads s d", kinds=2, heads=self.num_heads)
        # One softmax per frame; q is expanded over the frames without a copy.
        read = F.scaled_dot_product_attention(q.expand_as(k), k, v)
        read = self.proj(rearrange(read, "b t heads s d -> b s (t heads d)"))
        parts = [frames[:, :middle], (frames[:, middle] + read)[:, None], frames[:, middle + 1 :]]
        return torch.cat(parts, 1).flatten(0, 1)

    def extra_repr(self) -> str:
        """Return the arguments that ``repr`` shows."""
        return f"{self.dim}, num_heads={self.num_heads}, num_frames={self.num_frames}"


class CrossFrameFusionBlock(nn.Module):
    """Transformer block that fuses the frames of a clip through one regional token per window.

    A frame has one *regional* token per window of r x r pixels and one *local* token per pixel. The block has four
    steps, each after a LayerNorm:

    1. self-attention of the regional tokens of a frame;
    2. :class:`CrossFrameAttention` of the regional tokens of the center frame to those of all frames, after which, as
       published, the normalized tokens continue without a residual;
    3. self-attention of the pixels of a window and its regional token, with the weights of step 1;
    4. an MLP.

    Frames that windows do not divide are padded with masked pixels.

    Args:
        dim: width D of the tokens.
        num_heads: number of heads of each attention.
        window_size: side r of a window in pixels.
        num_frames: odd number T of frames.
        mlp_ratio: hidden width of the MLP relative to D.
        variant: regional token of a window in step 3. "ours" uses the window's own token. "official" pairs windows in
            frame-major order with tokens in window-major order, which mixes positions, frames and samples; use it to
            reproduce the official weights.
        drop_path: stochastic depth rate of the residual branches in train mode.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - regional: (B*T, ceil(H/r) * ceil(W/r), D), windows in row-major order, the frames of a sample adjacent
        - local: (B*T, H*W, D), pixels in row-major order
        - size: (H, W)
        - output: regional and local tokens in the shapes of the inputs

    Raises:
        ValueError: Tokens and ``size`` do not match.

    Source: Liu et al., Meta transferring for deblurring, BMVC 2022, after Chen et al., RegionViT, ICLR 2022; official
    weights load. In train mode the official code may drop all regional tokens of a frame; here step 2 is never dropped.

    >>> block = CrossFrameFusionBlock(16, 2, window_size=4)
    >>> regional, local = block(torch.rand(5, 4, 16), torch.rand(5, 48, 16), (8, 6))
    >>> regional.shape, local.shape
    (torch.Size([5, 4, 16]), torch.Size([5, 48, 16]))
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int = 8,
        num_frames: int = 5,
        mlp_ratio: float = 4.0,
        variant: Variant = "ours",
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = "CrossFrameFusionBlock"
        _check_heads(name, dim, num_heads)
        checks.expect_int(name, "window_size", window_size, minimum=1)
        checks.expect_int(name, "num_frames", num_frames, minimum=1, odd=True)
        checks.expect_choice(name, "variant", variant, ("ours", "official"))
        checks.expect_number(name, "mlp_ratio", mlp_ratio, above=0)
        checks.expect_number(name, "drop_path", drop_path, minimum=0, below=1)
        self.dim, self.num_heads, self.window_size, self.num_frames = dim, num_heads, window_size, num_frames
        self.mlp_ratio = mlp_ratio
        self.variant: Variant = variant
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        # Official names: norm1 precedes the regional, norm4 the cross-frame, norm2 the local attention, norm3 the MLP;
        # one attention serves regional and local tokens.
        self.norm1 = nn.LayerNorm(dim, **factory)
        self.attn = _WindowAttention(dim, num_heads, window_size, **factory)
        self.cross_attn = CrossFrameAttention(dim, num_heads, num_frames=num_frames, **factory)
        self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim, **factory) for _ in range(3))
        self.mlp = nn.ModuleDict(
            {
                "fc1": nn.Linear(dim, int(dim * mlp_ratio), **factory),
                "fc2": nn.Linear(int(dim * mlp_ratio), dim, **factory),
            }
        )
        self.drop_path: nn.Module = nn.Identity()
        if drop_path:
            from timm.layers import DropPath  # slow to import, and few networks need it

            self.drop_path = DropPath(drop_path)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw truncated normal weights of standard deviation 0.02 and set biases to zero."""
        nn.init.trunc_normal_(self.attn.relative_position_bias_table, std=0.02)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, regional: Tensor, local: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the regional and local tokens of all frames."""
        self._check(regional, local, size)
        groups = self._within_windows(self._groups(self._across_frames(regional), local, size), size)
        return self._in_frame_order(groups[:, 0], regional), self._pixels(groups[:, 1:], size)

    def last_but_one(self, regional: Tensor, local: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the regional tokens of all frames and the local tokens of the center frame of each sample.

        The results equal those of :meth:`forward`. They suffice before :meth:`middle_frame` of the next block, if only
        the center frame is needed.
        """
        self._check(regional, local, size)
        groups = self._groups(self._across_frames(regional), local, size)
        tokens = self._within_windows(groups, size, first=1)[:, 0]
        middle = self._middle(groups.unflatten(0, (len(regional), -1)))
        return self._in_frame_order(tokens, regional), self._pixels(self._within_windows(middle, size)[:, 1:], size)

    def middle_frame(self, regional: Tensor, local: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the local tokens of the center frame: (B*T, nW, D), (B, H*W, D) -> (B, H*W, D)."""
        self._check(regional, local, size, num_frames=1)
        tokens = self._in_window_order(self._across_frames(regional)).unflatten(0, regional.shape[:2])
        # The regional token of a window precedes its pixels.
        groups = torch.cat([self._middle(tokens)[:, None], self._windows(local, size)], 1)
        return self._pixels(self._within_windows(groups, size)[:, 1:], size)

    def extra_repr(self) -> str:
        """Return the arguments that ``repr`` shows."""
        return (
            f"{self.dim}, num_heads={self.num_heads}, window_size={self.window_size}, num_frames={self.num_frames}, "
            f"mlp_ratio={self.mlp_ratio}, variant={self.variant!r}"
        )

    def _across_frames(self, regional: Tensor) -> Tensor:
        regional = regional + self.drop_path(self.attn(self.norm1(regional)))
        return self.cross_attn(self.norm4(regional))

    def _within_windows(self, groups: Tensor, size: tuple[int, int], *, first: int | None = None) -> Tensor:
        """Return the ``first`` tokens of groups (N, 1 + r*r, D) of a regional token and its pixels."""
        bias, outside = self.attn.bias(), self._outside(size, groups.device)
        if outside is not None:
            # One bias per window of a frame: (windows, 1, 1, 1 + r*r) masks (1, heads, 1 + r*r, 1 + r*r).
            bias = bias.masked_fill(outside[:, None, None], float("-inf")).repeat(len(groups) // len(outside), 1, 1, 1)
        groups = groups[:, :first] + self.drop_path(self.attn(self.norm2(groups), bias, first=first))
        hidden = F.gelu(self.mlp["fc1"](self.norm3(groups)))
        return groups + self.drop_path(self.mlp["fc2"](hidden))

    def _groups(self, regional: Tensor, local: Tensor, size: tuple[int, int]) -> Tensor:
        return torch.cat([self._in_window_order(regional)[:, None], self._windows(local, size)], 1)

    def _middle(self, x: Tensor) -> Tensor:
        """Select the center frames: (B*T, nW, ...) -> (B*nW, ...)."""
        return x.unflatten(0, (-1, self.num_frames))[:, self.num_frames // 2].flatten(0, 1)

    def _in_frame_order(self, tokens: Tensor, like: Tensor) -> Tensor:
        """Invert :meth:`_in_window_order`."""
        frames, windows = like.shape[:2]
        if self.variant == "ours":
            return tokens.unflatten(0, (frames, windows))
        return tokens.unflatten(0, (windows, frames)).transpose(0, 1)

    def _in_window_order(self, regional: Tensor) -> Tensor:
        """Return the regional token paired with each window: (B*T, nW, D) -> (B*T*nW, D)."""
        return (regional if self.variant == "ours" else regional.transpose(0, 1)).flatten(0, 1)

    def _windows(self, local: Tensor, size: tuple[int, int]) -> Tensor:
        """Partition pixels into windows, zero-padded: (N, H*W, D) -> (N*nW, r*r, D)."""
        r, (rows, columns) = self.window_size, self._grid(size)
        pixels = F.pad(local.unflatten(1, size), (0, 0, 0, columns * r - size[1], 0, rows * r - size[0]))
        return rearrange(pixels, "n (rows y) (columns x) d -> (n rows columns) (y x) d", y=r, x=r)

    def _pixels(self, windows: Tensor, size: tuple[int, int]) -> Tensor:
        """Invert :meth:`_windows` and crop the padding: (N*nW, r*r, D) -> (N, H*W, D)."""
        r, (rows, columns) = self.window_size, self._grid(size)
        sides = {"rows": rows, "columns": columns, "y": r, "x": r}
        pixels = rearrange(windows, "(n rows columns) (y x) d -> n (rows y) (columns x) d", **sides)
        return pixels[:, : size[0], : size[1]].flatten(1, 2)

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return -(-size[0] // self.window_size), -(-size[1] // self.window_size)

    def _outside(self, size: tuple[int, int], device: torch.device) -> Tensor | None:
        """Return a mask of the padded keys of each window, (nW, 1 + r*r), or None without padding."""
        r, (rows, columns) = self.window_size, self._grid(size)
        if size == (rows * r, columns * r):
            return None
        down = torch.arange(rows * r, device=device).view(rows, 1, r, 1) >= size[0]
        right = torch.arange(columns * r, device=device).view(1, columns, 1, r) >= size[1]
        return F.pad((down | right).flatten(2).flatten(0, 1), (1, 0))

    def _check(self, regional: Tensor, local: Tensor, size: tuple[int, int], *, num_frames: int | None = None) -> None:
        """Check regional tokens of all frames against local ones of ``num_frames`` frames per sample."""
        name, frames = "CrossFrameFusionBlock", self.num_frames
        kept = frames if num_frames is None else num_frames
        _check_tokens(name, "regional", regional, self.dim, frames)
        _check_tokens(name, "local", local, self.dim, kept)
        rows, columns = self._grid(size)
        expected = (regional.shape[0] // frames * kept, rows * columns, size[0] * size[1])
        if (local.shape[0], regional.shape[1], local.shape[1]) != expected:
            raise ValueError(
                f"{name}: expected regional (B*T, {expected[1]}, D) and local ({'B*T' if kept == frames else 'B'}, "
                f"{expected[2]}, D) for size {tuple(size)} and windows of {self.window_size}, got "
                f"{tuple(regional.shape)} and {tuple(local.shape)}"
            )


def _check_heads(function: str, dim: int, num_heads: int) -> None:
    checks.expect_int(function, "dim", dim, minimum=1)
    checks.expect_int(function, "num_heads", num_heads, minimum=1)
    if dim % num_heads:
        raise ValueError(f"{function}: expected dim to be a multiple of num_heads, got {dim} and {num_heads}")


def _check_tokens(function: str, name: str, tokens: Tensor, dim: int, frames: int) -> None:
    if tokens.ndim != 3 or tokens.shape[-1] != dim or tokens.shape[0] % frames:
        raise ValueError(
            f"{function}: expected {name} (B*T, S, D) with T = {frames} and D = {dim}, got {tuple(tokens.shape)}"
        )
