"""Semantic encoders and functions by name, as the command line gives them."""

import pytest
import torch
from _meta_networks import Deblur
from _tiny_clip import save_tiny_clip

from tta_restore.cli import main
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.engine.run.encoders import create_encoder, create_semantic
from tta_restore.nn import OpenClipEncoder, TimmEncoder


def look(images):
    """Custom encoder that returns the mean color."""
    return images.mean((2, 3))


class Look(torch.nn.Module):
    def forward(self, images):
        return look(images)


def test_names():
    clip = create_encoder("open_clip/ViT-B-32/laion2b", variant="official", output="patches")
    assert isinstance(clip, OpenClipEncoder)
    assert (clip.name, clip.pretrained, clip.variant, clip.output) == ("ViT-B-32", "laion2b", "official", "patches")
    assert create_encoder("open_clip/ViT-B-32").pretrained == "openai"
    vit = create_encoder("timm/vit_small_patch14_dinov2.lvd142m")
    assert isinstance(vit, TimmEncoder)
    assert vit.name == "vit_small_patch14_dinov2.lvd142m"
    semantic = create_semantic({"encoder": "engine.test_encoders:Look", "res_scale": 0.5, "at": "conv"})
    assert (semantic.res_scale, semantic.at) == (0.5, ("conv",))
    assert semantic.encoder(torch.ones(1, 3, 4, 4)).tolist() == [[1.0, 1.0, 1.0]]
    assert create_semantic("engine.test_encoders:look").encoder(torch.ones(1, 3, 4, 4)).shape == (1, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("clip", "expected open_clip/MODEL/TAG, timm/MODEL or module.path:callable, got 'clip'"),
        ({"encoder": "math:nothing"}, "math:nothing: math has no nothing"),
        ({"encoder": "math:tau"}, "math:tau is no module or function"),
        ({"encoder": "engine.test_encoders:look", "output": "patches"}, "is no class and takes no output"),
        ({"scale": 3}, "semantic: there is no setting 'scale'; there are: encoder, pretrained, output, variant, at"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        create_semantic(settings)


@pytest.mark.parametrize("encoder", ["open_clip/tiny-test", "engine.test_encoders:look"])
def test_on_the_command_line(tmp_path, monkeypatch, capsys, encoder):
    path, _ = save_tiny_clip(tmp_path)
    torch.save(Deblur().state_dict(), tmp_path / "deblur.pth")
    for number in range(2):
        write_image(tmp_path / f"in/{number}.png", Image(torch.rand(3, 32, 32)))
    monkeypatch.chdir(tmp_path)
    words = ["restore", "in", "-o", "out", "--model", "_meta_networks:Deblur", "--checkpoint", "deblur.pth"]
    words += ["--method", "causiam", "--method.semantic.encoder", encoder, "--method.lr", "1.0", "--method.ema", "0.1"]
    pretrained = ["--method.semantic.pretrained", str(path)] if "tiny" in encoder else []
    assert main([*words, *pretrained]) == 0, capsys.readouterr().err
    plain = ["restore", "in", "-o", "plain", *words[4:8], "--method", "self-ensemble", "--method.views", "rot4"]
    assert main(plain) == 0
    changes = [read_image(f"out/{i}.png").pixels - read_image(f"plain/{i}.png").pixels for i in range(2)]
    assert not changes[0].any()  # the attention starts as the identity
    assert changes[1].any()  # and was adapted on the first image
    assert main([*words[:-6], "--method.semantic.encoder", "clip"]) == 2
    assert "expected open_clip/MODEL/TAG" in capsys.readouterr().err
