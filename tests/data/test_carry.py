"""What a file says beside its samples: kept in its own format, named where another one is written."""

import io
import struct
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as PilImage

from tta_restore.cli import main
from tta_restore.data.io import png
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Extra, Image

pytest.importorskip("imagecodecs")
RGB = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
WIDE = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


def png_file(path, *chunks):
    stream = io.BytesIO()
    PilImage.fromarray(RGB).save(stream, "PNG")
    content = stream.getvalue()
    path.write_bytes(content[:33] + b"".join(png.chunk(*entry) for entry in chunks) + content[33:])
    return path


def restored(path, out, capsys, *options):
    """Restore a file by the command line; return the notes about it."""
    arguments = ["restore", str(path), "-o", str(out), "--method", "source", "--model", "torch.nn:Identity", *options]
    assert main(arguments) == 0
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix(f"note: {path}: ") for line in lines if line.startswith("note: ")]


def chunks(path):
    content = path.read_bytes()
    at, found = 8, []
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return [entry for entry in found if entry[0] not in (b"IHDR", b"IDAT", b"IEND")]


def test_chunks_of_png_files(tmp_path, capsys):
    kept = [
        (b"cHRM", WIDE), (b"mDCV", bytes(range(24))), (b"cLLI", bytes(8)), (b"oFFs", bytes(9)), (b"prVt", b"copy me"),
    ]  # fmt: skip
    lost = [(b"bKGD", bytes(6)), (b"sBIT", b"\5\6\5"), (b"prVT", b"do not")]
    path = png_file(tmp_path / "a.png", *kept, *lost, (b"tIME", bytes(7)))
    assert restored(path, tmp_path / "b.png", capsys) == ["PNG chunks left out: bKGD, sBIT, prVT, tIME"]
    assert chunks(tmp_path / "b.png") == kept
    notes = restored(path, tmp_path / "b.tif", capsys)
    assert notes[1:] == ["PNG chunks left out: cHRM, mDCV, cLLI, oFFs, prVt"]
    restored(path, tmp_path / "c.png", capsys, "--strip")
    assert chunks(tmp_path / "c.png") == kept[:3]  # those on color
    usual = png_file(tmp_path / "srgb.png", (b"sRGB", b"\0"))
    assert restored(usual, tmp_path / "srgb.jpg", capsys) == []


def test_damaged_metadata_is_no_reason_to_refuse_a_png_file(tmp_path, capsys):
    path = png_file(tmp_path / "a.png", (b"pHYs", b"12"), (b"zTXt", b"k\0\0no deflate"), (b"gAMA", b"1"))
    assert restored(path, tmp_path / "b.png", capsys) == [
        "unreadable pHYs chunk: left out", "unreadable zTXt chunk: left out", "unreadable gAMA chunk: left out",
    ]  # fmt: skip
    assert torch.equal(read_image(tmp_path / "b.png").pixels, torch.from_numpy(RGB / np.float32(255)).permute(2, 0, 1))
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"IDAT") + 20] ^= 4  # samples that do not fit their checksum stay an error
    (tmp_path / "c.png").write_bytes(damaged)
    with pytest.raises(ValueError, match="truncated or damaged PNG"):
        read_image(tmp_path / "c.png")


def test_tags_of_tiff_files(tmp_path, capsys):
    own = [
        (269, 2, 0, "plan 7", True), (297, 3, 2, (0, 1), True), (33550, 12, 3, (0.5, 0.5, 0.0), True),
        (42113, 2, 0, "-9999", True), (65000, 7, 4, b"abcd", True), (318, 5, 2, (3127, 10000, 329, 1000), True),
    ]  # fmt: skip
    for name, big in (("a.tif", False), ("big.tif", True)):
        tifffile.imwrite(
            tmp_path / name, RGB, photometric="rgb", metadata=None, extratags=own, bigtiff=big, description="harbor"
        )
        assert restored(tmp_path / name, tmp_path / f"out/{name}", capsys) == []
        with tifffile.TiffFile(tmp_path / f"out/{name}") as file:
            tags = file.pages[0].tags
            assert tags[270].value == "harbor"
            assert [tags[code].value for code, *_ in own] == [value for *_, value, _ in own]
    notes = restored(tmp_path / "a.tif", tmp_path / "b.png", capsys)
    named = "DocumentName, PageNumber, WhitePoint, ModelPixelScaleTag, GDAL_NODATA, tag 65000"
    assert notes == [f"TIFF tags left out: {named}"]
    layers = [(37724, 7, 8, b"8BIM" * 2, True)]
    tifffile.imwrite(tmp_path / "c.tif", RGB, photometric="rgb", metadata=None, extratags=layers)
    assert restored(tmp_path / "c.tif", tmp_path / "d.tif", capsys) == ["TIFF tags left out: ImageSourceData"]


def test_the_position_on_a_map_does_not_survive_an_enlargement():
    scale = Extra("tiff", "ModelPixelScaleTag", (33550, 12, 3, (1.0, 1.0, 0.0), True), is_sized=True)
    title = Extra("tiff", "DocumentName", (269, 2, 0, "plan", True))
    image = Image(torch.rand(3, 4, 4), extras=(scale, title))
    assert image.with_rgb(torch.rand(3, 4, 4)).extras == (scale, title)
    larger = image.with_rgb(torch.rand(3, 8, 8))
    assert larger.extras == (title,)
    assert larger.notes == ("left out, since the image is 2 times as large: ModelPixelScaleTag",)


def test_attributes_and_precision_of_exr_files(tmp_path, capsys):
    openexr = pytest.importorskip("OpenEXR")
    wide = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.329)
    header = {
        "compression": openexr.PIZ_COMPRESSION, "type": openexr.scanlineimage, "owner": "me", "whiteLuminance": 100.0,
        "pixelAspectRatio": 2.0, "chromaticities": wide, "dataWindow": ((2, 3), (17, 14)),
        "displayWindow": ((0, 0), (31, 31)),
    }  # fmt: skip
    values = (RGB / 255).astype(np.float32)
    for dtype in (np.float16, np.float32):
        openexr.File(header, {"RGB": values.astype(dtype)}).write(str(tmp_path / "a.exr"))
        primaries = "primaries other than those of sRGB: the samples are restored as if they were sRGB's"
        assert restored(tmp_path / "a.exr", tmp_path / "b.exr", capsys, "--overwrite") == [primaries]
        with openexr.File(str(tmp_path / "b.exr")) as file:
            found = file.header()
            assert (found["owner"], found["whiteLuminance"], found["pixelAspectRatio"]) == ("me", 100.0, 2.0)
            assert np.allclose(found["chromaticities"], wide)
            windows = [np.array(found[name]).tolist() for name in ("dataWindow", "displayWindow")]
            assert windows == [[[2, 3], [17, 14]], [[0, 0], [31, 31]]]
            assert file.channels()["RGB"].pixels.dtype == dtype
            assert np.array_equal(file.channels()["RGB"].pixels, values.astype(dtype))
        deep = ("--bit-depth", "16", "--overwrite")
        notes = restored(tmp_path / "a.exr", tmp_path / "b.png", capsys, *deep)
        lost = "chromaticities, dataWindow, displayWindow, owner, pixelAspectRatio, whiteLuminance"
        assert notes == [primaries, f"EXR attributes left out: {lost}"]


@pytest.mark.parametrize(
    ("image", "options", "dtype"),
    [
        (Image(torch.rand(3, 4, 4)), {}, np.float16),
        (Image(torch.rand(3, 4, 4), bit_depth=16), {}, np.float32),
        (Image(torch.rand(3, 4, 4), bit_depth=32, is_linear=True), {}, np.float32),
        (Image(torch.rand(3, 4, 4), bit_depth=32, is_linear=True), {"bit_depth": 16}, np.float16),
        (Image(torch.rand(3, 4, 4), bit_depth=32, is_linear=True, is_half=True), {}, np.float16),
        (Image(torch.rand(3, 4, 4) * 1e6, bit_depth=32, is_linear=True, is_half=True), {}, np.float32),
        (Image(torch.rand(3, 4, 4)), {"bit_depth": 32}, np.float32),
    ],
)
def test_exr_keeps_the_bits_that_there_are(image, options, dtype, tmp_path):
    openexr = pytest.importorskip("OpenEXR")
    write_image(tmp_path / "a.exr", image, **options)
    with openexr.File(str(tmp_path / "a.exr")) as file:
        assert file.channels()["RGB"].pixels.dtype == dtype


@pytest.mark.parametrize("value", [3.5, -0.5])
@pytest.mark.parametrize("is_linear", [False, True])
@pytest.mark.parametrize(
    ("name", "depth"), [("a.png", 16), ("a.jpg", 8), ("a.avif", 16), ("a.jxl", 32), ("a.tif", 32), ("a.exr", 32)]
)
def test_samples_beyond_the_range_are_kept_or_told(name, depth, is_linear, value, tmp_path):
    pixels = torch.full((3, 8, 8), 0.25)
    pixels[:, :2] = value
    image = Image(pixels, bit_depth=32, is_linear=is_linear)
    notes = write_image(tmp_path / name, image, bit_depth=depth, quality=100)
    read = read_image(tmp_path / name)
    if name == "a.exr" or (name == "a.tif" and not is_linear):
        assert notes == ()
        assert read.pixels[0, 0, 0].sign() == np.sign(value)
        encoded = value if is_linear or name == "a.tif" else np.sign(value) * ((abs(value) + 0.055) / 1.055) ** 2.4
        assert float(read.pixels[0, 0, 0]) == pytest.approx(encoded, rel=1e-5)
    else:
        kind = {"jpg": "JPEG", "tif": "TIFF"}.get(name[2:], name[2:].upper())
        assert notes == (f"25.00% of the samples lie outside [0, 1]: clipped, {kind} is written in sRGB",)
        assert float(read.pixels[0, 0, 0]) == pytest.approx(min(max(value, 0), 1), abs=0.02)


def test_rounding_at_the_ends_of_the_range_is_not_told(tmp_path):
    image = Image(torch.tensor([-1e-6, 1 + 1e-6]).view(1, 1, 2).expand(3, 4, 2), bit_depth=32, is_linear=True)
    assert write_image(tmp_path / "a.png", image, bit_depth=16) == ()


def segment(marker, data):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def test_segments_of_jpeg_files(tmp_path, capsys):
    stream = io.BytesIO()
    PilImage.fromarray(RGB).save(stream, "JPEG", quality=95)
    content = stream.getvalue()
    added = segment(0xEB, b"JP\0\1...jumb") + segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0abc")
    added += segment(0xEC, b"Ducky\0\1") + segment(0xEF, bytes(4))
    added += segment(0xED, b"Photoshop 3.0\x008BIM\x07\xd0\0\0\0\0\0\2ab")
    (tmp_path / "a.jpg").write_bytes(content[:2] + added + content[2:])
    assert restored(tmp_path / "a.jpg", tmp_path / "b.jpg", capsys) == [
        "JPEG segments left out: APP11 (JUMBF, such as content credentials), APP1 (extended XMP), APP12 (Ducky), "
        "APP15 (unnamed), Photoshop's image resources"
    ]


def test_metadata_of_jpeg_2000_files(tmp_path, capsys):
    imagecodecs = pytest.importorskip("imagecodecs")

    def box(kind, data):
        return struct.pack(">I4s", len(data) + 8, kind) + data

    content = bytes(imagecodecs.jpeg2k_encode(RGB, level=0))
    exif = PilImage.Exif()
    exif[271] = "camera"
    at = content.index(b"jp2c") - 4
    xmp = b"<x:xmpmeta/>"
    boxes = box(b"uuid", bytes.fromhex("be7acfcb97a942e89c71999491e3afac") + xmp)
    boxes += box(b"uuid", b"JpgTiffExif->JP2" + exif.tobytes().removeprefix(b"Exif\0\0"))
    boxes += box(b"res ", box(b"resc", struct.pack(">4H2b", 11811, 1, 11811, 1, 0, 0))) + box(b"xml ", b"<a/>")
    (tmp_path / "a.jp2").write_bytes(content[:at] + boxes + content[at:])
    assert restored(tmp_path / "a.jp2", tmp_path / "b.tif", capsys) == ["JPEG 2000 boxes left out: xml"]
    image = read_image(tmp_path / "b.tif")
    assert image.xmp == xmp
    assert image.resolution[:2] == pytest.approx((299.9994, 299.9994))
    written = PilImage.Exif()
    written.load(image.exif)
    assert written[271] == "camera"
    assert read_image(tmp_path / "a.jp2").text == ()
    segments = [
        struct.pack(">3H", 0xFF64, 4 + len(text), kind) + text for kind, text in ((1, b"At home"), (0, b"\1\2"))
    ]
    at = content.index(b"\xff\x52")
    (tmp_path / "a.jp2").write_bytes(content[content.index(b"\xff\x4f") : at] + b"".join(segments) + content[at:])
    notes = restored(tmp_path / "a.jp2", tmp_path / "b.png", capsys)
    assert notes == ["JPEG 2000 comment that is no text: left out"]
    assert read_image(tmp_path / "b.png").text == (("Comment", "At home"),)


def test_header_lines_of_radiance_files_are_named(tmp_path, capsys):
    imagecodecs = pytest.importorskip("imagecodecs")
    pytest.importorskip("OpenEXR")
    content = bytes(imagecodecs.rgbe_encode((RGB / 255).astype(np.float32)))
    at = content.index(b"FORMAT")
    (tmp_path / "a.hdr").write_bytes(content[:at] + b"EXPOSURE=2\n" + content[at:])
    assert restored(tmp_path / "a.hdr", tmp_path / "b.exr", capsys)[0] == "header lines left out: EXPOSURE=2"


def test_jpeg_kinds_that_are_not_read_are_named_as_such(tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    deep = RGB[..., 0].astype(np.uint16) * 16
    kinds = {
        "lossless JPEG": imagecodecs.ljpeg_encode(deep), "JPEG-LS": imagecodecs.jpegls_encode(RGB),
        "JPEG of 12 bits per sample": imagecodecs.jpeg8_encode(deep, bitspersample=12),
    }  # fmt: skip
    for name, content in kinds.items():
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(ValueError, match=f"a.jpg: {name}: not read, export it as PNG or TIFF"):
            read_image(tmp_path / "a.jpg")


def test_xmp_of_gif_files(tmp_path, capsys):
    stream = io.BytesIO()
    PilImage.fromarray(RGB).quantize(32).save(stream, "GIF")
    content, packet = stream.getvalue(), b"<x:xmpmeta>Harbor</x:xmpmeta>"
    trailer = b"\x01" + bytes(range(255, -1, -1)) + b"\0"
    (tmp_path / "a.gif").write_bytes(content[:-1] + b"\x21\xff\x0bXMP DataXMP" + packet + trailer + b";")
    assert restored(tmp_path / "a.gif", tmp_path / "a.png", capsys) == []
    assert read_image(tmp_path / "a.png").xmp == packet


@pytest.mark.parametrize("alpha", [False, True])
def test_metadata_of_avif_files_of_many_bits(alpha, tmp_path):
    """The encoder takes none: it is added as items, among those of color and alpha, and read by Pillow."""
    generator = torch.Generator().manual_seed(0)
    exif = PilImage.Exif()
    exif[0x010F], exif[0x0110] = "Maker", "Model"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">rating</x:xmpmeta>'
    picture = Image(
        torch.rand(3, 21, 18, generator=generator),
        alpha=torch.rand(1, 21, 18, generator=generator) if alpha else None,
        exif=exif.tobytes(),
        xmp=xmp,
    )
    plain = replace(picture, exif=None, xmp=None)
    assert not [note for note in write_image(tmp_path / "a.avif", picture, bit_depth=16) if "left out" in note]
    write_image(tmp_path / "plain.avif", plain, bit_depth=16)
    found, without = (read_image(tmp_path / f"{name}.avif") for name in ("a", "plain"))
    assert torch.equal(found.pixels, without.pixels)
    assert (found.alpha is not None) is alpha
    if alpha:
        assert torch.equal(found.alpha, without.alpha)
    assert found.xmp == xmp
    with PilImage.open(tmp_path / "a.avif") as file:
        assert dict(file.getexif()) == {0x010F: "Maker", 0x0110: "Model"}
        assert file.info["xmp"] == xmp
    write_image(tmp_path / "only.avif", replace(picture, exif=None), bit_depth=16)
    assert read_image(tmp_path / "only.avif").xmp == xmp
    write_image(tmp_path / "again.avif", found, bit_depth=16)
    assert read_image(tmp_path / "again.avif").exif == found.exif


def saved(kind, picture=None, **options):
    stream = io.BytesIO()
    (picture or PilImage.fromarray(RGB)).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("suffix", ["avif", "heic"])
def test_colors_of_avif_and_heic_files_are_told(suffix, tmp_path):
    """Primaries of P3 or Rec. 2020 and the curve of PQ, declared by numbers instead of a profile."""
    path = tmp_path / f"a.{suffix}"
    if suffix == "heic":
        heif = pytest.importorskip("pillow_heif")
        stream = io.BytesIO()
        heif.from_pillow(PilImage.fromarray(RGB)).save(stream)
        content = stream.getvalue()
        if b"colrnclx" not in content:
            pytest.skip("this libheif writes no numbers of colors")
    else:
        content = saved("AVIF")
    at = content.index(b"colrnclx") + 8
    path.write_bytes(content)
    assert read_image(path).cicp is None  # sRGB
    path.write_bytes(content[:at] + struct.pack(">HH", 9, 16) + content[at + 4 :])
    image = read_image(path)
    assert image.cicp == (9, 16, 0, 1)
    for name, depth in (("b.avif", 8), ("deep.avif", 16), ("b.png", 8)):
        assert write_image(tmp_path / name, image, bit_depth=depth) == ()
        assert read_image(tmp_path / name).cicp == image.cicp
    assert write_image(tmp_path / "b.jpg", image) == ("cICP left out: JPEG is written without it",)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_the_orientation_in_xmp_follows_that_of_the_pixels(kind, tmp_path):
    exif = PilImage.Exif()
    exif[0x0112] = 6
    packet = b"<x:xmpmeta><a tiff:Orientation='6'/><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>"
    options = {"tiffinfo": {700: packet, 0x0112: 6}} if kind == "TIFF" else {"exif": exif, "xmp": packet}
    content = saved(kind, **({} if kind == "PNG" else options))
    if kind == "PNG":
        added = png.chunk(b"eXIf", exif.tobytes()[6:]) + png.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)
        content = content[:33] + added + content[33:]
    (tmp_path / "a").write_bytes(content)
    image = read_image(tmp_path / "a")
    assert image.pixels.shape == (3, 16, 12)
    assert image.xmp == packet.replace(b"6", b"1")


def test_exif_of_all_kinds_reaches_a_tiff_file(tmp_path):
    exif = PilImage.Exif()
    exif[0x010F], exif[0x4746], exif[0x9C9B] = "Maker", 4, "title".encode("utf-16-le")
    exif[0x011A], exif[0x011B], exif[0x0128], exif[0x0100] = 240.0, 120.0, 3, 999
    (tmp_path / "a.webp").write_bytes(saved("WEBP", exif=exif))
    assert write_image(tmp_path / "b.tif", read_image(tmp_path / "a.webp")) == ()
    with PilImage.open(tmp_path / "b.tif") as picture:
        tags = dict(picture.tag_v2)
        assert picture.size == (16, 12)
    assert (tags[0x010F], tags[0x4746], bytes(tags[0x9C9B])) == ("Maker", 4, "title".encode("utf-16-le"))
    assert (tags[0x011A], tags[0x011B], tags[0x0128]) == (240, 120, 3)


def test_what_lies_behind_an_image_is_told(tmp_path, capsys):
    video = b"\0\0\0\x18ftypmp42" + bytes(16)
    for number, (content, expected) in enumerate((
        (saved("JPEG") + saved("JPEG"), ["another image (JPEG), as a gain map"]),
        (saved("JPEG", progressive=True) + video, ["a video, as of a motion photo"]),
        (saved("PNG") + b"secret", ["6 bytes of other data"]),
        (saved("JPEG") + bytes(100), []),
        (saved("JPEG", exif=b"Exif\0\0II*\0" + saved("JPEG")), []),
    )):  # fmt: skip
        suffix = ".png" if content[:1] == b"\x89" else ".jpg"
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(content)
        notes = [note for note in restored(path, tmp_path / f"b{number}.png", capsys) if "behind" in note]
        assert notes == [f"behind the image in its file, left out: {name}" for name in expected]


def test_no_resolution_is_made_up_for_a_jpeg_file(tmp_path):
    exif = PilImage.Exif()
    exif[0x010F] = "Maker"
    (tmp_path / "a.jpg").write_bytes(saved("JPEG", exif=exif))
    assert read_image(tmp_path / "a.jpg").resolution is None
    exif[0x011A], exif[0x011B], exif[0x0128] = 240.0, 120.0, 3
    (tmp_path / "a.jpg").write_bytes(saved("JPEG", exif=exif))
    assert read_image(tmp_path / "a.jpg").resolution == (240, 120, 3)
    (tmp_path / "a.jpg").write_bytes(saved("JPEG", exif=exif, dpi=(72, 36)))
    assert read_image(tmp_path / "a.jpg").resolution == (72, 36, 2)


@pytest.mark.parametrize("suffix", ["avif", "heic"])
def test_further_boxes_of_avif_and_heic_files_are_named(suffix, tmp_path):
    if suffix == "heic":
        stream = io.BytesIO()
        pytest.importorskip("pillow_heif").from_pillow(PilImage.fromarray(RGB)).save(stream)
        content = stream.getvalue()
    else:
        content = saved("AVIF")
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content + struct.pack(">I4s", 8, b"free"))
    assert read_image(path).notes == ()
    path.write_bytes(content + struct.pack(">I4s", 12, b"mpvd") + bytes(4) + struct.pack(">I4s", 8, b"sefd"))
    assert read_image(path).notes == ("boxes left out: mpvd (a video, as of a motion photo), sefd",)
