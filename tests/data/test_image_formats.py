"""Image formats beyond PNG, JPEG and TIFF, what files carry next to their samples, and files that want to do harm."""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as PilImage
from PIL import ImageCms

from tta_restore.data.io import boxes, color, jpeg, png
from tta_restore.data.io.formats import detect_format
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import FORMATS, write_image
from tta_restore.data.io.pixels import Image, ImageError

imagecodecs = pytest.importorskip("imagecodecs")
Y, X = np.mgrid[0:24, 0:32]
VALUES = np.stack([(np.sin(X / 5 + c) + np.cos(Y / 4)) / 4 + 0.5 for c in range(3)], -1).clip(0, 1)
RGB8 = (VALUES * 255).round().astype(np.uint8)
RGB16 = (VALUES * 65535).round().astype(np.uint16)
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>Rating 5</x:xmpmeta>"


def pillow(kind, mode=None, array=RGB8, **options):
    stream = io.BytesIO()
    picture = PilImage.fromarray(array)
    (picture.convert(mode) if mode else picture).save(stream, kind, **options)
    return stream.getvalue()


def two(mode):
    return {"save_all": True, "append_images": [PilImage.new(mode, (32, 24))]}


# What Pillow does not write: a ramp by cjpeg -arithmetic, and 8 x 16 gray pixels by avifenc -d 10 --irot 1
ARITHMETIC = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0Hyc5PTgy"
    "PC4zNDL/yQALCAAIAAgBAREA/8wABgAQEAX/2gAIAQEAAD8A7oj1IBOgBj3w/9k="
)
TURNED = (
    "AAAAHGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZgAAAPptZXRhAAAAAAAAAChoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAbGliYXZpZgAAAAAO"
    "cGl0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAEeAAAAIAAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEAAGF2MDFDb2xvcgAAAABy"
    "aXBycAAAAFJpcGNvAAAAFGlzcGUAAAAAAAAAEAAAAAgAAAAOcGl4aQAAAAABCgAAAAxhdjFDgQBcAAAAABNjb2xybmNseAABAA0ABoAAAAAJaXJv"
    "dAEAAAAYaXBtYQAAAAAAAAABAAEFAQKDBIUAAAAobWRhdBIACggYDL+xwENBqDISE8AUUUC57ozMYF4IxUM3HRPc"
)


def error(image):
    return (image.pixels.permute(1, 2, 0) - torch.tensor(VALUES)).abs().mean().item()


def exr(values, **options):
    openexr = pytest.importorskip("OpenEXR")
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
        openexr.File(header, {"RGB": values.astype(np.float32), **options}).write(f"{folder}/a.exr")
        with open(f"{folder}/a.exr", "rb") as file:
            return file.read()


def heic(array=None):
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    if array is None:
        file = pillow_heif.from_pillow(PilImage.fromarray(RGB8))
    else:
        file = pillow_heif.from_bytes(mode="RGB;16", size=array.shape[1::-1], data=array.tobytes())
    file.save(stream, quality=95)
    return stream.getvalue()


READ = {
    "webp": (lambda: pillow("WEBP", quality=100, lossless=True), 8, 0.002, ""),
    "avif": (lambda: pillow("AVIF", quality=95, subsampling="4:4:4"), 8, 0.01, ""),
    "avif 10": (lambda: imagecodecs.avif_encode(RGB16 >> 6, level=95, bitspersample=10), 16, 0.003, ""),
    "jxl": (lambda: imagecodecs.jpegxl_encode(RGB8, lossless=True), 8, 0.002, ""),
    "jxl 16": (lambda: imagecodecs.jpegxl_encode(RGB16, lossless=True), 16, 1e-5, ""),
    "jp2": (lambda: imagecodecs.jpeg2k_encode(RGB8, level=0), 8, 0.002, ""),
    "bmp": (lambda: pillow("BMP"), 8, 0.002, ""),
    "ppm": (lambda: pillow("PPM"), 8, 0.002, ""),
    "gif": (lambda: pillow("GIF", "P"), 8, 0.1, ""),
    "gif of two": (lambda: pillow("GIF", "P", **two("P")), 8, 0.1, "GIF of 2 images"),
    "mpo": (lambda: pillow("MPO", quality=95, **two("RGB")), 8, 0.01, "MPO of 2 images"),
    "cmyk jpeg": (lambda: pillow("JPEG", "CMYK", quality=98), 8, 0.01, "converted to sRGB as ideal inks"),
    "heic": (heic, 8, 0.02, ""),
    "heic 10": (lambda: heic(RGB16), 16, 0.02, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_formats_are_read_by_content(case, tmp_path):
    make, depth, tolerance, note = READ[case]
    path = tmp_path / "photo.dat"
    path.write_bytes(make())
    image = read_image(path)
    assert image.bit_depth == depth
    assert image.pixels.shape == (3, 24, 32)
    assert error(image) < tolerance
    assert (note in " ".join(image.notes)) if note else not image.notes


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_written_and_read_again(kind, tmp_path):
    pytest.importorskip("OpenEXR")
    exif = PilImage.Exif()
    exif[0x010F] = "Maker"
    image = Image(torch.tensor(VALUES).permute(2, 0, 1).float(), exif=exif.tobytes(), xmp=XMP)
    path = tmp_path / f"a{FORMATS[kind][0]}"
    notes = write_image(path, image, quality=98)
    again = read_image(path)
    rgb, _ = color.to_model_space(again)
    assert (rgb - image.pixels).abs().mean() < 0.01
    if kind == "exr":
        assert ("EXIF" in notes[0], "XMP" in notes[1]) == (True, True)
    else:
        assert again.xmp == XMP
        assert b"Maker" in again.exif
    if kind not in ("exr", "jpeg"):
        write_image(path, image, quality=98, strip=True)
        assert (read_image(path).exif, read_image(path).xmp) == (None, None)


def test_twelve_bits_are_not_taken_for_sixteen(tmp_path):
    """Scaled by the largest value of 12 bits; as 16 bits the image would be sixteen times darker."""
    content = imagecodecs.jpeg2k_encode(RGB16 >> 4, level=0, bitspersample=12)
    (tmp_path / "a.jp2").write_bytes(content)
    assert error(read_image(tmp_path / "a.jp2")) < 0.001
    stream = io.BytesIO()
    tifffile.imwrite(stream, RGB16[..., 0] >> 4, photometric="minisblack")
    content = bytearray(stream.getvalue())
    at = content.index(struct.pack("<HHI", 258, 3, 1))
    content[at + 8 : at + 10] = struct.pack("<H", 12)
    (tmp_path / "a.tif").write_bytes(content)
    try:
        image = read_image(tmp_path / "a.tif")
    except ImageError:
        return  # 12 bits in words of 16 are no valid packing for this reader
    assert image.pixels.max() > 0.5


def test_the_image_of_a_tiff_is_the_page_that_is_no_reduced_copy(tmp_path):
    for name, order in (("last", ((RGB16, 0), (RGB8[:6, :8], 1))), ("first", ((RGB8[:6, :8], 1), (RGB16, 0)))):
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as file:
            for pixels, kind in order:
                file.write(pixels, photometric="rgb", subfiletype=kind, metadata=None)
        image = read_image(tmp_path / f"{name}.tif")
        assert (image.pixels.shape, image.bit_depth) == ((3, 24, 32), 16)
        assert "2 pages: the reduced copy" in image.notes[0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.png", "animated PNG"), ("a.gif", "GIF"), ("a.webp", "WebP"), ("a.avif", "AVIF"), ("a.tif", "TIFF"),
        ("a.mpo", "MPO"), ("a.jxl", "JPEG XL"),
    ],
)  # fmt: skip
def test_of_several_images_the_first_is_read_with_a_note(tmp_path, name, kind):
    arrays = [np.full((24, 32, 3), value, np.uint8) for value in (40, 120, 240)]
    if name == "a.jxl":
        (tmp_path / name).write_bytes(imagecodecs.jpegxl_encode(np.stack(arrays), lossless=True))
    else:
        first, *others = map(PilImage.fromarray, arrays)
        first.save(tmp_path / name, save_all=True, append_images=others)
    image = read_image(tmp_path / name)
    assert f"{kind} of 3 images: the first one is read, the others are left out" in image.notes
    assert image.pixels.mean() == pytest.approx(40 / 255, abs=0.01)


def test_a_reduced_copy_without_a_flag_is_not_the_image(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for pixels in (RGB8[:6, :8], RGB16):
            file.write(pixels, photometric="rgb", metadata=None)
    image = read_image(tmp_path / "a.tif")
    assert (image.pixels.shape, image.bit_depth) == ((3, 24, 32), 16)
    assert "2 pages: the reduced copy" in image.notes[0]


def test_a_mask_in_front_is_not_the_image(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(RGB8[..., 0] > 9, photometric="mask", subfiletype=4, metadata=None)
        file.write(RGB16, photometric="rgb", metadata=None)
    image = read_image(tmp_path / "a.tif")
    assert (image.pixels.shape, image.bit_depth) == ((3, 24, 32), 16)
    assert image.notes == ("TIFF with 2 pages: the mask of the image left out",)


def test_metadata_of_png_and_jpeg_is_carried(tmp_path):
    image = Image(
        torch.tensor(VALUES).permute(2, 0, 1).float(),
        xmp=XMP,
        iptc=b"\x1c\x02\x78\x00\x07caption",
        text=(("Title", "Harbour"), ("Comment", "left wing"), ("Auteur", "Łukasz")),
        gamma=0.45455,
        cicp=(1, 13, 0, 1),
        resolution=(300.0, 300.0, 2),
    )
    for depth in (8, 16):
        notes = write_image(tmp_path / "a.png", image, bit_depth=depth)
        again = read_image(tmp_path / "a.png")
        assert (again.xmp, again.text, again.gamma, again.cicp) == (XMP, image.text, 0.45455, (1, 13, 0, 1))
        assert again.resolution == pytest.approx((300, 300, 2), rel=1e-3)
        assert notes == ("IPTC left out: PNG is written without it",)
    notes = write_image(tmp_path / "a.jpg", image)
    again = read_image(tmp_path / "a.jpg")
    assert (again.xmp, again.iptc, again.text) == (XMP, image.iptc, (("Comment", "left wing"),))
    assert again.resolution == (300, 300, 2)
    assert notes == ("cICP left out: JPEG is written without it", "text left out: Title, Auteur")
    write_image(tmp_path / "a.tif", image)
    again = read_image(tmp_path / "a.tif")
    assert (again.xmp, again.iptc, again.resolution) == (XMP, image.iptc, (300, 300, 2))


def wide_gamut():
    """A profile whose red and green are exchanged: no color keeps its place."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = content.index(b"rXYZ"), content.index(b"gXYZ")
    content[red : red + 4], content[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(content)


@pytest.mark.parametrize(
    "carried",
    [{"icc": wide_gamut()}, {"gamma": 1.0}, {"is_linear": True, "bit_depth": 32}],
    ids=["icc", "gamma", "linear"],
)
def test_the_restorer_sees_srgb_and_unchanged_pixels_keep_their_bits(carried):
    pixels = torch.tensor(VALUES).permute(2, 0, 1).float() * (3 if "is_linear" in carried else 1)
    image = Image(pixels, **carried)
    rgb, back = color.to_model_space(image)
    assert 0 <= rgb.min() <= rgb.max() <= 1
    assert (rgb - pixels).abs().mean() > 0.05
    torch.testing.assert_close(back(rgb).pixels, pixels, atol=2e-6, rtol=0)
    darker = back(rgb * 0.9)
    inside = (pixels < 1) & (pixels > 0.1)
    assert (darker.pixels[inside] < pixels[inside]).float().mean() > 0.8
    plain = color.to_srgb(image)
    torch.testing.assert_close(plain.pixels, rgb)
    assert (plain.icc, plain.gamma, plain.is_linear) == (None, None, False)


def test_srgb_and_damaged_profiles_change_nothing():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for icc in (srgb, b"no profile", srgb[:300]):
        image = Image(torch.tensor(VALUES).permute(2, 0, 1).float(), icc=icc)
        assert color.to_model_space(image)[0].data_ptr() == image.pixels.data_ptr()


def test_high_dynamic_range_is_told_and_kept(tmp_path):
    values = VALUES.astype(np.float32) * 1.5
    for name, content in (("a.exr", exr(values)), ("a.hdr", imagecodecs.rgbe_encode(values))):
        (tmp_path / name).write_bytes(content)
        image = read_image(tmp_path / name)
        assert image.is_linear
        assert "high dynamic range" in image.notes[0]
        assert (image.pixels.permute(1, 2, 0) - torch.tensor(values)).abs().max() < 0.02
    notes = write_image(tmp_path / "b.png", image, bit_depth=16)
    assert "outside [0, 1]: clipped" in notes[0]
    (tmp_path / "cut.exr").write_bytes(exr(values)[:900])
    with pytest.raises(ImageError, match="truncated or damaged EXR"):
        read_image(tmp_path / "cut.exr")
    bright = VALUES.astype(np.float32)
    bright[0, 0] = 1.5
    tifffile.imwrite(tmp_path / "a.tif", bright, photometric="rgb")
    image = read_image(tmp_path / "a.tif")
    rgb, back = color.to_model_space(image)
    assert rgb.max() == 1
    assert torch.equal(back(rgb).pixels, image.pixels)


@pytest.mark.parametrize(
    ("lines", "rows"),
    [
        (b"-Y 2 +X 3", [[0, 1, 2], [3, 4, 5]]), (b"+Y 2 +X 3", [[3, 4, 5], [0, 1, 2]]),
        (b"-Y 2 -X 3", [[2, 1, 0], [5, 4, 3]]), (b"+X 3 -Y 2", [[0, 2, 4], [1, 3, 5]]),
        (b"-X 3 +Y 2", [[5, 3, 1], [4, 2, 0]]),
    ],
)  # fmt: skip
def test_lines_of_a_radiance_file_in_any_order(lines, rows, tmp_path):
    samples = b"".join(bytes([20 * n, 0, 0, 128]) for n in range(6))
    (tmp_path / "a.hdr").write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n" + lines + b"\n" + samples)
    reds = read_image(tmp_path / "a.hdr").pixels[0]
    torch.testing.assert_close(reds, torch.tensor(rows) * 20 / 256, atol=0.003, rtol=0)


def test_avif_files_of_many_bits_are_turned(tmp_path):
    (tmp_path / "a.avif").write_bytes(base64.b64decode(TURNED))
    image = read_image(tmp_path / "a.avif")
    assert image.bit_depth == 16
    torch.testing.assert_close(image.pixels[0], torch.tensor([0.78] * 4 + [0.0] * 4).expand(16, 8), atol=0.01, rtol=0)


def test_crops_and_pixel_shapes_of_avif_files_are_named():
    def box(kind, data):
        return struct.pack(">I", 8 + len(data)) + kind + data

    for inner, expected in (
        (box(b"pasp", struct.pack(">II", 1, 1)), []),
        (box(b"pasp", struct.pack(">II", 2, 1)), ["pixel aspect ratio (pasp) left out"]),
        (box(b"clap", bytes(32)), ["crop (clap) left out: the whole image is restored"]),
    ):
        assert boxes.ignored_shapes(box(b"meta", bytes(4) + box(b"iprp", box(b"ipco", inner)))) == expected


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bombs():
    """Files of a few hundred bytes that declare 40000 x 40000 pixels."""
    side = 40000
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    jpeg = bytearray(pillow("JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", side, side)
    bmp = bytearray(pillow("BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    exr_bomb = bytearray(exr(VALUES))
    at = exr_bomb.index(b"dataWindow\0box2i\0") + 17 + 4
    exr_bomb[at + 8 : at + 16] = struct.pack("<ii", side - 1, side - 1)
    tags = [
        (256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
        (277, 3, 1, 1), (278, 4, 1, side), (279, 4, 1, 100),
    ]  # fmt: skip
    tiff = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags))
    tiff += b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    gif = bytearray(pillow("GIF", "P"))
    gif[6:10] = struct.pack("<HH", side, side)
    return {
        "png": png.SIGNATURE + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b""),
        "jpg": bytes(jpeg), "bmp": bytes(bmp), "exr": bytes(exr_bomb), "tif": tiff, "gif": bytes(gif),
        "hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 40000 +X 40000\n" + bytes(100),
        "ppm": b"P6 40000 40000 255\n" + bytes(100),
    }  # fmt: skip


def webp_bombs():
    size = struct.pack("<I", 16382 | 16382 << 14)
    for compression, header in (("lossless", size), ("lossy", struct.pack("<HH", 16383, 16383))):
        content = bytearray(pillow("WEBP", lossless=compression == "lossless"))
        at = 21 if compression == "lossless" else 26
        content[at : at + 4] = header
        yield compression, bytes(content)
    content = bytearray(pillow("WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"))
    assert content[12:16] == b"VP8X"
    content[24:30] = 2 * (16382).to_bytes(3, "little")
    yield "extended", bytes(content)


@pytest.mark.parametrize("compression", ["lossless", "lossy", "extended"])
def test_the_declared_size_of_a_webp_is_checked_before_memory_is_taken(compression, tmp_path):
    path = tmp_path / "bomb.webp"
    path.write_bytes(dict(webp_bombs())[compression])
    with pytest.raises(ImageError, match=r"16383 x 16383 = 268.4 million pixels.*160 million.*--max-pixels 268402689"):
        read_image(path)


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "MPO", "PNG", "JPEG", "BMP"])
def test_the_limit_of_pillow_is_not_in_the_way(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(PilImage, "MAX_IMAGE_PIXELS", 50)
    path = tmp_path / "a"
    path.write_bytes(pillow(kind, **(two("RGB") if kind in ("WEBP", "GIF", "MPO") else {})))
    assert read_image(path).pixels.shape == (3, 24, 32)
    assert PilImage.MAX_IMAGE_PIXELS == 50


def test_a_color_profile_that_would_fill_memory_is_left_out(tmp_path):
    content = pillow("PNG")
    profile = zlib.compress(bytes(2**24 + 1))
    path = tmp_path / "a.png"
    path.write_bytes(content[:33] + chunk(b"iCCP", b"icc\0\0" + profile) + content[33:])
    image = read_image(path)
    assert image.icc is None
    assert image.notes == ("unreadable iCCP chunk: left out",)


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "exr", "tif", "gif", "hdr", "ppm"])
def test_declared_sizes_are_checked_before_memory_is_taken(kind, tmp_path):
    path = tmp_path / f"bomb.{kind}"
    path.write_bytes(bombs()[kind])
    with pytest.raises(ImageError, match=r"40000 x 40000 = 1600 million pixels.*--max-pixels 1600000000"):
        read_image(path)


def test_the_limit_can_be_lifted_and_lowered(tmp_path):
    write_image(tmp_path / "a.png", Image(torch.zeros(3, 40, 50)))
    assert read_image(tmp_path / "a.png", max_pixels=2000).pixels.shape == (3, 40, 50)
    with pytest.raises(ImageError, match="50 x 40"):
        read_image(tmp_path / "a.png", max_pixels=1999)


def test_special_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file: a FIFO"):
        read_image(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file: a device"):
        read_image("/dev/zero")
    with pytest.raises(ImageError, match="not a file name"):
        read_image("a\0b.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_what_can_be_read_of_a_truncated_file_is_read_by_choice(kind, tmp_path):
    content = pillow(kind, array=np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    path = tmp_path / "a"
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ImageError, match="truncated or damaged"):
        read_image(path)
    image = read_image(path, keep_going=True)
    assert f"truncated or damaged {kind}" in image.losses[0]
    path.write_bytes(content)
    whole = read_image(path, keep_going=True)
    assert whole.losses == ()
    assert torch.equal(image.pixels[:, :24], whole.pixels[:, :24])


@pytest.mark.parametrize("progressive", [False, True])
def test_damage_within_a_jpeg_file_is_told(progressive, tmp_path):
    """The usual decoder fills what is missing with gray in silence, where the file has its end."""
    pytest.importorskip("av")
    array = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole = pillow("JPEG", array=array, progressive=progressive)
    middle, path = len(whole) * 2 // 3, tmp_path / "a.jpg"
    for content in (whole[:middle] + b"\xff\xd9", whole[: middle // 2] + whole[middle // 2 + 500 :]):
        path.write_bytes(content)
        with pytest.raises(ImageError, match="truncated or damaged JPEG: its samples end early"):
            read_image(path)
        image = read_image(path, keep_going=True)
        assert "truncated or damaged JPEG" in image.losses[0]
        assert image.pixels.shape == (3, 64, 64)


def test_jpeg_files_of_fewer_or_more_samples_than_rows_are_told(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole = pillow("JPEG", array=array)
    middle, path = len(whole) * 2 // 3, tmp_path / "a.jpg"
    path.write_bytes(whole[: middle - 600] + whole[middle:])
    with pytest.raises(ImageError, match="truncated or damaged JPEG: its samples end early"):
        read_image(path)
    assert jpeg.compare_length(path.read_bytes()) == -1
    path.write_bytes(whole[:middle] + whole[middle - 600 :])
    assert read_image(path).notes == ("JPEG with samples behind its last row: damaged, or padded",)
    for filler in (b"", bytes(14), b"\xff" * 3):
        path.write_bytes(whole[:-2] + filler + b"\xff\xd9")
        assert read_image(path).notes == ()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_whole_jpeg_files_do_not_count_as_damaged(mode, tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (33, 50, 3), np.uint8)
    for options in (
        {"subsampling": 0}, {"subsampling": 2}, {"progressive": True}, {"optimize": True, "quality": 1},
        {"restart_marker_blocks": 2}, {"quality": 100},
    ):  # fmt: skip
        (tmp_path / "a.jpg").write_bytes(pillow("JPEG", mode, array, **options))
        assert read_image(tmp_path / "a.jpg").losses == ()


def test_arithmetic_coding_of_a_jpeg_file_is_no_damage(tmp_path):
    (tmp_path / "a.jpg").write_bytes(base64.b64decode(ARITHMETIC))
    image = read_image(tmp_path / "a.jpg")
    expected = torch.arange(0, 256, 4).reshape(1, 8, 8) / 255
    torch.testing.assert_close(image.pixels, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("interlaced", [False, True])
def test_missing_rows_of_a_png_file_are_told(interlaced, tmp_path):
    """The compressed stream is whole and too short; the usual decoder leaves the rest black in silence."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    black = np.zeros((24, 32, 3), np.uint8)
    for array, missing, is_whole in ((RGB8, 0, True), (black, 0, True), (RGB8, 5, False)):
        parts = [array[y::down, x::across] for x, y, across, down in passes] if interlaced else [array]
        rows = [b"\0" + row.tobytes() for part in parts for row in part]
        data = zlib.compress(b"".join(rows[: len(rows) - missing]))
        header = struct.pack(">IIBBBBB", 32, 24, 8, 2, 0, 0, interlaced)
        chunks = ((b"IHDR", header), (b"IDAT", data[:50]), (b"IDAT", data[50:]), (b"IEND", b""))
        (tmp_path / "a.png").write_bytes(png.SIGNATURE + b"".join(png.chunk(*part) for part in chunks))
        if is_whole:
            assert torch.equal(
                read_image(tmp_path / "a.png").pixels * 255, torch.tensor(array).permute(2, 0, 1).float()
            )
            continue
        with pytest.raises(ImageError, match="truncated or damaged PNG: rows are missing"):
            read_image(tmp_path / "a.png")
        if not interlaced:
            salvaged = read_image(tmp_path / "a.png", keep_going=True)
            assert salvaged.losses == ("truncated or damaged PNG: 21% of its rows are lost and black",)


def test_empty_strips_of_a_tiff_file_are_told(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB8, photometric="rgb", rowsperstrip=8)
    with tifffile.TiffFile(path, mode="r+b") as file:
        tags = file.pages[0].tags
        tags["StripByteCounts"].overwrite((768, 0, 768))
    with pytest.raises(ImageError, match="damaged TIFF: a strip or tile is empty"):
        read_image(path)
    with tifffile.TiffFile(path, mode="r+b") as file:
        offsets = file.pages[0].tags["StripOffsets"]
        offsets.overwrite((offsets.value[0], 0, offsets.value[2]))
    image = read_image(path)
    assert image.notes == ("1 of 3 strips or tiles are not in the file: read as black",)
    assert not image.pixels[:, 8:16].any()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_transparent_gray_of_few_bits_becomes_alpha(bits, tmp_path):
    values = np.arange(8, dtype=np.uint8)[None] % 2**bits
    packed = np.packbits(np.unpackbits(values.T, axis=1)[:, 8 - bits :])
    rows = zlib.compress(b"\0" + packed.tobytes())
    header = struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"tRNS", b"\0\1"), (b"IDAT", rows), (b"IEND", b""))
    (tmp_path / "a.png").write_bytes(png.SIGNATURE + b"".join(png.chunk(*part) for part in parts))
    alpha = read_image(tmp_path / "a.png").alpha
    assert alpha is not None
    assert torch.equal(alpha[0], torch.from_numpy(values != 1).float())


def test_camera_files_are_never_read_as_their_preview(tmp_path, monkeypatch):
    """A DNG's first page is a small preview; without rawpy the file is refused as what it is."""
    import sys

    with tifffile.TiffWriter(tmp_path / "a.dng") as file:
        file.write(RGB8, photometric="rgb", subfiletype=1, metadata=None, extratags=[(50706, 1, 4, (1, 4, 0, 0), True)])
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(ImageError, match=r"RAW \(DNG\): sensor values .* pip install 'tta-restore\[raw\]'"):
        read_image(tmp_path / "a.dng")
    (tmp_path / "a.dng").rename(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="RAW"):
        read_image(tmp_path / "a.tif")


def test_recognition():
    for head, name, kind in (
        (b"II\x1a\0\0\0HEAPCCDR" + bytes(20), "Canon RAW (CRW)", "raw"),
        (b"8BPS" + bytes(20), "Photoshop document", "unsupported"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "RAW (CR3)", "raw"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC", "image"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "AVIF", "image"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "MP4 or QuickTime", "video"),
        ((b"\x47" + bytes(187)) * 2, "MPEG transport stream", "video"),
        ((bytes(4) + b"\x47" + bytes(187)) * 2 + bytes(4), "MPEG transport stream", "video"),
        (b"<?xml version='1.0'?><svg width='3'>", "SVG", "unsupported"),
    ):
        found = detect_format(head)
        assert (found.name, found.kind) == (name, kind)
    assert detect_format(b"BMan, this is a text") is None
    assert detect_format(b"") is None


def test_parts_of_a_color_profile_that_are_missing_are_told(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = pillow("JPEG")
    part = b"ICC_PROFILE\0\1\2" + profile[:200]
    (tmp_path / "a.jpg").write_bytes(content[:2] + b"\xff\xe2" + struct.pack(">H", len(part) + 2) + part + content[2:])
    image = read_image(tmp_path / "a.jpg")
    assert image.icc is None
    assert image.notes == ("color profile of which parts are missing: left out, the samples are taken for sRGB",)


def test_interlaced_png_files_of_16_bits_are_read_without_a_line_from_the_library(tmp_path, capfd):
    rows = b"\0" + RGB16[0, 0].astype(">u2").tobytes()
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    (tmp_path / "a.png").write_bytes(png.SIGNATURE + b"".join(png.chunk(*part) for part in chunks))
    image = read_image(tmp_path / "a.png")
    assert (image.pixels * 65535).round().flatten().tolist() == RGB16[0, 0].tolist()
    assert capfd.readouterr().err == ""
