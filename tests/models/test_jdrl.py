"""The networks of reblurring-guided learning against recorded tensors, and with official names of weights."""

from pathlib import Path

import pytest
import torch
from _base import ModuleTests, random
from _formula import with_formula_weights
from _restormer import Restormer
from safetensors.torch import load_file

from tta_restore import models, nn
from tta_restore.models.jdrl import BlurConditioned, JDRLReblur, JDRLUNet

GOLDEN = Path(__file__).parents[1] / "golden/jdrl"


def stub(first, second):
    """The flow network of the recorded wrapper and training steps."""
    return 0.5 * torch.nn.functional.avg_pool2d(first - second, 4)[:, :2]


def prefixed(recorded, prefix):
    return {name.removeprefix(prefix): t for name, t in recorded.items() if name.startswith(prefix)}


@pytest.mark.thorough
@pytest.mark.parametrize("prior", [False, True])
def test_unet_is_the_released_one(prior):
    model = with_formula_weights(JDRLUNet(prior=prior))
    recorded = load_file(GOLDEN / ("j_vgg38_formula.safetensors" if prior else "h_vgg_deblur_formula.safetensors"))
    assert sum(p.numel() for p in model.parameters()) == (31_053_723 if prior else 31_033_411)
    with torch.no_grad():
        if prior:
            out = model(recorded["im_b"], recorded["pred_core"])
        else:
            assert torch.equal(model.encoder.block1[0].weight[:2], recorded["first_weights"])
            assert torch.equal(model.up6[1].weight[:2, :4], recorded["up6_weights"])
            out = model(recorded["x"])
    torch.testing.assert_close(out, recorded["out"], atol=2e-6, rtol=2e-5)


def test_unet_official_file(tmp_path):
    model = models.create_model("jdrl_unet", width=4)
    official = {f"module.{name}": t for name, t in model.state_dict().items()}
    assert "module.encoder.block1.0.weight" in official
    assert "module.up6.1.bias" in official
    others = {f"module.{name}": t for name, t in models.create_model("jdrl_reblur", width=4).state_dict().items()}
    file = tmp_path / "epoch_99.pth"
    torch.save({"epoch": 100, "global_step": 100, "Reblur_state_dict": others, "G_state_dict": official}, file)
    again = models.create_model("jdrl_unet", width=4, checkpoint=file)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), official.values(), strict=True))
    models.create_model("jdrl_reblur", width=4, checkpoint=file)


@pytest.mark.parametrize("prefix", ["module.", "net.", "module.generator."])
@pytest.mark.parametrize("name", ["jdrl_unet", "jdrl_reblur"])
def test_the_size_of_weights_below_any_prefix_is_found(name, prefix, tmp_path):
    model = models.create_model(name, width=4)
    weights = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "lightning.ckpt")
    again = models.create_model(name, checkpoint=tmp_path / "lightning.ckpt")
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in model.state_dict().items())
    # two networks of one shape in a file: which one is meant is not known
    other = {"teacher." + key: tensor + 1 for key, tensor in model.state_dict().items()}
    torch.save({"state_dict": weights | other}, tmp_path / "two.ckpt")
    with pytest.raises(ValueError, match="several sets of weights that fit|does not fit"):
        models.create_model(name, checkpoint=tmp_path / "two.ckpt", width=4)


def test_unet_refuses():
    model = JDRLUNet(width=2)
    with pytest.raises(ValueError, match="multiples of 16"):
        model(torch.rand(1, 3, 20, 32))
    with pytest.raises(ValueError, match="no blur map"):
        model(torch.rand(1, 3, 16, 16), torch.rand(1, 35, 16, 16))
    assert models.as_restorer(model)(torch.rand(1, 3, 20, 33)).shape == (1, 3, 20, 33)


def test_reblur_is_the_released_one_and_takes_official_names():
    recorded = load_file(GOLDEN / "c_reblur_nf8.safetensors")
    model = models.load_checkpoint(JDRLReblur(width=8), prefixed(recorded, "param."))
    restored, blurry = (recorded[name].requires_grad_() for name in ("im_s", "im_b"))
    seeds, weights = model.predictor(restored, blurry)
    torch.testing.assert_close(seeds, recorded["core"], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(weights, recorded["maps"], atol=2e-6, rtol=1e-5)
    out = model(restored, blurry)
    torch.testing.assert_close(out, recorded["output"], atol=3e-6, rtol=1e-5)
    names = dict(model.named_parameters())
    gradients = torch.autograd.grad(out, [restored, blurry, *names.values()], recorded["upstream"])
    official = model.convert_state_dict(prefixed(recorded, "grad."))
    expected = [recorded["grad_im_s"], recorded["grad_im_b"], *(official[name] for name in names)]
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want, atol=2e-4 * want.abs().max().item(), rtol=1e-3)
    assert sum(p.numel() for p in JDRLReblur().parameters()) == 474_987


def test_blur_estimator_is_the_released_one():
    recorded = load_file(GOLDEN / "j_blur_estimator.safetensors")
    model = nn.BlurMapEstimator()
    assert sum(p.numel() for p in model.parameters()) == 66_499
    models.load_checkpoint(model, {"Pred_state_dict": prefixed(recorded, "param.")})
    torch.testing.assert_close(model(recorded["im_b"]), recorded["core"], atol=1e-5, rtol=1e-5)


def test_fusion_is_the_released_one():
    recorded = load_file(GOLDEN / "j_fusion_block.safetensors")
    fusion = nn.BlurMapFusion()
    names = {"gate.fc.0.weight": "se.fc.0.weight", "gate.fc.2.weight": "se.fc.2.weight"}
    names |= {"adjust.weight": "adjust.weight", "adjust.bias": "adjust.bias"}
    fusion.load_state_dict({own: recorded[name] for own, name in names.items()})
    x = recorded["x"].requires_grad_()
    torch.testing.assert_close(fusion.gate(x), recorded["se_out"], atol=2e-6, rtol=1e-5)
    out = fusion(x[:, :3], x[:, 3:])
    torch.testing.assert_close(out, recorded["adjusted"], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(out, x, recorded["upstream"])[0], recorded["grad_x"], atol=1e-5, rtol=1e-4
    )


class TestUNet(ModuleTests):
    compiler = "eager"

    def module(self, **factory):
        return models.create_model("jdrl_unet", width=2, prior=True, **factory)

    def inputs(self, generator):
        return (random(1, 3, 16, 32, generator=generator), random(1, 35, 16, 32, generator=generator)), {}


class TestReblur(ModuleTests):
    def module(self, **factory):
        return models.create_model("jdrl_reblur", width=4, kernel_sizes=(3, 5), **factory)

    def inputs(self, generator):
        return tuple(random(2, 3, 9, 11, generator=generator) for _ in range(2)), {}


class TestConditioned:
    @pytest.mark.parametrize(("at", "channels"), [(None, 3), ("1", 4)])
    def test_starts_as_the_restorer_and_leaves_it_alone(self, at, channels):
        conv = torch.nn.Conv2d
        restorer = torch.nn.Sequential(conv(3, 4, 3, 2, 1), conv(4, 4, 3, 1, 1), torch.nn.ConvTranspose2d(4, 3, 2, 2))
        x = torch.rand(1, 3, 12, 16)
        plain = restorer(x)
        model = BlurConditioned(restorer, at=at, channels=channels)
        torch.testing.assert_close(model(x), plain, atol=1e-6, rtol=1e-5)
        with torch.no_grad():
            model.fusion.adjust.weight.add_(0.1)
        assert (model(x) - plain).abs().max() > 1e-3
        (model(x).sum()).backward()
        assert model.estimator.conv_first.weight.grad.abs().sum() > 0
        assert torch.equal(restorer(x), plain)
        assert models.as_restorer(model)(x).shape == x.shape

    def test_official_transformer_with_its_fusion(self, tmp_path):
        recorded = load_file(GOLDEN / "j_restormer_tiny.safetensors")
        model, again = (BlurConditioned(Restormer(8, (1, 1, 1, 1), 1), at="patch_embed") for _ in range(2))
        estimator = {name: torch.rand_like(t) for name, t in model.estimator.state_dict().items()}
        weights = {f"module.{name}": t for name, t in prefixed(recorded, "param.").items()}
        torch.save({"epoch": 1, "Pred_state_dict": estimator, "G_state_dict": weights}, tmp_path / "epoch_1.pth")
        models.load_checkpoint(model, tmp_path / "epoch_1.pth")
        assert all(torch.equal(t, estimator[name]) for name, t in model.estimator.state_dict().items())
        with torch.no_grad():
            out = model.restore_with(recorded["im_b"], recorded["pred_core"])
        torch.testing.assert_close(out, recorded["out"], atol=3e-6, rtol=2e-5)
        again = models.load_checkpoint(
            BlurConditioned(Restormer(8, (1, 1, 1, 1), 1), at="patch_embed"), model.state_dict()
        )
        assert torch.equal(again.fusion.adjust.weight, model.fusion.adjust.weight)

    def test_full_size_transformer_has_the_published_number_of_parameters(self):
        with torch.device("meta"):
            network = Restormer()
            fusion = nn.BlurMapFusion()
        count = [sum(p.numel() for p in module.parameters()) for module in (network, fusion)]
        assert sum(count) == 26_126_913
        assert count[1] == 269

    def test_refuses_a_module_that_is_not_there(self):
        with pytest.raises(ValueError, match="no module 'decoder'"):
            BlurConditioned(torch.nn.Identity(), at="decoder")


def test_official_conference_weights_run_on_bgr():
    model = with_formula_weights(JDRLUNet(width=4))
    flipped = JDRLUNet(width=4, bgr=True).eval()
    flipped.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 16, 32)
    with torch.no_grad():
        torch.testing.assert_close(flipped(x.flip(1)).flip(1), model(x))
        assert not torch.allclose(flipped(x), model(x), atol=1e-3)
    reblur = with_formula_weights(JDRLReblur(width=4))
    other = JDRLReblur(width=4, bgr=True).eval()
    other.load_state_dict(reblur.state_dict())
    pair = torch.rand(2, 1, 3, 9, 8)
    torch.testing.assert_close(other(*pair.flip(2)).flip(1), reblur(*pair))


class TestOneBranch(ModuleTests):
    def module(self, **factory):
        return models.create_model("jdrl_reblur", width=4, one_branch=True, **factory)

    def inputs(self, generator):
        return tuple(random(1, 3, 17, 16, generator=generator) for _ in range(2)), {}

    def functional(self, module, restored, blurry):
        """Softmax of absolute logits over 15 x 15 taps, and zeros beyond the image."""
        taps = module.predictor.seed_trunk(torch.cat((restored, blurry), 1)).abs().softmax(1)
        patches = torch.nn.functional.unfold(restored, 15, padding=7).unflatten(1, (3, 225))
        return (patches * taps.flatten(2)[:, None]).sum(2).unflatten(-1, restored.shape[2:])


def test_official_weights_of_one_branch_load_by_name(tmp_path):
    own = JDRLReblur(width=4, one_branch=True)
    official = {name.replace("predictor.seed_trunk.", "module.kpn."): t for name, t in own.state_dict().items()}
    official["module.kernel_map_gene.conv_first.bias"] = torch.zeros(4)  # part of the file, and unused
    torch.save({"Reblur_state_dict": official}, tmp_path / "epoch_1.pth")
    loaded = models.create_model("jdrl_reblur", checkpoint=tmp_path / "epoch_1.pth")
    assert loaded.one_branch
    assert all(torch.equal(t, own.state_dict()[name]) for name, t in loaded.state_dict().items())


def test_both_state_dicts_of_an_official_journal_file_load_by_name(tmp_path):
    own = models.create_model("jdrl_journal", width=2, map_width=3)
    parts = {"G_state_dict": own.restorer, "Pred_state_dict": own.estimator}
    content = {key: {f"module.{n}": t for n, t in part.state_dict().items()} for key, part in parts.items()}
    torch.save(content | {"epoch": 3}, tmp_path / "epoch_3.pth")
    x = torch.rand(1, 3, 32, 16)
    for checkpoint in (tmp_path / "epoch_3.pth", tmp_path / "own.pth"):
        if checkpoint.name == "own.pth":
            torch.save(own.state_dict(), checkpoint)
        loaded = models.create_model("jdrl_journal", checkpoint=checkpoint).eval()
        with torch.no_grad():
            assert torch.equal(loaded(x), own.eval()(x))
    assert models.create_model("jdrl_unet", checkpoint=tmp_path / "epoch_3.pth").prior


def test_any_registered_restorer_is_conditioned_by_name():
    model = models.create_model("blur_conditioned", restorer="lens_unet", config={"widths": (4, 4, 4), "blocks": 1})
    x = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(model(x), model.restorer(x), atol=1e-6, rtol=1e-5)
    again = models.create_model("blur_conditioned", restorer="lens_unet", config={"widths": (4, 4, 4), "blocks": 1})
    models.load_checkpoint(again, model.state_dict())
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in again.state_dict().items())
