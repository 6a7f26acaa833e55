"""What frames say of their lens: where they are read, which radii are drawn, how apertures differ."""

import pytest
import torch

from tta_restore.adapters.methods.psf_tracking import aperture_distance, radii_of
from tta_restore.models.defocus.estimator import frame_crops


def test_unsure_readings_are_drawn_less_often_and_never_believed_to_be_off_without_end():
    generator = torch.Generator().manual_seed(0)
    reading = {"radii": torch.tensor([[1.0, 1.0], [2.0, 2.0]]), "weights": torch.tensor([8.0, 1e-3])}
    radii, error = radii_of([reading], generator)
    assert (radii[:, 0] == 1).float().mean() > 0.95
    assert torch.equal(error[radii[:, 0] == 1], torch.full_like(error[radii[:, 0] == 1], 1 / 8))
    reading["weights"] = torch.zeros(2) + 1e-3
    assert radii_of([reading], generator)[1].max() == 1.0


def test_aperture_distance():
    disk, ring = torch.rand(5, 5), torch.zeros(5, 5)
    ring[0, 0] = 1.0
    disk[0, 0] = 0.0
    assert aperture_distance(disk, disk) == 0
    assert aperture_distance(disk, ring) == pytest.approx(2.0)


def test_large_frames_are_read_in_nine_places():
    assert frame_crops(torch.rand(1, 3, 700, 500)).shape == (1, 3, 700, 500)
    assert frame_crops(torch.rand(2, 3, 1000, 1200)).shape == (18, 3, 256, 256)
    assert frame_crops(torch.rand(1, 3, 100, 1200)).shape == (9, 3, 100, 256)
