"""Frozen towers as sources of context: shapes, weights, preprocessing as released, and no trace in the module."""

from pathlib import Path

import pytest
import timm
import torch
from _tiny_clip import save_tiny_clip
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
    encoder = nn.OpenClipEncoder("tiny-test", path, preprocessing="release")
    monkeypatch.setattr(encoder, "_taken", lambda tower: (224, 224, None, None, ""))
    seen = encoder._prepared(image, torch.nn.Identity())
    torch.testing.assert_close(seen[..., ::7, ::7], tensors["no_antialias_sub7"], atol=1e-6, rtol=0)
    assert (seen[..., ::7, ::7] - tensors["antialias_sub7"]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet", "test_mambaout"])
def test_timm_towers_of_every_layout(name):
    for output in ("pooled", "patches"):
        encoder = nn.TimmEncoder(name, output=output)
        with pytest.warns(UserWarning, match="random weights, and what it reads means nothing"):
            first = encoder(torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0)))
        assert first.ndim == 3
        assert first.isfinite().all()
        assert (first.shape[1] == 1) == (output == "pooled")
        other = encoder(torch.rand(2, 1, 30, 30))  # no second warning, and gray pictures
        assert other.shape == (2, *first.shape[1:])


def test_timm_reads_files_and_the_global_random_state_stays(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
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


def test_what_cannot_be_had_is_said(tmp_path):
    image = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match="OpenClipEncoder: cannot load 'no-such', '.*tag'"):
        nn.OpenClipEncoder("no-such", "some tag")(image)
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
