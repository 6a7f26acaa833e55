"""Semantic conditioning: frozen towers, their preprocessing, and cross-attention to their tokens."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from _module_base import ModuleTests
from _tiny_clip import save_tiny_clip
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tta_restore import nn

GOLDEN = Path(__file__).parents[1] / "golden" / "causiam"


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """An open_clip model of a few thousand weights, and a file with weights for it."""
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def test_open_clip_gives_the_embedding_or_the_patches_of_its_weights(tiny_clip):
    path, model = tiny_clip
    image = torch.rand(2, 3, 40, 56)
    encoder = nn.OpenClipEncoder("tiny-test", path)
    assert list(encoder.parameters()) == []
    assert encoder.state_dict() == {}
    tokens = encoder(image.requires_grad_())
    assert tokens.shape == (2, 1, 24)
    assert not tokens.requires_grad
    config = model.visual.preprocess_cfg
    resized = torch.nn.functional.interpolate(image, (32, 45), mode="bicubic", antialias=True).clamp(0, 1)[..., 6:38]
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(tokens[:, 0], model.encode_image((resized - mean) / std))
    patches = nn.OpenClipEncoder("tiny-test", path, output="patches")(image)
    assert patches.shape == (2, 16, 64)
    assert "output='patches'" in repr(nn.OpenClipEncoder("tiny-test", path, output="patches"))


def test_preprocessing_as_released_is_the_recorded_one(tiny_clip, monkeypatch):
    path, _ = tiny_clip
    tensors = load_file(GOLDEN / "resize224.safetensors")
    image = tensors["image_u8"].float()[None] / 255
    encoder = nn.OpenClipEncoder("tiny-test", path, variant="official")
    monkeypatch.setattr(encoder, "_taken", lambda tower: (224, 224, None, None, ""))
    seen = encoder._prepared(image, torch.nn.Identity())
    torch.testing.assert_close(seen[..., ::7, ::7], tensors["no_antialias_sub7"], atol=1e-6, rtol=0)
    assert (seen[..., ::7, ::7] - tensors["antialias_sub7"]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet", "test_mambaout"])
def test_timm_towers_of_every_layout(name):
    for output in ("pooled", "patches"):
        encoder = nn.TimmEncoder(name, output=output)
        with pytest.warns(UserWarning, match="random weights, its tokens carry no meaning"):
            first = encoder(torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0)))
        assert first.ndim == 3
        assert first.isfinite().all()
        assert (first.shape[1] == 1) == (output == "pooled")
        other = encoder(torch.rand(2, 1, 30, 30))  # no second warning, and gray pictures
        assert other.shape == (2, *first.shape[1:])


def test_timm_reads_files_and_the_global_random_state_stays(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        import timm

        model = timm.create_model("test_vit").eval()
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    state = torch.random.get_rng_state()
    image = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    tokens = nn.TimmEncoder("test_vit", tmp_path / "vit.safetensors")(image)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features((image - 0.5) / 0.5), pre_logits=True)
    torch.testing.assert_close(tokens[:, 0], expected)


def test_callers_modes_change_nothing(tiny_clip):
    path, _ = tiny_clip
    image = torch.rand(1, 3, 32, 32)
    expected = nn.OpenClipEncoder("tiny-test", path)(image)
    encoder = nn.OpenClipEncoder("tiny-test", path)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(image + 0), expected)
    assert torch.equal(encoder(image), expected)


def test_a_hub_out_of_reach_is_reported_at_once(monkeypatch, tmp_path, caplog):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="OpenClipEncoder: cannot load 'ViT-B-32', 'openai': "):
        nn.OpenClipEncoder("ViT-B-32", "openai")(torch.rand(1, 3, 32, 32))
    assert not any("Retrying" in record.getMessage() for record in caplog.records)
    assert constants.HF_HUB_OFFLINE is False


def test_what_cannot_be_had_is_said(tmp_path):
    image = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match="OpenClipEncoder: cannot load 'no-such', '.*tag'") as caught:
        nn.OpenClipEncoder("no-such", "some tag")(image)
    assert len(str(caught.value)) < 200  # without the names of all models
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="TimmEncoder: cannot load 'test_vit', "):
        nn.TimmEncoder("test_vit", tmp_path / "broken.pt")(image)
    with pytest.raises(ValueError, match="TimmEncoder: cannot load 'test_vit', "):
        nn.TimmEncoder("test_vit", tmp_path / "absent.pt")(image)
    with pytest.raises(ValueError, match=r"expected image \(B, C, H, W\) with C 1 or 3, got \(1, 4, 8, 8\)"):
        nn.TimmEncoder("test_vit")(torch.rand(1, 4, 8, 8))
    with pytest.raises(TypeError, match="uint8"):
        nn.TimmEncoder("test_vit")(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="one of 'pooled', 'patches'"):
        nn.TimmEncoder("test_vit", output="tokens")


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
    out = tokens + layer.res_scale * layer.to_out(out)
    return out.transpose(1, 2).reshape(x.shape) if x.ndim == 4 else out


class Case(ModuleTests):
    context, features = (2, 3, 10), (2, 12, 4, 5)
    dtypes = (torch.float32, torch.float64, torch.bfloat16)

    def module(self, **factory):
        return nn.SemanticCrossAttention(12, 10, num_heads=3, res_scale=0.5, zero_init=False, **factory)

    def inputs(self, generator):
        shapes = (self.features, self.context)
        return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes), {}

    def functional(self, module, *tensors, **options):
        return attended(module, *tensors)


class TestTokens(Case):
    pass


class TestTokenFeatures(Case):
    features = (2, 20, 12)

    @pytest.mark.slow
    def test_compile_fullgraph(self, device, generator):
        super().test_compile_fullgraph(device, generator)


class TestOneVector(Case):
    context, unused = (2, 10), ("to_q.weight", "to_k.weight")


class TestOneToken(Case):
    context, features, unused = (2, 1, 10), (2, 20, 12), ("to_q.weight", "to_k.weight")

    @pytest.mark.slow
    def test_compile_fullgraph(self, device, generator):
        super().test_compile_fullgraph(device, generator)


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
