"""Color profiles of gray images, and those that cannot be used."""

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from PIL import ImageCms

from tta_restore.cli import main
from tta_restore.data.io import color
from tta_restore.data.io.image import read_image
from tta_restore.data.io.pixels import Image

imagecodecs = pytest.importorskip("imagecodecs")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
UNUSABLE = "color profile that cannot be used: the samples are taken for sRGB"


def gray_profile(gamma):
    return bytes(imagecodecs.cms_profile("gray", gamma=gamma))


def test_a_profile_of_gray_images_is_applied():
    pixels = torch.linspace(0, 1, 256).view(1, 16, 16)
    rgb, back = color.to_model_space(Image(pixels, icc=gray_profile(1.0)))
    assert rgb.shape == (3, 16, 16)
    encoded = torch.where(pixels <= 0.0031308, 12.92 * pixels, 1.055 * pixels ** (1 / 2.4) - 0.055)
    torch.testing.assert_close(rgb[:1], encoded, atol=2e-3, rtol=0)
    assert back(rgb).notes == ()
    torch.testing.assert_close(back(rgb).pixels, pixels, atol=1e-6, rtol=0)
    half = back(rgb / 2).pixels  # by the curve, not by the factor
    torch.testing.assert_close(half[0, 15, 15], torch.tensor(0.2140), atol=2e-3, rtol=0)


@pytest.mark.parametrize(("icc", "shape"), [(SRGB, (1, 8, 8)), (SRGB, (3, 8, 8))])
def test_profiles_like_srgb_change_nothing(icc, shape):
    image = Image(torch.rand(shape), icc=icc)
    rgb, back = color.to_model_space(image)
    assert rgb.data_ptr() == image.pixels.data_ptr()
    assert back(rgb).notes == ()


@pytest.mark.parametrize(
    ("icc", "mode"), [(b"no profile" * 20, "L"), (SRGB[:300], "RGB"), (gray_profile(1.8), "RGB"), (b"\0" * 500, "RGB")]
)
def test_a_profile_that_cannot_be_used_is_told_and_kept(icc, mode, tmp_path, capsys):
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    PilImage.fromarray(values).convert(mode).save(tmp_path / "a.png", icc_profile=icc)
    identity = ["--method", "source", "--model", "torch.nn:Identity"]
    assert main(["restore", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), *identity]) == 0
    assert f"note: {tmp_path / 'a.png'}: {UNUSABLE}\n" in capsys.readouterr().err
    assert read_image(tmp_path / "b.png").icc == icc
