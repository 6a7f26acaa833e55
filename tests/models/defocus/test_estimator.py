"""The restorers and the estimator of the demo: shapes, conditioning, geometry of the estimate, shipped weights."""

import json

import pytest
import torch

from tta_restore.data.synthetic import defocus
from tta_restore.degradations import lens as optics
from tta_restore.engine.run.names import SHIPPED_MODELS
from tta_restore.models.checkpoint import WEIGHTS
from tta_restore.models.defocus.estimator import DefocusEstimate
from tta_restore.models.defocus.pupil import rasterize_pupil
from tta_restore.models.registry import create_model, list_models


def _randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Zero-initialized layers hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "size"),
    [("lens_unet", s) for s in ((16, 16), (33, 47), (1, 5), (64, 40))]
    + [("conditioned_lens_unet", s) for s in ((32, 32), (33, 47))],
)
def test_any_size_comes_back(name, size):
    x = torch.rand(2, 3, *size)
    with torch.no_grad():
        assert _randomised(create_model(name))(x).shape == x.shape


def test_a_new_restorer_is_the_identity():
    x = torch.rand(1, 3, 24, 24)
    torch.testing.assert_close(create_model("lens_unet")(x), x)


def test_about_half_a_million_parameters():
    assert 4e5 < sum(p.numel() for p in create_model("lens_unet").parameters()) < 6e5
    assert list_models("estimator") == ["lens_estimator"]


def test_conditioning_reaches_the_output():
    model = _randomised(create_model("conditioned_lens_unet"))
    x = torch.rand(1, 3, 32, 32)
    statistics = torch.rand(2, model.estimator.width * 16 + 1)
    one = DefocusEstimate(torch.full((1, 4, 4), 1.0), torch.ones(1, 4, 4), statistics[:1])
    larger = DefocusEstimate(torch.full((1, 4, 4), 3.0), torch.ones(1, 4, 4), statistics[:1])
    other = DefocusEstimate(torch.full((1, 4, 4), 1.0), torch.ones(1, 4, 4), statistics[1:])
    with torch.no_grad():
        base = model(x, one)
        assert not torch.allclose(base, model(x, larger))
        assert not torch.allclose(base, model(x, other))


def test_statistics_of_two_halves_add_up_to_those_of_the_whole():
    model = _randomised(create_model("lens_estimator"))
    x = torch.rand(1, 3, 32, 72)  # windows of 32 every 8 pixels: 0, 8, ..., 40
    with torch.no_grad():
        whole = model(x).statistics
        halves = DefocusEstimate.pool([model(x[..., :48]), model(x[..., 24:])])  # 0, 8, 16 and 24, 32, 40
    torch.testing.assert_close(halves, whole, rtol=1e-4, atol=1e-4)


def test_a_turned_picture_has_a_turned_aperture():
    model = create_model("lens_estimator", checkpoint="lens_estimator").eval()
    lens = optics.Lens("ellipse", optics.ellipse(0.4, 0.3), (2.5, 3.5))
    (frame,) = defocus.defocus_stream([lens], ("grace_hopper",), frames_per_lens=1, size=160, seed=2)
    with torch.no_grad():
        upright = model.aperture(model(frame.blurry[None]).statistics)[0]
        turned = model.aperture(model(frame.blurry.rot90(1, (1, 2))[None]).statistics)[0]
    assert (upright.rot90(1) - turned).square().sum() < 0.05 * upright.square().sum()
    assert (upright - turned).square().sum() > 0.05 * upright.square().sum()


def test_estimator_shapes_and_refusals():
    model = _randomised(create_model("lens_estimator"))
    with torch.no_grad():
        estimate = model(torch.rand(2, 3, 48, 64))
        assert estimate.radius.shape == estimate.confidence.shape == (2, 6, 8)
        picture = model.aperture(estimate.statistics)
        assert picture.shape == (2, 23, 23)
        torch.testing.assert_close(picture.sum((1, 2)), torch.ones(2))
        assert model.kernels(estimate.statistics[0], torch.tensor([1.0, 2.0])).shape == (2, 17, 17)
    for bad in (torch.rand(3, 48, 48), torch.rand(1, 1, 48, 48), torch.rand(1, 3, 31, 48)):
        with pytest.raises(ValueError, match="DefocusEstimator: expected"):
            model(bad)


@pytest.mark.parametrize("radius", [1.0, 2.0, 3.5])
def test_rasterized_pictures_are_the_kernels_of_their_lens(radius):
    for lens in (defocus.SOURCE, *defocus.DEV, *defocus.TEST):
        unit = optics.rms_radius(lens.pupil)
        picture = optics.rasterize_pupils([lens])[0]
        drawn = rasterize_pupil(picture, torch.tensor([radius]), size=17, reach=2.3)[0]
        true = optics.rasterize(lens.pupil, torch.tensor([radius / unit]))[0]
        # a 23 x 23 picture rounds the corners of an aperture; it must not move, turn, mirror or scale it
        assert (drawn - true).abs().sum() < 0.35, lens.family
        for turned in (true.flip(0), true.flip(1), true.rot90(1), true.rot90(2)):
            assert (drawn - true).abs().sum() <= (drawn - turned).abs().sum() + 0.02, lens.family


@pytest.mark.parametrize("name", [*SHIPPED_MODELS, "lens_estimator"])
def test_shipped_weights_come_with_the_log_that_made_them(name):
    log = json.loads((WEIGHTS / f"{name}.json").read_text())
    model = create_model(SHIPPED_MODELS.get(name, name), checkpoint=name)
    assert sum(p.numel() for p in model.parameters()) == log["parameters"]
    assert log["command"].startswith("python -m tta_restore train-demo")
    assert len(log["loss"]) >= 4
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.thorough
def test_the_specialist_earns_a_decibel_on_photographs_it_never_saw():
    from tta_restore.engine.demo.train import held_out

    report = held_out(create_model("lens_unet", checkpoint="specialist").eval(), frames_per_lens=4)
    assert report["disk"]["gain"] >= 1.0


@pytest.mark.parametrize("level", [0.2, 0.5, 0.8])
def test_pure_noise_has_a_signal_to_noise_ratio_of_one(level):
    from tta_restore.models.defocus.spectra import WindowSpectra

    generator = torch.Generator().manual_seed(0)
    x = level + torch.randn(1, 3, 128, 128, generator=generator) / 255
    # power is that of the noise alone, whatever the curve makes of it; rounding would add the remaining tenth
    ratio = WindowSpectra()(x).expm1().mean()
    assert float(ratio) == pytest.approx(1 / 1.1, rel=0.05)
