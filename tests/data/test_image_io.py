"""Round trips bit for bit, and one clear line for every kind of bad file."""

from __future__ import annotations

import io
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as PilImage
from PIL import ImageCms, ImageOps

from tta_restore.data.io.atomic import atomic_file
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image, ImageError

imagecodecs = pytest.importorskip("imagecodecs")
RNG = np.random.default_rng(7)
RGB8 = RNG.integers(0, 256, (21, 34, 3), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (21, 34, 3), dtype=np.uint16)
RGBA16 = np.dstack([RGB16, RGB16[..., 1:2]])
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def encoded(array: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    stream = io.BytesIO()
    picture = PilImage.fromarray(array)
    (picture.convert(mode) if mode else picture).save(stream, kind, **options)
    return stream.getvalue()


def tiff(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def integers(image: Image) -> np.ndarray:
    """The samples of a record as they stood in the file. (H, W, C)"""
    planes = image.pixels if image.alpha is None else torch.cat([image.pixels, image.alpha])
    return (planes.double() * (2**image.bit_depth - 1)).round().permute(1, 2, 0).numpy()


def save(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


ROUND_TRIPS = {
    "png 8 rgb": (".png", RGB8, encoded(RGB8, "PNG")),
    "png 8 gray": (".png", RGB8[..., :1], encoded(RGB8[..., 0], "PNG")),
    "png 8 rgba": (".png", np.dstack([RGB8, RGB8[..., :1]]), encoded(np.dstack([RGB8, RGB8[..., :1]]), "PNG")),
    "png 8 gray alpha": (".png", RGB8[..., :2], encoded(np.ascontiguousarray(RGB8[..., :2]), "PNG")),
    "png 16 rgb": (".png", RGB16, imagecodecs.png_encode(RGB16)),
    "png 16 gray": (".png", RGB16[..., :1], imagecodecs.png_encode(np.ascontiguousarray(RGB16[..., 0]))),
    "png 16 rgba": (".png", RGBA16, imagecodecs.png_encode(RGBA16)),
    "tiff 8 rgb": (".tif", RGB8, tiff(RGB8, photometric="rgb")),
    "tiff 8 gray": (".tif", RGB8[..., :1], tiff(RGB8[..., 0], photometric="minisblack")),
    "tiff 16 rgb": (".tiff", RGB16, tiff(RGB16, photometric="rgb")),
    "tiff 16 lzw": (".tiff", RGB16, tiff(RGB16, photometric="rgb", compression="lzw")),
    "tiff 16 planes": (".tif", RGB16, tiff(np.moveaxis(RGB16, -1, 0), photometric="rgb", planarconfig="separate")),
    "tiff 16 big endian": (".tif", RGB16, tiff(RGB16, photometric="rgb", byteorder=">")),
    "tiff 16 bigtiff tiles": (".tif", RGB16, tiff(RGB16, photometric="rgb", bigtiff=True, tile=(16, 16))),
    "tiff 16 rgba": (
        ".tif",
        RGBA16,
        tiff(RGBA16, photometric="rgb", extrasamples=["unassalpha"]),
    ),
    "tiff 8 white is zero": (".tif", 255 - RGB8[..., :1], tiff(RGB8[..., 0], photometric="miniswhite")),
    "tiff 8 white is zero, alpha": (
        ".tif",
        np.dstack([255 - RGB8[..., :1], RGB8[..., 1:2]]),
        tiff(RGB8[..., :2], photometric="miniswhite", planarconfig="contig", extrasamples=["unassalpha"]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_every_bit_survives_reading_and_writing(case, tmp_path):
    suffix, samples, content = ROUND_TRIPS[case]
    image = read_image(save(tmp_path, "source" + suffix, content))
    assert image.bit_depth == samples.dtype.itemsize * 8
    assert image.pixels.dtype == torch.float32
    assert image.pixels.is_contiguous()
    assert float(image.pixels.min()) >= 0
    assert float(image.pixels.max()) <= 1
    np.testing.assert_array_equal(integers(image), samples)
    write_image(tmp_path / ("copy" + suffix), image)
    again = read_image(tmp_path / ("copy" + suffix))
    np.testing.assert_array_equal(integers(again), samples)
    assert again.bit_depth == image.bit_depth


def test_float_tiff_round_trip(tmp_path):
    values = RNG.random((9, 12, 3), dtype=np.float32)
    image = read_image(save(tmp_path, "f.tif", tiff(values, photometric="rgb")))
    assert image.bit_depth == 32
    np.testing.assert_array_equal(image.pixels.permute(1, 2, 0).numpy(), values)
    write_image(tmp_path / "g.tif", image)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "g.tif"), values)


def test_jpeg_round_trip_stays_near_and_color_is_not_subsampled(tmp_path):
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    smooth = np.stack([np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64)), np.full((64, 64), 90, np.uint8)], -1)
    image = read_image(save(tmp_path, "a.jpg", encoded(smooth, "JPEG", quality=95)))
    write_image(tmp_path / "b.jpeg", image)
    again = read_image(tmp_path / "b.jpeg")
    assert (again.pixels - image.pixels).abs().mean() < 1 / 255
    with PilImage.open(tmp_path / "b.jpeg") as picture:
        assert [layer[1:3] for layer in picture.layer] == [(1, 1)] * 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_orientation_is_obeyed_and_written_as_upright(orientation, suffix, tmp_path):
    exif = PilImage.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    path = tmp_path / ("a" + suffix)
    if suffix == ".tif":
        path.write_bytes(tiff(RGB8, photometric="rgb", extratags=[(274, "H", 1, orientation, True)]))
    else:
        options = {"quality": 95} if suffix == ".jpg" else {}
        path.write_bytes(encoded(RGB8, suffix[1:].replace("jpg", "jpeg"), exif=exif, **options))
    with PilImage.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    image = read_image(path)
    np.testing.assert_array_equal(integers(image), expected)
    write_image(tmp_path / ("b" + suffix), image)
    with PilImage.open(tmp_path / ("b" + suffix)) as written:
        assert written.getexif().get(0x0112, 1) == 1
        assert written.size == image.pixels.shape[:0:-1]
        if suffix != ".tif":
            assert written.getexif()[0x010F] == "Maker"


@pytest.mark.parametrize("kind", ["png 8", "png 16", "jpeg", "tiff"])
def test_color_profile_is_carried(kind, tmp_path):
    suffix = {"png 8": ".png", "png 16": ".png", "jpeg": ".jpg", "tiff": ".tif"}[kind]
    image = Image(torch.rand(3, 8, 9), bit_depth=16 if kind == "png 16" else 8, icc=PROFILE)
    write_image(tmp_path / ("a" + suffix), image)
    again = read_image(tmp_path / ("a" + suffix))
    assert again.icc == PROFILE
    write_image(tmp_path / ("b" + suffix), again)
    assert read_image(tmp_path / ("b" + suffix)).icc == PROFILE


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("depth", [8, 16])
def test_exif_is_carried_with_its_nested_blocks(tmp_path, suffix, depth):
    exif = PilImage.Exif()
    exif[0x010F] = "Maker"
    exif[0x0112] = 1
    exif.get_ifd(0x8769)[0x829A] = 0.01  # exposure time, in the nested block
    exif.get_ifd(0x8825)[1] = "N"
    samples = RNG.integers(0, 2**depth, (8, 9, 3))
    pixels = torch.from_numpy(samples).permute(2, 0, 1) / (2**depth - 1)
    write_image(tmp_path / ("a" + suffix), Image(pixels, bit_depth=depth, exif=exif.tobytes(), icc=PROFILE))
    with PilImage.open(io.BytesIO(encoded(RGB8, "PNG", exif=read_image(tmp_path / ("a" + suffix)).exif))) as picture:
        assert picture.getexif()[0x010F] == "Maker"
    for other in (".tif", ".png", ".tif"):  # from TIFF to TIFF, and through another format
        write_image(tmp_path / ("b" + other), read_image(tmp_path / ("a" + suffix)))
        again, suffix = read_image(tmp_path / ("b" + other)), other
        (tmp_path / ("b" + other)).rename(tmp_path / ("a" + other))
    carried = PilImage.Exif()
    carried.load(again.exif)
    assert carried[0x010F] == "Maker"
    assert carried.get_ifd(0x8769)[0x829A] == pytest.approx(0.01)
    assert carried.get_ifd(0x8825)[1] == "N"
    assert np.array_equal(integers(again), samples)
    assert again.icc == PROFILE


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_of_tiff_files_by_others(tmp_path, order):
    save(tmp_path, "a.tif", tiff(RGB16, byteorder=order, extratags=[(0x0110, "s", 0, "Model", True)], software="maker"))
    image = read_image(tmp_path / "a.tif")
    write_image(tmp_path / "b.tif", image)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.pages[0].tags["Model"].value == "Model"
        assert file.pages[0].tags["Software"].value == "maker"
        assert np.array_equal(file.pages[0].asarray(), RGB16)
        assert len(file.pages) == 1
    save(tmp_path, "plain.tif", tiff(RGB16, software=False, metadata=None))
    assert read_image(tmp_path / "plain.tif").exif is None


def test_damaged_exif_is_left_out_with_a_note(tmp_path):
    path = save(tmp_path, "a.jpg", encoded(RGB8, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"))
    image = read_image(path)
    assert image.pixels.shape == (3, 21, 34)
    assert image.exif is None
    assert image.notes == ("unreadable EXIF block: left out",)


def test_palette_one_bit_and_transparent_color(tmp_path):
    quantized = PilImage.fromarray(RGB8).quantize(16)
    stream = io.BytesIO()
    quantized.save(stream, "PNG", transparency=3)
    image = read_image(save(tmp_path, "p.png", stream.getvalue()))
    opaque = np.where(np.asarray(quantized) == 3, 0, 255)
    np.testing.assert_array_equal(integers(image), np.dstack([np.asarray(quantized.convert("RGB")), opaque]))
    assert image.notes == ("palette image: read as RGB",)

    image = read_image(save(tmp_path, "one.png", encoded(RGB8, "PNG", mode="1")))
    assert set(image.pixels.unique().tolist()) == {0.0, 1.0}
    assert image.notes == ("1-bit image: read as 8-bit gray",)

    key = tuple(int(v) for v in RGB8[4, 5])
    image = read_image(save(tmp_path, "key.png", encoded(RGB8, "PNG", transparency=key)))
    assert image.alpha[0, 4, 5] == 0
    assert image.alpha.sum() == RGB8.shape[0] * RGB8.shape[1] - (np.array(key) == RGB8).all(-1).sum()


def test_palette_tiff_becomes_rgb(tmp_path):
    colormap = (RNG.integers(0, 256, (3, 256)) * 257).astype(np.uint16)
    content = tiff(RGB8[..., 0], photometric="palette", colormap=colormap)
    image = read_image(save(tmp_path, "p.tif", content))
    assert image.bit_depth == 8
    np.testing.assert_array_equal(integers(image), (colormap // 257).T[RGB8[..., 0]])
    two = (colormap.reshape(3, 2, 128)[..., 0]).copy()
    gray, palette = struct.pack("<HHII", 262, 3, 1, 1), struct.pack("<HHII", 262, 3, 1, 3)
    bits = RGB8[..., 0] > 99
    content = tiff(bits, photometric="minisblack", extratags=[(320, "H", 6, two.ravel(), True)]).replace(gray, palette)
    np.testing.assert_array_equal(integers(read_image(save(tmp_path, "b.tif", content))), (two // 257).T[bits * 1])
    options = {"planarconfig": "contig", "extrasamples": ["unassalpha"]}
    content = tiff(RGB8[..., :2], photometric="minisblack", extratags=[(320, "H", 768, colormap.ravel(), 1)], **options)
    image = read_image(save(tmp_path, "pa.tif", content.replace(gray, palette)))  # tifffile writes no alpha here
    np.testing.assert_array_equal(integers(image)[..., 3], RGB8[..., 1])
    np.testing.assert_array_equal(integers(image)[..., :3], (colormap // 257).T[RGB8[..., 0]])


def test_premultiplied_alpha_and_resolution_survive_a_tiff(tmp_path):
    rgba = np.dstack([RGB16 // 2, RGB16[..., 1:2]])
    content = tiff(rgba, photometric="rgb", extrasamples=["assocalpha"], resolution=(300, 150), resolutionunit=3)
    image = read_image(save(tmp_path, "a.tif", content))
    assert image.premultiplied
    write_image(tmp_path / "b.tif", image)
    again = read_image(tmp_path / "b.tif")
    assert again.premultiplied
    assert again.resolution == (300, 150, 3)
    with pytest.raises(ImageError, match="premultiplied"):
        write_image(tmp_path / "b.png", image)


def bad_files() -> dict[str, tuple[str, bytes, str]]:
    png8, jpeg = encoded(RGB8, "PNG"), encoded(RGB8, "JPEG")
    png16, lzw = imagecodecs.png_encode(RGB16), tiff(RGB16, photometric="rgb", compression="lzw")
    raw = tiff(RGB16, photometric="rgb")
    nan = RGB8.astype(np.float32) / 255
    nan[2, 3, 1] = np.nan
    flipped = bytearray(png16)
    flipped[len(flipped) // 2] ^= 0xFF
    return {
        "empty": ("a.png", b"", "empty file"),
        "text": ("a.png", b"these are not pixels", "not an image of a known format"),
        "png signature only": ("a.png", png8[:8], "its header is incomplete"),
        "png half": ("a.png", png8[: len(png8) // 2], "truncated or damaged PNG"),
        "png16 half": ("a.png", png16[: len(png16) // 2], "truncated or damaged PNG"),
        "png16 damaged": ("a.png", bytes(flipped), "truncated or damaged PNG"),
        "jpeg start only": ("a.jpg", jpeg[:3], "its header is incomplete"),
        "jpeg half": ("a.jpg", jpeg[: len(jpeg) // 2], "truncated or damaged JPEG"),
        "tiff header only": ("a.tif", raw[:8], "truncated"),
        "tiff start only": ("a.tif", raw[:4], "truncated"),
        "tiff raw half": ("a.tif", raw[: len(raw) // 2], "truncated TIFF"),
        "tiff lzw half": ("a.tif", lzw[: len(lzw) // 2], "truncated TIFF"),
        "tiff lzw end missing": ("a.tif", lzw[:-5], "truncated TIFF"),
        "tiff lab": ("a.tif", tiff(RGB8, photometric="cielab"), "color model CIELAB"),
        "tiff nan": ("a.tif", tiff(nan, photometric="rgb"), "1 of 2142 samples are NaN or infinite"),
        "tiff above one": ("a.tif", tiff(RGB8.astype(np.float32), photometric="rgb"), r"values in \[0, 1\]"),
        "tiff integers": ("a.tif", tiff(RGB16.astype(np.int32), photometric="rgb"), "samples of type int32"),
    }  # fmt: skip


BAD = bad_files()


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_clear_line(case, tmp_path, caplog, capfd):
    name, content, reason = BAD[case]
    path = save(tmp_path, name, content)
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ImageError, match="no such file or directory"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="is a directory"):
        read_image(tmp_path)


def test_every_prefix_of_a_file_is_refused_or_complete(tmp_path):
    """Whatever the length a copy broke off at: one line, or all the pixels, never half of them."""
    for name, content, samples in (
        ("a.png", encoded(RGB8, "PNG"), RGB8),
        ("b.png", imagecodecs.png_encode(RGB16), RGB16),
        ("c.tif", tiff(RGB16, photometric="rgb", compression="lzw"), RGB16),
        ("d.tif", tiff(RGB16, photometric="rgb"), RGB16),
    ):
        for length in range(0, len(content), 97):
            path = save(tmp_path, name, content[:length])
            try:
                image = read_image(path)
            except ImageError as error:
                assert "\n" not in str(error)  # noqa: PT017
            else:
                np.testing.assert_array_equal(integers(image), samples)


def test_16_bits_are_never_cut_silently(tmp_path, monkeypatch):
    image = Image(torch.rand(3, 8, 8), bit_depth=16)
    with pytest.raises(ImageError, match="JPEG holds 8 bits, the image has 16"):
        write_image(tmp_path / "a.jpg", image)
    write_image(tmp_path / "a.jpg", image, bit_depth=8)
    path = save(tmp_path, "a.png", imagecodecs.png_encode(RGB16))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ImageError, match=r"needs imagecodecs: pip install 'tta-restore\[io\]'"):
        read_image(path)
    with pytest.raises(ImageError, match="needs imagecodecs"):
        write_image(tmp_path / "b.png", image)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImageError, match="needs tifffile"):
        read_image(save(tmp_path, "a.tif", tiff(RGB8, photometric="rgb")))
    assert read_image(save(tmp_path, "c.png", encoded(RGB8, "PNG"))).bit_depth == 8


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    image = Image(torch.rand(3, 8, 8), alpha=torch.ones(1, 8, 8))
    with pytest.raises(ImageError, match="JPEG cannot hold alpha"):
        write_image(tmp_path / "a.jpg", image)
    with pytest.raises(ImageError, match="PNG holds 8 or 16 bits"):
        write_image(tmp_path / "a.png", image, bit_depth=32)
    with pytest.raises(ImageError, match="bit depth of 8, 16 or 32"):
        write_image(tmp_path / "a.png", image, bit_depth=12)
    with pytest.raises(ImageError, match=r"suffixes \.png"):
        write_image(tmp_path / "a.gif", image)
    broken = Image(torch.full((3, 8, 8), torch.nan))
    with pytest.raises(ImageError, match="NaN or infinity"):
        write_image(tmp_path / "a.png", broken)
    assert list(tmp_path.iterdir()) == []


def test_values_are_rounded_and_clamped(tmp_path):
    values = torch.tensor([-0.5, 0.0, 0.5 / 255 - 1e-4, 0.5 / 255 + 1e-4, 1.0, 1.7]).view(1, 1, 6)
    write_image(tmp_path / "a.png", Image(values))
    assert integers(read_image(tmp_path / "a.png")).ravel().tolist() == [0, 0, 0, 1, 255, 255]


def test_a_bare_tensor_is_refused_in_words(tmp_path):
    with pytest.raises(TypeError, match=r"write_image: expected image to be an Image, .* got Tensor"):
        write_image(tmp_path / "a.png", torch.zeros(3, 4, 6))


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def die() -> None:
        with atomic_file(path) as partial:
            partial.write_bytes(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        die()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_overwritten(tmp_path):
    (tmp_path / ".a.txt.partial").write_text("half a file, longer than the next one")
    with atomic_file(tmp_path / "a.txt") as partial:
        partial.write_text("whole")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_writers_of_one_file_take_turns(tmp_path):
    inside, most = 0, 0

    def write(number):
        nonlocal inside, most
        with atomic_file(tmp_path / "a.txt") as partial, open(partial, "w") as file:
            inside += 1
            most = max(most, inside)
            for _ in range(20):
                file.write(str(number))
                file.flush()
                time.sleep(0.0005)
            inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(8)))
    assert most == 1
    assert (tmp_path / "a.txt").read_text() in {str(number) * 20 for number in range(8)}
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_path_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match="cannot be written"):
        write_image(tmp_path / "file" / "a.png", Image(torch.rand(3, 4, 4)))


def test_gray_goes_through_rgb_and_back_and_alpha_follows_a_scale():
    image = Image(torch.rand(1, 4, 6), alpha=torch.rand(1, 4, 6))
    assert image.as_rgb().shape == (3, 4, 6)
    assert torch.equal(image.with_rgb(image.as_rgb()).pixels, image.pixels.expand(3, -1, -1).mean(0, keepdim=True))
    doubled = image.with_rgb(torch.rand(3, 8, 12))
    assert doubled.pixels.shape == doubled.alpha.shape == (1, 8, 12)
    for shape in ((3, 8, 18), (3, 3, 6), (1, 4, 6)):
        with pytest.raises(ValueError, match="with_rgb: expected shape"):
            image.with_rgb(torch.rand(shape))
    with pytest.raises(ValueError, match="expected pixels of shape"):
        Image(torch.rand(2, 4, 6))
    with pytest.raises(ValueError, match="expected alpha of shape"):
        Image(torch.rand(3, 4, 6), alpha=torch.rand(1, 4, 5))


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
@pytest.mark.parametrize(("photometric", "orientation"), [(0, 1), (1, 6)])
def test_fax_codes_are_read_by_pillow(compression, photometric, orientation, tmp_path, monkeypatch):
    # imagecodecs 2026.3.6 leaves rows of some whole pages white, such as testfax4.tiff of libtiff
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda page: pytest.fail("read by tifffile"))
    bits = RNG.random((20, 70)) < 0.5
    tags = {262: photometric, 274: orientation}
    PilImage.fromarray(bits).save(tmp_path / "a.tif", "TIFF", compression=compression, tiffinfo=tags)
    expected = np.rot90(bits, -1) if orientation == 6 else bits
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels[0].numpy(), expected)
