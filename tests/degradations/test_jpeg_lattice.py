"""Blind JPEG reading: the quality and the grid, exactly, and nothing where there was no JPEG."""

import pytest
import torch
from _degradation_base import seeded

from tta_restore.data.synthetic import dead_leaves, photos
from tta_restore.degradations import Jpeg, Noise, Quantize, Resize
from tta_restore.degradations.jpeg_lattice import estimate_jpeg


def compressed(image, quality, subsampling="4:2:0"):
    jpeg = Jpeg(quality=quality, subsampling=subsampling)
    return jpeg.apply(image[None], jpeg.sample(seeded(), 1))[0]


@pytest.mark.parametrize("quality", [8, 20, 50, 75, 90, 95])
@pytest.mark.parametrize("name", ["gravel", "grace_hopper"])
def test_quality_and_grid_are_read(name, quality):
    image = photos.load(name)[:, 40:232, 60:252]
    found = estimate_jpeg(compressed(image, quality))
    assert (found.probability, found.quality, found.offset) == (1.0, quality, (0, 0))
    cropped = estimate_jpeg(compressed(image, quality)[:, 3:, 6:])
    assert (cropped.quality, cropped.offset) == (quality, (5, 2))


def test_files_that_never_were_compressed_have_no_lattice():
    leaves = dead_leaves.bank(2, 128, seeded())
    quantize = Quantize()
    for image in (*quantize.apply(leaves, quantize.sample(seeded(), 2)), photos.load("gravel")[:, :128, :128]):
        found = estimate_jpeg(image)
        assert found.probability == 0
        assert found.quality == 100


@pytest.mark.parametrize("change", [Noise(3 / 255), Resize(1.5)], ids=["noise", "resize"])
def test_what_was_changed_since_is_not_mistaken(change):
    image = compressed(photos.load("gravel")[:, :192, :192], 50)[None]
    assert estimate_jpeg(change.apply(image, change.sample(seeded(), 1), seeded())[0]).probability == 0


def test_gray_and_flat_images():
    image = photos.load("gravel")[:1, :128, :128]
    assert estimate_jpeg(compressed(image, 60)).quality == 60
    assert estimate_jpeg(torch.full((3, 64, 64), 0.5)).probability == 0
    with pytest.raises(ValueError, match="estimate_jpeg: expected image"):
        estimate_jpeg(torch.rand(3, 8, 64))
