"""JPEG: the encoder's pixels, the encoder's tables."""

import io

import numpy as np
import pytest
import torch
from _degradation_base import DegradationTests, seeded
from PIL import Image

from tta_restore.degradations import Jpeg, file_tables, quality_tables, tables_quality


class TestJpeg(DegradationTests):
    def degradations(self):
        tables = quality_tables(torch.tensor([42.0]))[0]
        return [Jpeg(), Jpeg(tables=tables, subsampling="4:4:4"), Jpeg(prob=0.5, subsampling=("4:2:2", "4:2:0"))]

    def bad(self):
        return [
            ({"quality": 0}, ValueError, "Jpeg: expected quality"),
            ({"prob": 1.5}, ValueError, "Jpeg: expected prob"),
            ({"subsampling": "4:1:1"}, ValueError, "Jpeg: expected subsampling to be one of"),
            ({"tables": torch.ones(64)}, ValueError, r"Jpeg: expected tables of shape \(2, 64\)"),
        ]


def by_pillow(image, quality, subsampling):
    array = (image * 255).round().byte().permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", quality=quality, subsampling=subsampling)
    opened = Image.open(stream)
    return torch.from_numpy(np.array(opened)).permute(2, 0, 1).float() / 255, opened.quantization


@pytest.mark.parametrize("quality", [5, 20, 49, 50, 75, 93, 100])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_pixels_and_tables_are_those_of_pillow(quality, subsampling):
    image = torch.rand(1, 3, 40, 56, generator=seeded())
    expected, quantization = by_pillow(image[0], quality, subsampling)
    jpeg = Jpeg(quality=quality, subsampling=subsampling)
    parameters = jpeg.sample(seeded(), 1)
    assert torch.equal(jpeg.apply(image, parameters)[0], expected)
    assert torch.equal(file_tables(quantization), parameters.tables[0])
    assert tables_quality(parameters.tables[0]) == quality
    assert parameters.quality.tolist() == [quality]


def test_tables_of_a_file_are_used_as_they_are():
    tables = torch.stack([torch.arange(3, 67), torch.arange(5, 69)])
    image = torch.rand(1, 3, 16, 16, generator=seeded())
    pixels = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", qtables=tables.tolist(), subsampling=0)
    opened = Image.open(stream)
    assert torch.equal(file_tables(opened.quantization), tables)
    jpeg = Jpeg(tables=tables, subsampling="4:4:4")
    expected = torch.from_numpy(np.array(opened)).permute(2, 0, 1).float() / 255
    assert torch.equal(jpeg.apply(image, jpeg.sample(seeded(), 1))[0], expected)


def test_images_that_are_not_compressed_stay_as_they_are():
    images = torch.rand(8, 3, 16, 16, generator=seeded())
    jpeg = Jpeg(quality=10, prob=0.5)
    parameters = jpeg.sample(seeded(1), 8)
    out = jpeg.apply(images, parameters)
    changed = [not torch.equal(a, b) for a, b in zip(images, out, strict=True)]
    assert changed == [bool(value) for value in parameters.applied]
    assert 0 < sum(changed) < 8
    assert (parameters.quality[parameters.applied == 0] == 100).all()


def test_gray_images_stay_gray_and_other_channels_are_refused():
    jpeg = Jpeg()
    parameters = jpeg.sample(seeded(), 1)
    assert jpeg.apply(torch.rand(1, 1, 16, 16), parameters).shape == (1, 1, 16, 16)
    with pytest.raises(ValueError, match="C = 1 or 3"):
        jpeg.apply(torch.rand(1, 2, 16, 16), parameters)


def test_lower_quality_is_farther():
    parameters = [Jpeg(quality=value).sample(seeded(), 1) for value in (90.0, 50.0, 10.0)]
    near, far = (float(Jpeg().distance(parameters[0], other)) for other in parameters[1:])
    assert 0 < near < far
