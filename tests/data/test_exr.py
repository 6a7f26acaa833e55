"""OpenEXR files of several parts, damaged ones, and alpha."""

import re

import numpy as np
import pytest
import torch

from tta_restore.data.io.image import read_image
from tta_restore.data.io.pixels import ImageError

openexr = pytest.importorskip("OpenEXR")
VALUES = np.random.default_rng(0).random((12, 16, 3), np.float32)


def header(**attributes):
    return {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage, **attributes}


def write(path, *parts):
    """Write parts of a name and channels."""
    openexr.File([openexr.Part(header(name=name), channels) for name, channels in parts]).write(str(path))
    return path


DEPTH = ("depth", {"Z": VALUES[..., 0]})
BEAUTY = ("beauty", {"RGB": VALUES})
LEFT = ("left", {"RGB": VALUES / 2})


@pytest.mark.parametrize(
    ("parts", "note"),
    [
        ((DEPTH, BEAUTY, LEFT), "EXR of 3 parts: beauty is read, the 2 others are left out (depth, left)"),
        ((BEAUTY, DEPTH), "EXR of 2 parts: beauty is read, the other one is left out (depth)"),
    ],
)
def test_the_first_part_with_colors_is_the_image(parts, note, tmp_path):
    image = read_image(write(tmp_path / "a.exr", *parts))
    assert torch.equal(image.pixels, torch.tensor(VALUES).permute(2, 0, 1))
    assert image.notes == (note,)


def test_parts_without_colors_are_named(tmp_path):
    path = write(tmp_path / "a.exr", DEPTH, ("id", {"N": VALUES[..., 0]}))
    with pytest.raises(ImageError, match=r"EXR of 2 parts \(depth, id\): expected one with the channels R, G, B or Y"):
        read_image(path)


def test_every_part_is_there_before_one_is_taken(tmp_path):
    """The library leaves out a damaged part, and the next one would be taken for it."""
    content = write(tmp_path / "a.exr", BEAUTY, LEFT).read_bytes()
    for end in range(1, len(content)):
        if end % 7 == 0:
            (tmp_path / "cut.exr").write_bytes(content[:end])
            with pytest.raises(ImageError):
                read_image(tmp_path / "cut.exr")


@pytest.mark.parametrize("names", [("beauty",), ("beauty", "left")])
def test_what_the_library_prints_about_damage_is_one_error(names, tmp_path, capfd):
    smooth = np.tile(np.linspace(0, 1, 16, dtype=np.float32)[:, None], (12, 1, 3))
    content = bytearray(write(tmp_path / "a.exr", *((name, {"RGB": smooth}) for name in names)).read_bytes())
    at = re.search(rb"x[\x01\x5e\x9c\xda]", content[content.rindex(b"screenWindowWidth") :]).start()  # zlib's header
    at += content.rindex(b"screenWindowWidth")
    content[at + 2 : at + 20] = bytes(18)
    (tmp_path / "a.exr").write_bytes(content)
    with pytest.raises(ImageError, match="a.exr: truncated or damaged EXR"):
        read_image(tmp_path / "a.exr")
    assert capfd.readouterr() == ("", "")


def test_alpha_that_is_no_share_is_told(tmp_path):
    alpha = np.full((12, 16), 0.5, np.float32)
    alpha[0] = 2
    openexr.File(header(), {"RGB": VALUES, "A": alpha}).write(str(tmp_path / "a.exr"))
    image = read_image(tmp_path / "a.exr")
    assert image.notes == ("8.33% of the alpha samples lie outside [0, 1]: clipped",)
    assert image.alpha is not None
    assert image.alpha.unique().tolist() == [0.5, 1]
    alpha[0, 0] = np.nan
    openexr.File(header(), {"RGB": VALUES, "A": alpha}).write(str(tmp_path / "a.exr"))
    with pytest.raises(ImageError, match=re.escape("1 of 768 samples are NaN or infinite")):
        read_image(tmp_path / "a.exr")
