"""IFAN against recorded tensors, with official names of weights, and where it refuses."""

import json
from pathlib import Path

import pytest
import torch
from _base import ModuleTests, random
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tta_restore import models
from tta_restore.models.ifan import checkpoint as ifan_checkpoint
from tta_restore.models.ifan.network import IFAN

GOLDEN = Path(__file__).parents[2] / "golden/ifan"
SMALL = {"base_channels": 4, "num_steps": 3, "num_res_blocks": 1}
MODES = {"quirk": "vertical", "fixed": "own"}
# recorded submodules of the network, and ours; before the skip is added there
TRACED = {
    **{f"conv{s}_3": f"encoder.stage{s}" for s in (1, 2, 3, 4)},
    **{f"kconv{s}_3": f"filter_encoder.stage{s}" for s in (1, 2, 3, 4)},
    "DME": "disparity",
    "conv_DME": "disparity_features",
    "conv4_4": "filter_trunk",
    "IAC": "adaptive",
    "conv_res": "decoder.enter",
    **{f"upconv{s}_u": f"decoder.up{s}" for s in (3, 2, 1)},
    **{f"upconv{s}_2": f"decoder.stage{s}.1" for s in (3, 2, 1)},
    "out_res": "decoder.exit",
}


def prefixed(recorded, prefix):
    return {name.removeprefix(prefix): t for name, t in recorded.items() if name.startswith(prefix)}


def close(got, want, what):
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5, msg=lambda text: f"{what}: {text}")


def recorded_network(mode):
    recorded = load_file(GOLDEN / "net_small.safetensors")
    model = models.create_model("ifan", horizontal=MODES[mode], **SMALL).eval()
    return recorded, models.load_checkpoint(model, prefixed(recorded, "state_dict."))


def official(model, part):
    """What the release would have saved."""
    return {part + name: tensor for name, tensor in ifan_checkpoint.official_names(model.state_dict()).items()}


@pytest.mark.parametrize("mode", MODES)
class TestRecorded:
    def test_outputs(self, mode):
        recorded, model = recorded_network(mode)
        with torch.no_grad():
            close(model(recorded["input.C"]), recorded[f"output.{mode}.eval.result"], "eval")
            views = [recorded[f"input.{view}"] for view in "CRL"]
            out = model.forward_train(*views)
            names = {"result": "result", "filters": "Filter", "warped_right": "f_R_w", "left_small": "f_L"}
            for name, theirs in names.items():
                close(getattr(out, name), recorded[f"output.{mode}.train.{theirs}"], name)
            # without the reblurring network the filters need not exist, and the rest is the same
            lean = model.forward_train(*views, keep_filters=False)
            assert lean.filters is None
            close(lean.result, out.result, "without filters")
            alone = model.forward_train(views[0])
            assert alone.warped_right is None
            assert torch.equal(alone.result, out.result)
            model.train()
            close(model(views[0]), out.result, "train mode is not clipped")
        assert out.result.min() < -0.01

    def test_every_stage(self, mode):
        recorded, model = recorded_network(mode)
        found = {}
        hooks = [
            model.get_submodule(own).register_forward_hook(
                lambda module, inputs, output, name=name: found.update(
                    {name: (output[-1] if isinstance(output, list) else output).clone()}
                )
            )
            for name, own in TRACED.items()
        ]
        with torch.no_grad():
            model(recorded["input.C"])
        assert len(hooks) == len(found) == 20
        for name, tensor in found.items():
            trace = recorded.get(f"trace.{mode}.{name}", recorded[f"trace.quirk.{name}"])
            close(tensor, trace, name)

    def test_reblurring(self, mode):
        recorded = load_file(GOLDEN / "rbn_small.safetensors")
        model = models.create_model("ifan_reblur", horizontal=MODES[mode], **SMALL)
        models.load_checkpoint(model, prefixed(recorded, "state_dict."))
        with torch.no_grad():
            close(model.predictor(recorded["input.Filter"]), recorded["trace.RBF"], "filters")
            out = model(recorded["input.S"], recorded["input.Filter"])
        close(out, recorded[f"output.{mode}.SB"], "reblurred")
        assert (out - recorded["trace.S_down"]).abs().max() > 0.1


def test_numbers_of_parameters():
    counts = {
        name: sum(p.numel() for p in models.create_model(name, device="meta").parameters())
        for name in ("ifan", "ifan_dual", "ifan_reblur")
    }
    assert counts == {"ifan": 10_476_996, "ifan_dual": 10_477_860, "ifan_reblur": 19_139_685}
    for steps, parameters in ((8, 9_436_740), (26, 11_517_252), (35, 12_557_508), (44, 13_597_764)):
        model = models.create_model("ifan", device="meta", num_steps=steps)
        assert sum(p.numel() for p in model.parameters()) == parameters
    published = (  # steps of the filters and of the reblurring filters
        ({"num_steps": 8}, 9_632_040),
        ({"num_steps": 26, "reblur_steps": 9}, 28_235_709),
        ({"num_steps": 35, "reblur_steps": 17}, 37_719_141),
        ({"num_steps": 44, "reblur_steps": 17}, 47_008_869),
    )
    for config, parameters in published:
        model = models.create_model("ifan_reblur", device="meta", **config)
        assert sum(p.numel() for p in model.parameters()) == parameters
    # the network that is published without disparity estimation but with its input is a little larger: not ours
    smaller = models.create_model("ifan", device="meta", disparity=False)
    assert sum(p.numel() for p in smaller.parameters()) < counts["ifan"]


class TestOfficialFiles:
    def wrapped(self, tmp_path, name, *, prefix="module.", **config):
        """A file as the release wrote it: both networks, in DataParallel."""
        model = models.create_model(name, **SMALL | config)
        reblur = models.create_model("ifan_reblur", **SMALL)
        content = {**official(model, "Network."), **official(reblur, "reblurNet.")}
        path = tmp_path / "IFAN.pytorch"
        torch.save({prefix + key: tensor for key, tensor in content.items()}, path)
        return path, model, reblur

    @pytest.mark.parametrize("prefix", ["module.", "", "model.", "module.net."])
    @pytest.mark.parametrize("name", ["ifan", "ifan_dual"])
    def test_both_networks_of_one_file_load_and_the_file_tells_their_configuration(self, name, prefix, tmp_path):
        path, model, reblur = self.wrapped(tmp_path, name, prefix=prefix)
        for registered, original in ((name, model), ("ifan_reblur", reblur)):
            loaded = models.create_model(registered, checkpoint=path)
            assert loaded.horizontal == "vertical"  # as all released weights were trained
            for key, tensor in original.state_dict().items():
                assert torch.equal(loaded.state_dict()[key], tensor), key

    def test_the_name_list_of_the_specification(self, tmp_path):
        path, _, _ = self.wrapped(tmp_path, "ifan")
        names = torch.load(path, weights_only=True)
        for name in (
            *("conv1_1.0.weight", "kconv4_3.0.bias", "DME.1.stem.0.2.weight", "DME.3.bias", "conv_DME.0.bias"),
            *(
                "conv4_4.0.0.weight",
                "conv4_4.2.stem.0.2.weight",
                "conv4_4.3.0.bias",
                "F.0.0.weight",
                "F.2.stem.0.0.bias",
            ),
            *(
                "F.3.bias",
                "conv_res.1.stem.2.2.weight",
                "upconv3_u.0.weight",
                "upconv1_2.stem.0.0.bias",
                "out_res.0.bias",
            ),
        ):
            assert f"module.Network.{name}" in names
        assert names["module.Network.F.3.weight"].shape == (336, 16, 1, 1)
        assert names["module.reblurNet.RBF.0.0.weight"].shape == (16, 336, 3, 3)

    def test_stripped_copies_and_state_dicts(self, tmp_path):
        _, model, _ = self.wrapped(tmp_path, "ifan")
        bare = official(model, "Network.")
        for content in (bare, prefixed(bare, "Network."), {"state_dict": bare}, {"module." + k: bare[k] for k in bare}):
            fresh = models.create_model("ifan", horizontal="vertical", **SMALL)
            models.load_checkpoint(fresh, content)
            assert torch.equal(fresh.adaptive.weight, model.adaptive.weight)
            assert torch.equal(fresh.decoder.exit[0].bias, model.decoder.exit[0].bias)

    def test_the_mode_of_released_weights_is_asked_for(self, tmp_path):
        path, _, _ = self.wrapped(tmp_path, "ifan")
        for name in ("ifan", "ifan_reblur"):
            silent = models.create_model(name, **SMALL)
            with pytest.warns(UserWarning, match='all released ones were trained with horizontal="vertical"'):
                models.load_checkpoint(silent, path)
            assert silent.horizontal == "own"
        corrected = models.create_model("ifan", checkpoint=path, horizontal="own")  # said, and not asked again
        assert corrected.horizontal == "own"
        ours = models.create_model("ifan", **SMALL)
        models.load_checkpoint(ours, corrected.state_dict())  # our names: no warning

    def test_no_disparity(self, tmp_path):
        model = models.create_model("ifan", disparity=False, **SMALL)
        torch.save(model.state_dict(), tmp_path / "own.pt")
        loaded = models.create_model("ifan", checkpoint=tmp_path / "own.pt")
        assert loaded.disparity is None
        assert loaded.horizontal == "own"
        x = torch.rand(1, 3, 16, 24)
        assert torch.equal(loaded.eval()(x), model.eval()(x))
        assert loaded.forward_train(x, x, x).warped_right is None

    def test_a_file_of_the_other_variant_is_refused(self, tmp_path):
        path, _, _ = self.wrapped(tmp_path, "ifan_dual")
        with pytest.raises(ValueError, match=r"filter_encoder.stage1.0.0.weight of IFAN has shape \(4, 3, 3, 3\)"):
            models.create_model("ifan", checkpoint=path)

    def test_code_in_a_file_never_runs(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return print, ("code of the checkpoint ran",)

        _, model, _ = self.wrapped(tmp_path, "ifan")
        path = tmp_path / "trap.pytorch"
        torch.save({**official(model, "Network."), "optimizer": Trap()}, path)
        with pytest.raises(ValueError, match="pickled Python objects besides tensors"):
            models.create_model("ifan", checkpoint=path)
        torch.save({**official(model, "Network."), "epoch": 3}, path)
        with pytest.raises(ValueError, match=r"no tensors: 'epoch' \(int\)"):
            models.create_model("ifan", checkpoint=path)

    def test_metadata_comes_before_what_shapes_tell(self, tmp_path):
        model = models.create_model("ifan", kernel_size=5, **SMALL)
        path = tmp_path / "own.safetensors"
        save_file(model.state_dict(), path, {"model": "ifan", "config": json.dumps({"kernel_size": 5, **SMALL})})
        with safe_open(path, "pt") as file:
            assert "config" in file.metadata()
        assert models.create_model("ifan", checkpoint=path).adaptive.kernel_size == 5

    def test_strangers_are_told_what_is_missing(self, tmp_path):
        torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
        for name in ("ifan", "ifan_reblur"):
            with pytest.raises(ValueError, match="does not fit"):
                models.create_model(name, checkpoint=tmp_path / "other.pt")


class TestStart:
    def test_gradients_reach_the_features_only_with_filters_near_the_identity(self):
        """The published start lets nothing through N steps; ours does."""
        reached = {}
        for variant in ("ours", "official"):
            torch.manual_seed(0)
            model = IFAN(base_channels=4, variant=variant)
            model(torch.rand(1, 3, 32, 32)).square().mean().backward()
            before, behind = model.encoder.stage4[2][0].weight.grad, model.decoder.enter[0][0].weight.grad
            reached[variant] = (before.norm() / behind.norm()).item()
        assert reached["official"] < 1e-8
        assert reached["ours"] > 0.1

    def test_training_starts_at_the_picture_and_not_below_it(self):
        x = torch.rand(1, 3, 32, 32)
        moved = {}
        for variant in ("ours", "official"):
            torch.manual_seed(0)
            moved[variant] = (IFAN(base_channels=4, variant=variant).train()(x) - x).abs().mean().item()
        assert 0 < moved["ours"] < 0.005 < moved["official"]

    @pytest.mark.parametrize("horizontal", ["own", "vertical"])
    def test_reblurring_starts_at_the_reduced_image_on_filters_near_the_identity(self, horizontal):
        sharp = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        off, gradients = {}, {}
        for variant in ("ours", "official"):
            torch.manual_seed(0)
            model = IFAN(base_channels=8, horizontal=horizontal).train()
            config = model.reblur_config
            assert config["variant"] == "ours"
            reblur = models.create_model("ifan_reblur", **config | {"variant": variant})
            difference = reblur(sharp, model.forward_train(sharp).filters) - sharp[..., ::8, ::8]
            difference.square().mean().backward()
            off[variant] = difference.abs().mean().item()
            gradients[variant] = [p.grad.abs().max().item() for p in reblur.parameters()]
        assert off["ours"] < 0.05 < 1 < off["official"]
        assert min(gradients["ours"]) > 0
        assert IFAN(base_channels=4, variant="official").reblur_config["variant"] == "official"

    def test_published_start_has_the_published_spread(self):
        model = IFAN(base_channels=8, variant="official")
        for layer, gain, fans in (
            (model.encoder.stage1[0][0], 1.0, 9 * (3 + 8)),
            (model.decoder.up1[0], 1.0, 16 * (16 + 8)),
            (model.filter_features[0][0], 1.5, 9 * 64),
            (model.adaptive, 1.5, 32 + 17 * 32 * 7),
        ):
            bound = gain * (6 / fans) ** 0.5
            assert 0.9 * bound < layer.weight.abs().max() <= bound
            assert not layer.bias.any()


class TestRefusals:
    @pytest.mark.parametrize(("arguments", "error", "message"), [
        ((torch.rand(1, 3, 20, 24),), ValueError, r"ifan: expected H and W to be multiples of 8, got \(1, 3, 20, 24\)"),
        ((torch.rand(1, 3, 0, 8),), ValueError, "multiples of 8"),
        ((torch.rand(1, 4, 16, 24),), ValueError, r"ifan: expected x of shape \(B, 3, H, W\) = \(any, 3, any, any\)"),
        ((torch.rand(3, 16, 24),), ValueError, "x of shape"),
        ((torch.zeros(1, 3, 16, 24, dtype=torch.uint8),), TypeError, "divide by 255"),
    ])  # fmt: skip
    def test_pictures(self, arguments, error, message):
        with pytest.raises(error, match=message):
            models.create_model("ifan", **SMALL)(*arguments)

    def test_views(self):
        x = torch.rand(1, 3, 16, 24)
        dual, single = models.create_model("ifan_dual", **SMALL), models.create_model("ifan", **SMALL)
        with pytest.raises(ValueError, match=r"ifan_dual: expected left of shape \(B, 3, H, W\) = \(1, 3, 16, 24\)"):
            dual(x, x, x[..., 8:])
        with pytest.raises(ValueError, match="expected both views, right and left, or neither"):
            single.forward_train(x, x)

    def test_filters(self):
        with pytest.raises(ValueError, match=r"filters of shape \(B, N\*C\*\(2K\+1\), H/8, W/8\) = \(1, 336, 2, 3\)"):
            models.create_model("ifan_reblur", **SMALL)(torch.rand(1, 3, 16, 24), torch.rand(1, 336, 3, 3))
        with pytest.raises(ValueError, match="multiples of 8"):
            models.create_model("ifan_reblur", **SMALL)(torch.rand(1, 3, 12, 24), torch.rand(1, 336, 2, 3))

    @pytest.mark.parametrize(("config", "message"), [
        ({"kernel_size": 4}, "ifan: expected kernel_size to be an odd integer"),
        ({"horizontal": "both"}, "horizontal to be one of 'own', 'vertical'"),
        ({"variant": "zero"}, "variant to be one of 'ours', 'official'"),
        ({"num_steps": 0}, "num_steps to be an integer >= 1"),
    ])  # fmt: skip
    def test_configurations(self, config, message):
        with pytest.raises(ValueError, match=message):
            models.create_model("ifan", **SMALL | config)


def test_probe_finds_nothing_odd():
    model = models.create_model("ifan", **SMALL)
    report = models.probe(model)
    assert report.traps == ("sizes must be padded",)
    assert (report.spec.scale, report.spec.size.multiple_of, report.parameters) == (1, 8, 112_284)
    assert model.training
    x = torch.rand(1, 3, 13, 21)
    restored = models.as_restorer(model.eval())(x)
    padded = torch.nn.functional.pad(x, (0, 3, 0, 3), mode="reflect")
    torch.testing.assert_close(restored, model(padded)[..., :13, :21])


class TestIfan(ModuleTests):
    compiler = "eager"

    def module(self, **factory):
        return models.create_model("ifan", **SMALL, **factory)

    def inputs(self, generator):
        return (random(1, 3, 16, 24, generator=generator, low=0.3, high=0.7),), {}


class TestDual(ModuleTests):
    compiler = "eager"

    def module(self, **factory):
        return models.create_model("ifan_dual", **SMALL, **factory)

    def inputs(self, generator):
        return tuple(random(1, 3, 16, 16, generator=generator, low=0.3, high=0.7) for _ in range(3)), {}


class TestReblur(ModuleTests):
    def module(self, **factory):
        return models.create_model("ifan_reblur", reblur_steps=2, **SMALL, **factory)

    def inputs(self, generator):
        sharp, filters = random(1, 3, 16, 24, generator=generator), random(1, 336, 2, 3, generator=generator)
        return (sharp, filters), {}


class TestWithoutFilters:
    """The ablations of the paper that concatenate features instead of filtering them."""

    @pytest.mark.parametrize(("disparity", "parameters", "gmac"), [(True, 10_578_116, 364.3), (False, 9_099_971, None)])
    def test_size_is_the_published_one(self, disparity, parameters, gmac):
        model = models.create_model("ifan", filters=False, disparity=disparity, device="meta")
        assert sum(p.numel() for p in model.parameters()) == parameters  # 10.58 M with disparity, by the paper
        if gmac is not None:
            counted = models.count_macs(model, torch.empty(1, 3, 720, 1280, device="meta")).with_additions
            assert counted / 1e9 == pytest.approx(gmac, abs=0.1)

    @pytest.mark.parametrize("disparity", [False, True])
    def test_every_parameter_learns_and_weights_load_by_name(self, disparity, tmp_path):
        torch.manual_seed(0)
        model = IFAN(base_channels=2, num_res_blocks=1, filters=False, disparity=disparity)
        x, right, left = torch.rand(3, 1, 3, 16, 24)
        out = model.forward_train(x, right, left)
        assert out.filters is None
        assert model.reblur_config is None
        assert (out.disparity is not None) == (out.warped_right is not None) == disparity
        loss = out.result.square().mean() + (out.warped_right.square().mean() if disparity else 0)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        torch.save(model.state_dict(), tmp_path / "ablation.pth")
        again = models.create_model("ifan", checkpoint=tmp_path / "ablation.pth").eval()
        with torch.no_grad():
            assert torch.equal(again(x), model.eval()(x))


def test_the_disparity_map_and_the_filters_are_outputs():
    torch.manual_seed(0)
    model = IFAN(base_channels=2, num_steps=2, num_res_blocks=1).eval()
    x = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        out = model.forward_train(x)
        features, disparity = model._guidance(x)
        assert torch.equal(out.disparity, disparity)
        assert torch.equal(out.filters, model.adaptive.predict_filters(features))
        torch.testing.assert_close(out.result.clamp(0, 1), model(x))
    assert (out.disparity.shape, out.filters.shape) == ((1, 1, 2, 3), (1, 2 * 8 * 7, 2, 3))


@pytest.mark.parametrize(("steps", "reblur_steps"), [(8, 8), (17, 17), (26, 9), (35, 17), (44, 17)])
def test_the_reblurring_network_of_a_published_configuration(steps, reblur_steps):
    model = models.create_model("ifan", num_steps=steps, device="meta")
    reblur = models.create_model("ifan_reblur", **model.reblur_config, device="meta")
    assert (reblur.filter_channels, reblur.reblur.num_steps) == (model.adaptive.filter_channels, reblur_steps)
