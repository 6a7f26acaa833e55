"""Netpbm files: every kind, every number of bits, and damaged ones in words."""

import numpy as np
import pytest
import torch

from tta_restore.data.io.image import read_image
from tta_restore.data.io.pixels import ImageError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 11, 3), np.uint8)
DEEP = RNG.integers(0, 1024, (6, 11, 3), np.uint16)
BITS = RNG.integers(0, 2, (6, 11), np.uint8)
FLOAT = RNG.random((6, 11, 3), np.float32) * 3


def words(array):
    return " ".join(map(str, array.ravel().tolist())).encode()


CASES = {
    "P1": (b"P1\n# by hand\n11 6\n" + words(BITS).replace(b" ", b""), 1 - BITS, 1, 8),
    "P2": (b"P2 11 6 255 " + words(RGB[..., 0]), RGB[..., 0], 255, 8),
    "P3": (b"P3\n11 6 # size\n1023\n" + words(DEEP), DEEP, 1023, 16),
    "P4": (b"P4 11 6\n" + np.packbits(BITS, axis=1).tobytes(), 1 - BITS, 1, 8),
    "P5": (b"P5 11 6 7\n" + (RGB[..., 0] >> 5).tobytes(), RGB[..., 0] >> 5, 7, 8),
    "P6": (b"P6 11 6 255\n" + RGB.tobytes(), RGB, 255, 8),
    "P6 of 10 bits": (b"P6 11 6 1023\n" + DEEP.astype(">u2").tobytes(), DEEP, 1023, 16),
    "P7": (
        b"P7\nWIDTH 11\nHEIGHT 6\nDEPTH 3\nMAXVAL 1023\nTUPLTYPE RGB\nENDHDR\n" + DEEP.astype(">u2").tobytes(),
        DEEP, 1023, 16,
    ),
    "PF": (b"PF\n11 6\n-1.0\n" + FLOAT[::-1].astype("<f4").tobytes(), FLOAT, 1, 32),
    "Pf": (b"Pf\n11 6\n2.5\n" + FLOAT[::-1, :, 0].astype(">f4").tobytes(), FLOAT[..., 0], 1, 32),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_samples_are_read_with_all_their_bits(kind, tmp_path):
    content, samples, levels, depth = CASES[kind]
    (tmp_path / "a.pnm").write_bytes(content)
    image = read_image(tmp_path / "a.pnm")
    expected = torch.from_numpy(np.atleast_3d(samples).astype(np.float32).transpose(2, 0, 1) / levels)
    assert torch.equal(image.pixels, expected)
    assert image.bit_depth == depth
    assert image.is_linear == (depth == 32)
    assert image.text == {"P1": (("Comment", "by hand"),), "P3": (("Comment", "size"),)}.get(kind, ())


def test_alpha_of_pam_is_kept(tmp_path):
    head = b"P7\nWIDTH 11\nHEIGHT 6\nDEPTH 2\nMAXVAL 255\nTUPLTYPE GRAYSCALE_ALPHA\nENDHDR\n"
    (tmp_path / "a.pam").write_bytes(head + RGB[..., :2].tobytes())
    image = read_image(tmp_path / "a.pam")
    assert torch.equal(image.pixels[0] * 255, torch.from_numpy(RGB[..., 0].astype(np.float32)))
    assert torch.equal((image.alpha[0] * 255).round(), torch.from_numpy(RGB[..., 1].astype(np.float32)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P6 11 6 255", "header is incomplete"),
        (b"P6 x 6 255\n" + bytes(300), "header is incomplete"),
        (b"P6 11 0 255\n" + bytes(300), "declares 11 x 0 pixels"),
        (b"P6 11 6 99999\n" + bytes(900), "samples up to 99999"),
        (b"P6 11 6 255\n" + bytes(100), "truncated PNM: the pixel data ends early"),
        (b"P5 11 6 7\n" + bytes([9] * 66), "a sample of 9, and 7 is the largest"),
        (b"P3 11 6 255\n1 2 3", "truncated PNM: the pixel data ends early"),
        (b"P3 1 1 255\n1 2 x", "a sample that is no number"),
        (b"P3 1 1 255\n1 -2 3", "a negative sample"),
        (b"P6 40000 40000 255\n" + bytes(100), "above the limit"),
        (b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 9\nMAXVAL 255\nENDHDR\n" + bytes(9), "expected gray or RGB"),
        (b"P7\nWIDTH 1\nENDHDR\n", "header is incomplete"),
        (b"PF 1 1 0\n" + bytes(12), "samples up to 0"),
        (b"PF 1 1 -1\n" + b"\0\0\xc0\x7f" * 3, "NaN or infinite"),
    ],
)
def test_damaged_files_are_named(content, message, tmp_path):
    (tmp_path / "a.ppm").write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(tmp_path / "a.ppm")
    assert str(caught.value).startswith(str(tmp_path / "a.ppm"))


@pytest.mark.parametrize(
    "content",
    [b"P6 2 1 255\nabcdef", b"P5 2 1 300\n\0\1\0\2", b"P4 9 2\n" + bytes(4), b"Pf\n2 1\n-1\n" + bytes(8)],
)
def test_images_behind_the_first_one_are_told(content, tmp_path):
    for count, between in ((1, b""), (2, b""), (3, b"\n")):
        (tmp_path / "a.pnm").write_bytes(between.join([content] * count))
        notes = [note for note in read_image(tmp_path / "a.pnm").notes if "several images" in note]
        assert len(notes) == (count > 1)
    (tmp_path / "a.pnm").write_bytes(content + b"\nrest")
    assert not any("several images" in note for note in read_image(tmp_path / "a.pnm").notes)
