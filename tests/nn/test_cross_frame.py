"""Attention across windows, frames and pixels: recorded tensors, an attention written out, sizes, token orders."""

from pathlib import Path

import pytest
import torch
from _module_base import ModuleTests
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tta_restore import models, nn
from tta_restore.nn.cross_frame import relative_position_index

GOLDEN = Path(__file__).parents[1] / "golden/meta"


def weights(recorded):
    return {name.removeprefix("sd."): value for name, value in recorded.items() if name.startswith("sd.")}


def attended(attention, tokens, bias):
    """Self-attention of (N, S, D), head by head."""
    dim = tokens.shape[-1]
    q, k, v = attention.qkv(tokens).split(dim, -1)
    width, out = dim // attention.num_heads, torch.zeros_like(tokens)
    for head in range(attention.num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].transpose(1, 2) * width**-0.5
        out[..., part] = (scores + (0 if bias is None else bias[head])).softmax(-1) @ v[..., part]
    return attention.proj(out)


def written_out(block, regional, local, size):
    """The block window by window, pixel by pixel, frame by frame."""
    r, frames = block.window_size, regional.shape[0]
    rows, columns = -(-size[0] // r), -(-size[1] // r)
    regional = regional + attended(block.attn, block.norm1(regional), None)
    regional = block.cross_attn(block.norm4(regional))
    met = {}
    for b in range(frames):
        for w in range(rows * columns):
            i = b * rows * columns + w
            met[b, w] = (b, w) if block.variant == "ours" else (i % frames, i // frames)
    new_regional, new_local = torch.zeros_like(regional), torch.zeros_like(local)
    for (b, w), (at_b, at_w) in met.items():
        top, left = w // columns * r, w % columns * r
        inside = [(y, x) for y in range(top, min(top + r, size[0])) for x in range(left, min(left + r, size[1]))]
        pixels = [y * size[1] + x for y, x in inside]
        group = torch.cat([regional[at_b, at_w][None], local[b, pixels]])[None]
        bias = group.new_zeros(block.num_heads, len(pixels) + 1, len(pixels) + 1)
        for i, (yq, xq) in enumerate(inside):
            for j, (yk, xk) in enumerate(inside):
                offset = (yq - yk + r - 1) * (2 * r - 1) + xq - xk + r - 1
                bias[:, i + 1, j + 1] = block.attn.relative_position_bias_table[offset]
        group = group + attended(block.attn, block.norm2(group), bias)
        group = group + block.mlp["fc2"](torch.nn.functional.gelu(block.mlp["fc1"](block.norm3(group))))
        new_regional[at_b, at_w], new_local[b, pixels] = group[0, 0], group[0, 1:]
    return new_regional, new_local


def spread(module):
    """Weights of the size of one, so that attention is far from uniform."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
            parameter.mul_(0.3)
    return module


def tokens(size, *, dim=8, samples=1, frames=3, window=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    windows = -(-size[0] // window) * -(-size[1] // window)
    regional = torch.randn(samples * frames, windows, dim, generator=generator, dtype=dtype)
    return regional, torch.randn(samples * frames, size[0] * size[1], dim, generator=generator, dtype=dtype)


def test_cross_frame_attention_is_the_released_one():
    recorded = load_file(GOLDEN / "csa.safetensors")
    layer = nn.CrossFrameAttention(32, 4)
    layer.load_state_dict(weights(recorded))
    for batch in ("b1", "b2"):
        out = layer(recorded[f"x_{batch}"])
        torch.testing.assert_close(out, recorded[f"y_{batch}"], atol=1e-5, rtol=0)
        others = [t for t in range(len(out)) if t % 5 != 2]
        assert torch.equal(out[others], recorded[f"x_{batch}"][others])


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (2, 3)])
def test_offsets_are_numbered_as_released(size):
    recorded = load_file(GOLDEN / "rel_pos.safetensors")
    index = relative_position_index(*size)
    assert torch.equal(index, recorded[f"raw_{size[0]}x{size[1]}"])
    assert torch.equal(index, recorded[f"remap_{size[0]}x{size[1]}"])
    assert len(index.unique()) == recorded[f"count_{size[0]}x{size[1]}"]


def test_as_many_windows_as_a_window_has_tokens_are_no_confusion():
    """The release tells its two attentions apart by the number of tokens, and drops the bias of pixels then."""
    block = spread(nn.CrossFrameFusionBlock(8, 2, window_size=2, num_frames=3, dtype=torch.float64))
    size = (2, 10)  # 5 windows, each of 4 pixels and a regional token
    regional, local = tokens(size, window=2)
    assert regional.shape[1] == block.window_size**2 + 1
    found, expected = block(regional, local, size), written_out(block, regional, local, size)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)


class Both(torch.nn.Module):
    """A block that gives one tensor, for the tests of modules."""

    def __init__(self, block, size):
        super().__init__()
        self.block, self.size = block, size

    def forward(self, regional, local):
        return torch.cat(self.block(regional, local, self.size), 1)


class Case(ModuleTests):
    size, samples = (8, 4), 2
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    options: dict = {}  # noqa: RUF012

    def module(self, **factory):
        block = nn.CrossFrameFusionBlock(8, 2, window_size=4, num_frames=3, **self.options, **factory)
        return block if factory["device"] == "meta" else spread(block)

    def inputs(self, generator):
        return tokens(self.size, samples=self.samples), {}

    def built(self, device, dtype=torch.float32):
        block = super().built(device, dtype)
        return Both(block, self.size).eval()

    def functional(self, module, regional, local):
        return torch.cat(written_out(module.block, regional, local, self.size), 1)

    def test_state_round_trip(self, device, generator):
        block = super().built(device)
        other = models.load_checkpoint(self.module(device=device, dtype=torch.float32), block.state_dict()).eval()
        arguments, _ = self.arguments(device, generator)
        for got, want in zip(other(*arguments, self.size), block(*arguments, self.size), strict=True):
            assert torch.equal(got, want)


class TestBlock(Case):
    @pytest.mark.slow
    def test_compile_fullgraph(self, device, generator):
        super().test_compile_fullgraph(device, generator)


class TestReleasedOrder(Case):
    options = {"variant": "official"}  # noqa: RUF012

    @pytest.mark.slow
    def test_compile_fullgraph(self, device, generator):
        super().test_compile_fullgraph(device, generator)


class TestFilledWindows(Case):
    size = (7, 9)


class TestCrossFrameAttention(ModuleTests):
    dtypes = (torch.float32, torch.float64, torch.bfloat16)

    def module(self, **factory):
        return nn.CrossFrameAttention(8, 2, num_frames=3, **factory)

    def inputs(self, generator):
        return (torch.randn(6, 5, 8, generator=generator, dtype=torch.float64),), {}


@pytest.mark.thorough
@given(
    st.integers(1, 9), st.integers(1, 9), st.sampled_from(["ours", "official"]), st.integers(1, 2), st.integers(1, 4)
)
def test_two_blocks_for_the_middle_frame_alone_are_what_whole_ones_give(height, width, order, samples, window):
    block = spread(nn.CrossFrameFusionBlock(4, 2, window_size=window, num_frames=3, variant=order).double())
    regional, local = tokens((height, width), dim=4, samples=samples, window=window)
    after, pixels = block(regional, local, (height, width))
    middle = pixels.unflatten(0, (samples, 3))[:, 1]
    found = block.last_but_one(regional, local, (height, width))
    torch.testing.assert_close(found, (after, middle))
    expected = block(after, pixels, (height, width))[1].unflatten(0, (samples, 3))[:, 1]
    torch.testing.assert_close(block.middle_frame(*found, (height, width)), expected)


def test_samples_meet_in_the_released_order_only():
    for order in ("ours", "official"):
        block = spread(nn.CrossFrameFusionBlock(8, 2, window_size=4, num_frames=3, variant=order).double())
        regional, local = tokens((8, 8), samples=2)
        together = block(regional, local, (8, 8))
        alone = block(regional[:3], local[:3], (8, 8))
        same = all(torch.allclose(a[:3], b) for a, b in zip(together, alone, strict=True))
        assert same == (order == "ours")


@pytest.mark.thorough
def test_second_derivatives_are_those_of_finite_differences():
    block = spread(nn.CrossFrameFusionBlock(4, 2, window_size=2, num_frames=3).double())
    regional, local = tokens((3, 4), dim=4, window=2)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(
            lambda r, table: torch.func.functional_call(
                block, {"attn.relative_position_bias_table": table}, (r, local, (3, 4))
            )[1].sum(),
            (regional.requires_grad_(), block.attn.relative_position_bias_table.detach().clone().requires_grad_()),
        )


def test_stochastic_depth_leaves_eval_mode_alone():
    block = spread(nn.CrossFrameFusionBlock(8, 2, window_size=4, num_frames=3, drop_path=0.9).double())
    arguments = (*tokens((8, 8)), (8, 8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.equal(block.train()(*arguments)[1], block.eval()(*arguments)[1])
    torch.testing.assert_close(block(*arguments)[1], written_out(block, *arguments)[1])


def test_what_does_not_fit_is_named():
    block = nn.CrossFrameFusionBlock(8, 2, window_size=4, num_frames=3)
    regional, local = tokens((8, 8), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"expected regional \(B\*T, S, D\) with T = 3 and D = 8, got \(2, 4, 8\)"):
        block(regional[:2], local[:2], (8, 8))
    with pytest.raises(ValueError, match=r"regional \(B\*T, 6, D\) and local \(B\*T, 72, D\) for size \(8, 9\)"):
        block(regional, local, (8, 9))
    for bad, message in (
        ({"num_frames": 4}, "num_frames to be an odd integer"),
        ({"variant": "sorted"}, "variant to be one of 'ours', 'official', got 'sorted'"),
        ({"drop_path": 1.0}, r"drop_path to be a number in \[0, 1\), got 1.0"),
        ({"mlp_ratio": 0}, "mlp_ratio to be a number > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            nn.CrossFrameFusionBlock(8, 2, **bad)
    with pytest.raises(ValueError, match="dim to be a multiple of num_heads, got 8 and 3"):
        nn.CrossFrameAttention(8, 3)
