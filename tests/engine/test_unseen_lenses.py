"""Restorers on unseen lenses: kernels are estimated at the right places."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from tta_restore.adapters import ReblurConsistency
from tta_restore.data.synthetic import defocus
from tta_restore.degradations import lens as optics
from tta_restore.engine.evaluate.unseen_lenses import comparison, estimate_kernels
from tta_restore.models import create_model


def test_kernels_are_estimated_where_the_true_ones_are_known():
    """An estimator that knows the true radius everywhere puts each kernel in its place."""
    frame = defocus.defocus_stream([defocus.SOURCE], frames_per_lens=1, size=96, seed=3)[0]
    unit = optics.rms_radius(defocus.SOURCE.pupil)

    class Oracle:
        def __call__(self, x):
            radius = frame.radius[4::8, 4::8][None] * unit
            return SimpleNamespace(radius=radius, statistics=torch.zeros(1, 1))

        def kernels(self, statistics, radius, *, size):
            return optics.rasterize(defocus.SOURCE.pupil, radius / unit, size=size)

    estimated = estimate_kernels(Oracle(), frame.blurry[None], frame.kernels)
    assert estimated.shape == frame.kernels.shape
    assert torch.minimum(estimated, frame.kernels).sum((-2, -1)).mean() > 0.93
    shuffled = estimated.transpose(0, 1)
    assert torch.minimum(shuffled, frame.kernels).sum((-2, -1)).mean() < 0.93


def test_the_lens_estimator_fits_in():
    frame = defocus.defocus_stream([defocus.SOURCE], frames_per_lens=1, size=96, seed=3)[0]
    estimated = estimate_kernels(create_model("lens_estimator").eval(), frame.blurry[None], frame.kernels)
    assert estimated.shape == frame.kernels.shape
    torch.testing.assert_close(estimated.sum((-2, -1)), torch.ones(frame.kernels.shape[:2]))


def test_rows_by_name():
    rows = comparison().only(["specialist + ReblurConsistency"]).contenders
    assert [row.name for row in rows] == ["specialist + ensemble", "specialist + ReblurConsistency"]
    assert isinstance(rows[1].build(0), ReblurConsistency)
