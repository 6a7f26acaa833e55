"""Photographs by name and from files."""

import pytest
import torch

from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.data.synthetic import photos


@pytest.mark.parametrize(("size", "loaded"), [((700, 1050), (512, 768)), ((300, 260), (300, 260))])
def test_a_file_is_shrunk_to_the_size_of_the_bundled_ones(size, loaded, tmp_path):
    ramp = torch.linspace(0, 1, size[1]).expand(3, *size)
    write_image(tmp_path / "ramp.png", Image(ramp))
    found = photos.load(tmp_path / "ramp.png")
    assert found.shape == (3, *loaded)
    torch.testing.assert_close(found, torch.linspace(0, 1, loaded[1]).expand(3, *loaded), atol=4e-3, rtol=0)


def test_photographs_are_split_once():
    names = photos.TRAIN + photos.DEV + photos.TEST
    assert len(set(names)) == len(names)
    assert len(photos.TEST) >= 6
    for name in names:
        photo = photos.load(name)
        assert photo.shape[0] == 3
        assert photo.dtype == torch.float32
        assert photo.max() <= 1
        assert photo.std() > 0.02
    with pytest.raises(ValueError, match="expected one of"):
        photos.load("lena")


@pytest.mark.thorough
def test_pictures_read_without_their_package_are_those_of_its_loader():
    from sklearn.datasets import load_sample_image

    for name in ("china", "flower"):
        expected = torch.from_numpy(load_sample_image(f"{name}.jpg").copy()).permute(2, 0, 1) / 255
        assert torch.equal(photos.load(name), expected)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="sklearn"):
        photos.load.__wrapped__("china")
