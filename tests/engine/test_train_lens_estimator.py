"""Training of the lens estimator: what its library holds, and that it learns from it."""

import pytest
import torch

from tta_restore.data.synthetic.soften import soften
from tta_restore.engine.train import defocus_estimator
from tta_restore.engine.train.defocus_estimator import LensLibrary, fit_estimator
from tta_restore.models import create_model

BANK = (torch.rand(3, 3, 160, 160, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)


@pytest.mark.thorough
def test_a_library_holds_every_window_of_every_picture():
    library = LensLibrary.simulate(BANK, count=4, seed=1, progress=False)
    assert library.spectra.shape == (4, 4, 169, 20, 16)
    assert library.log_radius.shape == (4, 4, 169)
    torch.testing.assert_close(library.apertures.sum((1, 2)), torch.ones(4))
    torch.testing.assert_close(library.apertures, library.apertures.flip((1, 2)))
    again = LensLibrary.simulate(BANK, count=4, seed=1, progress=False)
    assert torch.equal(library.spectra, again.spectra)


@pytest.mark.thorough
def test_half_of_the_scenes_are_soft_by_themselves(monkeypatch):
    library = LensLibrary.simulate(BANK, count=4, seed=1, progress=False)

    def left_crisp(pictures, generator):
        soften(pictures, generator)  # the same random numbers
        return pictures

    monkeypatch.setattr(defocus_estimator, "soften", left_crisp)
    crisp = LensLibrary.simulate(BANK, count=4, seed=1, progress=False)
    assert torch.equal(crisp.log_radius, library.log_radius)
    same = (crisp.spectra == library.spectra).flatten(2).all(2)
    assert 2 < same.sum() < 14  # of 16 pictures
    # a wider blur leaves less of high frequencies, where there were any
    high = crisp.spectra[..., 6:, :].float().mean((3, 4))
    assert torch.corrcoef(torch.stack([high.flatten(), crisp.log_radius.flatten()]))[0, 1] < -0.5


@pytest.mark.thorough
def test_it_learns_and_remembers(monkeypatch):
    monkeypatch.setattr(defocus_estimator, "LENSES", 204)
    monkeypatch.setattr(defocus_estimator, "_LENSES_PER_STEP", 4)
    few = LensLibrary.simulate(BANK, count=8, seed=1, progress=False)
    many = LensLibrary(*(part.repeat_interleave(26, 0)[:204] for part in (few.spectra, few.log_radius, few.apertures)))
    monkeypatch.setattr(LensLibrary, "simulate", classmethod(lambda cls, *a, **k: many))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model("lens_estimator", known=8)
        losses = fit_estimator(model, BANK, steps=20, progress=False)
    assert sum(losses[-5:]) < sum(losses[:5]) - 1
    assert bool(model.said.any())
