"""Blind JPEG reading: the quality and the grid, exactly, and nothing where there was no JPEG."""

import pytest
import torch
import torch.nn.functional as F
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


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("quality", [12, 60, 90])
def test_the_quality_of_turned_images_is_read(turns, quality):
    """Cameras store portraits sideways: upright, the table of their steps is transposed."""
    image = compressed(photos.load("gravel")[:, 40:232, 60:244], quality)
    found = estimate_jpeg(image.rot90(turns, (-2, -1)))
    assert (found.probability, found.quality) == (1.0, quality)
    steps, upright = found.tables, estimate_jpeg(image).tables
    assert torch.equal(steps, upright if turns == 2 else upright.view(2, 8, 8).mT.flatten(1))


@pytest.mark.thorough
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


def _smooth(side=112):
    """Soft hills with the saturated colors of a sunset."""
    coarse = torch.rand(1, 3, 5, 5, generator=seeded()) * torch.tensor([1.0, 0.6, 0.4]).view(1, 3, 1, 1)
    image = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)[0] * 0.8
    return (image.clamp(0, 1) * 255).round() / 255


@pytest.mark.parametrize("quality", [10, 30, 60, 85])
def test_smooth_images_are_recognized_by_few_coefficients_or_by_their_grid(quality):
    assert estimate_jpeg(_smooth()).probability == 0
    found = estimate_jpeg(compressed(_smooth(), quality))
    assert found.probability > 0.5
    assert abs(found.quality - quality) <= 2
    assert found.offset == (0, 0)


def test_clipped_colors_do_not_hide_the_lattice():
    image = photos.load("grace_hopper")[:, 40:152, 60:172].clone()
    image = ((image - 0.35) * 2.2).clamp(0, 1)  # some value of nearly every block is clipped
    noisy = Noise(8 / 255).apply(image[None], Noise(8 / 255).sample(seeded(), 1), seeded())[0]
    blocks = (compressed(noisy, 40) <= 0).any(0).unfold(0, 8, 8).unfold(1, 8, 8).any(-1).any(-1)
    assert blocks.float().mean() > 0.5
    found = estimate_jpeg(compressed(noisy, 40))
    assert found.probability == 1
    assert abs(found.quality - 40) <= 1  # clipping moves some coefficients


def test_lattices_are_read_where_every_block_is_clipped():
    image = _smooth() * torch.tensor([0.3, 0.3, 0.0]).view(3, 1, 1) + torch.tensor([0.4, 0.3, 0.0]).view(3, 1, 1)
    noisy = Noise(5 / 255).apply(image[None], Noise(5 / 255).sample(seeded(), 1), seeded())[0]
    image = compressed(noisy, 85)
    clipped = ((image <= 0) | (image >= 1)).any(0).unfold(0, 8, 8).unfold(1, 8, 8).flatten(2).any(-1)
    assert clipped.all()
    found = estimate_jpeg(image)
    assert found.probability == 1
    assert abs(found.quality - 85) <= 1


@pytest.mark.parametrize("quality", [60, 80, 92])
@pytest.mark.parametrize("level", [0.03, 0.97])
def test_noise_near_black_and_white_shows_compression(level, quality):
    """Every block is clipped and full of noise, so that no coefficient lies on the lattice."""
    image = (_smooth() * 0.05 + level - 0.025)[None]
    noisy = Noise(30 / 255).apply(image, Noise(30 / 255).sample(seeded(), 1), seeded())
    plain = Quantize().apply(noisy.clamp(0, 1), Quantize().sample(seeded(), 1))[0]
    assert estimate_jpeg(plain).probability == 0
    found = estimate_jpeg(compressed(plain, quality))
    assert found.probability == 1
    assert abs(found.quality - quality) <= 15
    after = Noise(5 / 255).apply(compressed(plain, quality)[None], Noise(5 / 255).sample(seeded(), 1), seeded())[0]
    assert estimate_jpeg(after).probability == 0


@pytest.mark.thorough
def test_gray_noise_in_gray_images_is_no_sign_of_compression():
    noise = Noise(20 / 255)
    image = noise.apply(photos.load("moon")[None, :1, :128, :128], noise.sample(seeded(), 1), seeded())
    image = (image.clamp(0, 1) * 255).round() / 255
    assert estimate_jpeg(image[0].expand(3, -1, -1)).probability == 0
    assert estimate_jpeg(image[0]).probability == 0


def test_the_pattern_of_a_color_filter_is_no_grid():
    """Detail that repeats after two pixels, and gray texture, are not those of blocks."""
    image = photos.load("gravel")[:, :192, :192].clone()
    image[:, ::2] *= 0.97
    image[:, :, ::2] *= 0.97
    assert estimate_jpeg((image * 255).round() / 255).probability == 0


@pytest.mark.thorough
def test_small_and_periodic_images_are_no_proof_of_a_grid():
    side = torch.arange(112)
    tiles = ((side[:, None] // 5 + side // 7) % 2).float()[None].expand(3, -1, -1) * 0.5 + 0.2
    assert estimate_jpeg(tiles).probability == 0
    moon = photos.load("moon")
    for top in range(0, 480, 64):
        for left in range(0, 480, 64):
            assert estimate_jpeg(moon[:, top : top + 32, left : left + 32]).probability == 0
