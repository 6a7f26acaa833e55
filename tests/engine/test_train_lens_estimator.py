"""Training of the lens estimator: what its library holds, and that it learns from it."""

import torch

from tta_restore.engine import train_lens_estimator
from tta_restore.engine.train_lens_estimator import LensLibrary, fit_estimator
from tta_restore.models import create_model

BANK = (torch.rand(3, 3, 160, 160, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)


def test_a_library_holds_every_window_of_every_picture():
    library = LensLibrary.simulate(BANK, count=4, seed=1, progress=False)
    assert library.spectra.shape == (4, 4, 169, 20, 16)
    assert library.log_radius.shape == (4, 4, 169)
    torch.testing.assert_close(library.apertures.sum((1, 2)), torch.ones(4))
    torch.testing.assert_close(library.apertures, library.apertures.flip((1, 2)))
    again = LensLibrary.simulate(BANK, count=4, seed=1, progress=False)
    assert torch.equal(library.spectra, again.spectra)
    # a wider blur leaves less of high frequencies
    contrast = library.spectra.float().mean((1, 2, 4))
    fall = contrast[:, 4] - contrast[:, -1]
    assert torch.corrcoef(torch.stack([fall, library.log_radius.mean((1, 2))]))[0, 1] > 0


def test_it_learns_and_remembers(monkeypatch):
    monkeypatch.setattr(train_lens_estimator, "LENSES", 204)
    few = LensLibrary.simulate(BANK, count=8, seed=1, progress=False)
    many = LensLibrary(*(part.repeat_interleave(26, 0)[:204] for part in (few.spectra, few.log_radius, few.apertures)))
    monkeypatch.setattr(LensLibrary, "simulate", classmethod(lambda cls, *a, **k: many))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model("lens_estimator", known=8)
        losses = fit_estimator(model, BANK, steps=30, progress=False)
    assert sum(losses[-5:]) < sum(losses[:5]) - 1
    assert bool(model.said.any())
