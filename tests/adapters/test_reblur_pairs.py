"""ReblurPairs: DegradationPairs for lenses, with the estimated lens at hand."""

import pytest
import torch
from torch import nn

from tta_restore.adapters import ReblurPairs, SelfEnsemble
from tta_restore.data.synthetic import defocus, photos
from tta_restore.degradations import lens as optics
from tta_restore.metrics import psnr
from tta_restore.models import RestorerSpec, as_restorer, create_model


def _specialist() -> nn.Module:
    return create_model("lens_unet", checkpoint="specialist").eval()


def _frames(lens: optics.Lens, count: int, seed: int = 11) -> list[defocus.DefocusFrame]:
    return defocus.defocus_stream([lens], photos.DEV[:2], frames_per_lens=count, size=128, seed=seed)


@pytest.mark.thorough
def test_it_learns_a_lens_that_the_restorer_never_saw():
    frames = _frames(optics.Lens("ring", optics.ring(0.5), (2.5, 4.0)), 2)
    model = _specialist()
    adapter, frozen = ReblurPairs(model, steps=12, batch_size=4), SelfEnsemble(model)
    gains = []
    for frame in frames:
        x, y = frame.blurry[None], frame.sharp[None]
        gains.append(float(psnr(adapter(x).clamp(0, 1), y) - psnr(frozen(x).clamp(0, 1), y)))
    assert sum(gains) / len(gains) > 0.5
    assert adapter.report.updated


@pytest.mark.thorough
def test_looking_at_the_lens_changes_nothing():
    adapter = ReblurPairs(_specialist(), steps=1, lr=1e-4, batch_size=1)
    x = _frames(defocus.SOURCE, 1)[0].blurry[None]
    with pytest.raises(ValueError, match="no frame was seen yet"):
        adapter.aperture()
    adapter(x)
    before = adapter.state_dict()
    assert adapter.aperture().sum() == pytest.approx(1, abs=1e-3)
    kernels = adapter.kernels(x)
    assert kernels.shape == (1, 4, 4, 17, 17)
    torch.testing.assert_close(kernels.sum((-2, -1)), torch.ones(1, 4, 4))
    assert str(before) == str(adapter.state_dict())


def test_models_it_cannot_make_pairs_for():
    upscale = as_restorer(nn.Upsample(scale_factor=2), RestorerSpec(scale=2))
    with pytest.raises(ValueError, match="ReblurPairs: expected a model of scale 1, got scale 2"):
        ReblurPairs(upscale, select=None)
    wide = nn.Sequential(nn.Conv2d(4, 4, 1))
    with pytest.raises(ValueError, match="C of 1 or 3"):
        ReblurPairs(as_restorer(wide, RestorerSpec(in_channels=4, out_channels=4)))(torch.rand(1, 4, 32, 32))


@pytest.mark.thorough
def test_a_custom_lens_estimator_is_used_and_left_as_it_was():
    estimator = create_model("lens_estimator", checkpoint="lens_estimator").train()
    before = {name: weight.clone() for name, weight in estimator.state_dict().items()}
    adapter = ReblurPairs(_specialist(), estimator, steps=1, lr=1e-4, batch_size=1)
    assert adapter.estimator.defocus is estimator
    assert not adapter(_frames(defocus.SOURCE, 1)[0].blurry[None]).requires_grad
    assert estimator.training
    assert all(weight.requires_grad and weight.grad is None for weight in estimator.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in estimator.state_dict().items())
