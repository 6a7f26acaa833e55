"""The reblurrer of Meta Transferring against recorded tensors, official keys, and what it takes."""

from pathlib import Path

import pytest
import torch
from _base import ModuleTests, random
from safetensors.torch import load_file

from tta_restore import models
from tta_restore.models import video_reblur
from tta_restore.models.video_reblur import VideoReblur

GOLDEN = Path(__file__).parents[1] / "golden/meta"
SMALL = {"num_layers": 1, "base_channels": 2}


def weights(recorded):
    return {name.removeprefix("sd."): value for name, value in recorded.items() if name.startswith("sd.")}


def test_the_default_has_the_official_weights_in_their_order():
    model = models.create_model("video_reblur", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 10_436_979
    lines = (GOLDEN / "reblur_attn_default_state_dict.tsv").read_text().splitlines()
    official = [tuple(line.split("\t")) for line in lines]
    own = [(name, str(tuple(t.shape)), str(t.dtype).removeprefix("torch.")) for name, t in model.state_dict().items()]
    assert own == official
    assert "video_reblur" in models.list_models("reblurrer")


def test_both_variants_are_the_recorded_ones():
    recorded = load_file(GOLDEN / "reblur_attn_small.safetensors")
    config = {"num_layers": 2, "base_channels": 4}
    model = models.create_model("video_reblur", **config, variant="official").eval()
    models.load_checkpoint(model, weights(recorded))
    x = recorded["x"].requires_grad_()
    y = model(x)
    torch.testing.assert_close(y, recorded["y"], atol=1e-4, rtol=0)
    (gradient,) = torch.autograd.grad(y, x, recorded["grad_weight"])
    error = (gradient - recorded["grad_x"]).abs().max() / recorded["grad_x"].abs().max()
    assert error < 1e-3
    with torch.no_grad():
        both = model(torch.cat([x, recorded["x2_second"]]))
        torch.testing.assert_close(both, recorded["y2"], atol=1e-4, rtol=0)
        torch.testing.assert_close(model(recorded["x_64x96"]), recorded["y_64x96"], atol=1e-4, rtol=0)
        aligned = models.create_model("video_reblur", **config).eval()
        models.load_checkpoint(aligned, {f"module.{name}": value for name, value in weights(recorded).items()})
        torch.testing.assert_close(aligned(x), recorded["aligned.y"], atol=1e-4, rtol=0)
        torch.testing.assert_close(aligned(recorded["x_64x96"]), recorded["aligned.y_64x96"], atol=1e-4, rtol=0)
    assert (recorded["y"] - recorded["aligned.y"]).abs().max() > 0.1


@pytest.mark.parametrize(("variant", "fusion", "channels"), [("conv3d", "conv3d", 2), ("mtrnn", "channels", 4)])
def test_the_other_variants_are_the_released_ones(variant, fusion, channels):
    recorded = load_file(GOLDEN / f"reblur_{variant}_small.safetensors")
    model = models.create_model("video_reblur", num_layers=1, base_channels=channels, fusion=fusion).eval()
    carried = {"attn3.head.bias": torch.zeros(8)} if variant == "conv3d" else {}  # unused in official files
    models.load_checkpoint(model, weights(recorded) | carried)
    clip = recorded["x"] if recorded["x"].ndim == 5 else recorded["x"].unflatten(1, (5, 3))
    torch.testing.assert_close(model(clip), recorded["y"], atol=1e-4, rtol=0)


@pytest.fixture
def shallow(monkeypatch):
    """The last two blocks, which are run in ways of their own: tests of the layer compile a whole one."""
    monkeypatch.setattr(video_reblur, "_DEPTH", 2)


@pytest.mark.usefixtures("shallow")
class TestAttention(ModuleTests):
    compiler = "eager"
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    fusion = "attention"

    def module(self, **factory):
        return VideoReblur(**SMALL, fusion=self.fusion, **factory)

    def inputs(self, generator):
        return (random(1, 5, 3, 33, 40, generator=generator),), {}


class TestConv3d(TestAttention):
    fusion = "conv3d"


class TestChannels(TestAttention):
    fusion = "channels"


@pytest.mark.parametrize("fusion", ["attention", "conv3d", "channels"])
def test_odd_sizes_are_extended_and_cut_back(fusion):
    torch.manual_seed(0)
    model = VideoReblur(**SMALL, fusion=fusion).eval()
    clip = torch.rand(2, 5, 3, 35, 50)
    whole = torch.nn.functional.pad(clip.flatten(0, 1), (0, 14, 0, 29), mode="reflect").unflatten(0, (2, 5))
    if fusion != "attention":
        whole = whole[..., :36, :52]
    torch.testing.assert_close(model(clip), model(whole)[..., :35, :50])
    torch.testing.assert_close(model(clip)[:1], model(clip[:1]))


def test_what_does_not_fit_is_named():
    model = VideoReblur(**SMALL)
    with pytest.raises(ValueError, match=r"clip of shape \(B, T, 3, H, W\) = \(any, 5, 3, any, any\), got \(1, 3, 3"):
        model(torch.rand(1, 3, 3, 32, 32))
    with pytest.raises(TypeError, match="divide by 255"):
        model(torch.zeros(1, 5, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="num_frames = 5 with fusion='conv3d', got 3"):
        VideoReblur(fusion="conv3d", num_frames=3)
    with pytest.raises(ValueError, match="fusion to be one of 'attention', 'conv3d', 'channels', got 'mtrnn'"):
        models.create_model("video_reblur", fusion="mtrnn")
    assert VideoReblur(**SMALL, num_frames=3)(torch.rand(1, 3, 3, 32, 32)).shape == (1, 3, 32, 32)
