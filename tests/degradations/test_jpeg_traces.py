"""Traces of compression: detail across the lines of the blocks, and colors without noise."""

import pytest
import torch
from _degradation_base import seeded

from tta_restore.degradations import Jpeg
from tta_restore.degradations.jpeg_traces import detail_grid, lacks_color

LUMA = torch.tensor([0.299, 0.587, 0.114])


def noise(size, level=0.06, channels=3):
    """Noise around gray, with a tint so that the image has colors."""
    tint = torch.tensor([0.55, 0.5, 0.45]).view(3, 1, 1)
    image = tint + level * torch.randn(channels, size, size, generator=seeded())
    return (image.clamp(0, 1) * 255).round() / 255


def compressed(image, quality):
    jpeg = Jpeg(quality=quality)
    return jpeg.apply(image[None], jpeg.sample(seeded(), 1))[0]


def luma(image):
    return 255 * torch.einsum("chw,c->hw", image, LUMA)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (3, 6)])
def test_detail_across_blocks_shows_the_grid(top, left):
    found, place = detail_grid(luma(compressed(noise(128), 50)[:, top:, left:]))
    assert found == 1
    assert place == ((8 - top) % 8, (8 - left) % 8)


def test_detail_of_other_periods_is_no_grid():
    image = noise(128)
    assert detail_grid(luma(image))[0] == 0
    pairs = image[:, :64, :64].repeat_interleave(2, 1).repeat_interleave(2, 2)  # pixels in pairs
    assert detail_grid(luma(pairs))[0] == 0


def test_few_lines_are_no_proof():
    assert detail_grid(luma(compressed(noise(40), 50)))[0] == 0


def test_color_noise_tells_noise_from_compression():
    image = noise(128)
    assert lacks_color(image) == (False, False)
    assert lacks_color(compressed(image, 90)) == (True, True)
    gray = noise(128, channels=1)  # the tint of three channels, and the same noise in all
    assert lacks_color(gray) == (True, False)  # compression leaves noise in the colors at half their size
    assert lacks_color(compressed(noise(128, 0.03), 96)) == (True, True)
    assert lacks_color(gray.mean(0, keepdim=True).expand(3, -1, -1)) == (False, False)


def test_texture_is_no_noise():
    """Stripes are strong in one direction and have no color; noise is as strong in all."""
    stripes = noise(128, 0.0) + 0.06 * torch.randn(1, 1, 128, generator=seeded())
    grain = noise(128, 0.0) + 0.06 * torch.nn.functional.avg_pool2d(
        torch.randn(1, 132, 132, generator=seeded()), 5, stride=1
    )
    for image in (stripes, 3 * (grain - 0.5) + 0.5):
        assert not lacks_color((image.clamp(0, 1) * 255).round() / 255)[1]
