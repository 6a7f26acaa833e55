"""Cross-attention from features to a context: the shift of one token, the attention of several, and the start."""

import pytest
import torch
import torch.nn.functional as F
from _module_base import ModuleTests
from hypothesis import given
from hypothesis import strategies as st

from tta_restore import nn


def attended(layer, x, context):
    """The layer written out: explicit softmax over tokens, whatever their number."""
    context = context[:, None] if context.ndim == 2 else context
    tokens = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x
    q, k, v = layer.to_q(tokens), layer.to_k(context), layer.to_v(context)
    out = torch.zeros_like(q)
    for head in range(layer.num_heads):
        part = slice(head * layer.head_dim, (head + 1) * layer.head_dim)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) * layer.head_dim**-0.5).softmax(-1)
        out[..., part] = weights @ v[..., part]
    out = tokens + layer.scale * layer.to_out(out)
    return out.transpose(1, 2).reshape(x.shape) if x.ndim == 4 else out


class Case(ModuleTests):
    context, features = (2, 3, 10), (2, 12, 4, 5)
    dtypes = (torch.float32, torch.float64, torch.bfloat16)

    def module(self, **factory):
        return nn.SemanticCrossAttention(12, 10, num_heads=3, scale=0.5, zero_init=False, **factory)

    def inputs(self, generator):
        shapes = (self.features, self.context)
        return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes), {}

    def functional(self, module, *tensors, **options):
        return attended(module, *tensors)


class TestTokens(Case):
    pass


class TestTokenFeatures(Case):
    features = (2, 20, 12)


class TestOneVector(Case):
    context, unused = (2, 10), ("to_q.weight", "to_k.weight")


class TestOneToken(Case):
    context, features, unused = (2, 1, 10), (2, 20, 12), ("to_q.weight", "to_k.weight")


def test_it_starts_as_the_identity_and_its_output_projection_learns():
    torch.manual_seed(0)
    layer = nn.SemanticCrossAttention(16, 12)
    x = torch.randn(1, 16, 6, 5)
    for context in (torch.randn(1, 12), torch.randn(1, 4, 12)):
        out = layer(x, context)
        assert torch.equal(out, x)
        (gradient,) = torch.autograd.grad(out.square().sum(), layer.to_out.weight)
        assert gradient.abs().mean() > 1e-4


@given(st.integers(1, 9), st.integers(1, 9))
def test_one_token_is_the_same_shift_everywhere_and_repeated_tokens_change_nothing(height, width):
    torch.manual_seed(height * 10 + width)
    layer = nn.SemanticCrossAttention(6, 4, num_heads=2, zero_init=False)
    x, context = torch.randn(2, 6, height, width), torch.randn(2, 1, 4)
    shift = layer(x, context) - x
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift))
    torch.testing.assert_close(layer(x, context), layer(x, context.expand(-1, 5, -1)))


def test_one_token_needs_no_attention(monkeypatch):
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    layer = nn.SemanticCrossAttention(6, 4, zero_init=False)
    assert layer(torch.randn(1, 6, 300, 400), torch.randn(1, 4)).isfinite().all()
    with pytest.raises(TypeError):
        layer(torch.randn(1, 6, 3, 4), torch.randn(1, 2, 4))


@pytest.mark.parametrize(
    ("x", "context", "message"),
    [
        ((1, 5, 4, 4), (1, 4), r"x \(B, C, H, W\) or \(B, L, C\) with C = 6, got \(1, 5, 4, 4\)"),
        ((1, 6, 4), (1, 4), r"with C = 6, got \(1, 6, 4\)"),
        ((2, 6, 4, 4), (1, 4), r"context \(B, D\) or \(B, S, D\) with B = 2, D = 4, got \(1, 4\)"),
        ((1, 6, 4, 4), (1, 2, 2, 4), r"got \(1, 2, 2, 4\)"),
    ],
)
def test_wrong_shapes_are_named(x, context, message):
    with pytest.raises(ValueError, match=message):
        nn.SemanticCrossAttention(6, 4)(torch.rand(x), torch.rand(context))
