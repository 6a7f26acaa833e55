"""JPEG XL: the color encoding that a file declares is that of its samples."""

import numpy as np
import pytest
import torch

from tta_restore.data.io.boxes import jpeg_xl_code_stream
from tta_restore.data.io.color import to_srgb
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.jxl import CodeStreamHeader, read_code_stream
from tta_restore.data.io.pixels import Image

imagecodecs = pytest.importorskip("imagecodecs")


def picture(channels=3):
    small = torch.rand(1, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(small, size=(40, 56), mode="bilinear")[0]


@pytest.mark.parametrize("quality", [100, 95])
@pytest.mark.parametrize("depth", [8, 16, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_written_files_declare_what_their_samples_are(channels, has_alpha, depth, quality, tmp_path):
    """The encoder labels deep samples as linear light, which viewers would show far too bright."""
    pixels, alpha = picture(channels), picture(1) if has_alpha else None
    write_image(tmp_path / "a.jxl", Image(pixels, alpha=alpha, bit_depth=depth), quality=quality)
    content = (tmp_path / "a.jxl").read_bytes()
    header = read_code_stream(jpeg_xl_code_stream(content))
    assert (header.width, header.height) == (56, 40)
    decoded = torch.from_numpy(np.array(np.atleast_3d(imagecodecs.jpegxl_decode(content)), np.float32))
    decoded = decoded.permute(2, 0, 1)[:channels] / {8: 255, 16: 65535, 32: 1}[depth]
    declared = to_srgb(Image(decoded, is_linear=header.is_linear)).pixels
    step = {8: 1 / 255, 16: 1 / 65535, 32: 1e-6}[depth]
    assert (declared - pixels).abs().mean() < (step if quality == 100 else 0.02)
    restored = read_image(tmp_path / "a.jxl")
    assert restored.bit_depth == depth
    assert (to_srgb(restored).pixels - pixels).abs().mean() < (step if quality == 100 else 0.02)
    if has_alpha:
        assert (restored.alpha - alpha).abs().max() <= step


def test_linear_files_are_read_as_linear(tmp_path):
    values = picture().permute(1, 2, 0).numpy()
    (tmp_path / "a.jxl").write_bytes(imagecodecs.jpegxl_encode(values, lossless=True))
    image = read_image(tmp_path / "a.jxl")
    assert image.is_linear
    assert torch.equal(image.pixels, picture())


def bits(*fields):
    """Return a code stream whose header has these fields, (value, number of bits) each."""
    number = at = 0
    for value, count in fields:
        number |= value << at
        at += count
    return b"\xff\x0a" + number.to_bytes(at // 8 + 8, "little")


SMALL = ((1, 1), (2, 5), (0, 3), (3, 5))  # 24 rows, 32 columns
PLAIN = ((0, 1), (0, 1), (0, 1), (0, 2), (1, 1), (0, 2), (0, 1))  # no extras, 8 bits, no alpha, not XYB


@pytest.mark.parametrize(
    ("fields", "encoding"),
    [
        (((1, 1),), ""),
        ((*PLAIN, (1, 1)), ""),
        ((*PLAIN, (0, 1), (1, 1)), "a color profile"),
        ((*PLAIN, (0, 1), (0, 1), (0, 2), (1, 2), (2, 2), (9, 4), (0, 1), (2, 2), (11, 4)), "primaries of P3"),
        ((*PLAIN, (0, 1), (0, 1), (0, 2), (1, 2), (1, 2), (0, 1), (2, 2), (6, 4)), "linear light"),
        ((*PLAIN, (0, 1), (0, 1), (0, 2), (1, 2), (2, 2), (7, 4), (0, 1), (2, 2), (14, 4)),
         "primaries of Rec. 2100, PQ"),
        ((*PLAIN, (0, 1), (0, 1), (0, 2), (1, 2), (1, 2), (1, 1), (4545455, 24)), "gamma 2.20"),
    ],
)  # fmt: skip
def test_color_encodings_are_named(fields, encoding):
    header = read_code_stream(bits(*SMALL, *fields))
    assert (header.width, header.height, header.encoding) == (32, 24, encoding)
    assert header.is_linear == (encoding == "linear light")


def test_what_the_reader_of_headers_does_not_know_stays_open():
    animation = ((0, 1), (1, 1), (0, 3), (0, 1), (2, 2))
    assert read_code_stream(bits(*SMALL, *animation)) == CodeStreamHeader(32, 24)
    assert read_code_stream(b"\xff\x0a") is None
    assert jpeg_xl_code_stream(b"no image") == b""
