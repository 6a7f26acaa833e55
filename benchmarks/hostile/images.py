"""Damaged images, images that declare too much, and files that are none."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.hostile.files import Made, put
from benchmarks.hostile.odd_images import chunk, odd_images

__all__ = ["SIDE", "good_images", "make_images"]

SIDE = 40000  # pixels along each side that a bomb declares
#: Names that shells, terminals and patterns take for something else.
_NAMES = (
    "it's", 'a "quoted" one', "semi;colon", "$HOME", "%d", "-dash", "back\\slash", "tab\there", "*", "[a-z]", "a?b",
    " lead", "trail ", "dot.", "日本", "🎉", "u\u0308 nfd", "right\u202eleft", os.fsdecode(b"latin\xe9"),
)  # fmt: skip


def make_images(folder: Path) -> Iterator[Made]:
    """Write all images below a folder."""
    rng = np.random.default_rng(0)
    for name, content in good_images().items():
        stem, suffix = name.rsplit(".", 1)
        cuts = {f"cut{percent}": content[: len(content) * percent // 100] for percent in (1, 50, 97)}
        for how, data in cuts.items():
            yield put(folder / f"{stem}_{how}.{suffix}", data)
        for number in range(2):
            flipped = bytearray(content)
            for at in rng.integers(0, len(content), 8):
                flipped[at] ^= 1 << int(rng.integers(8))
            yield put(folder / f"{stem}_flipped{number}.{suffix}", bytes(flipped))
        yield put(folder / f"{stem}_headless.{suffix}", content[64:])
        yield put(folder / f"{stem}_tail.{suffix}", content + rng.bytes(500))
    for name, content in _bombs().items():
        yield put(folder / f"bomb_{name}", content)
    random = {
        "empty.png": b"",
        "zeros.jpg": bytes(4096),
        "noise.tif": rng.bytes(4096),
        "text.webp": b"hello",
        "one.jxl": b"\xff",
    }
    for name, content in random.items():
        yield put(folder / name, content)
    good = good_images()
    yield put(folder / "line\nbreak \x1b[31m.png", b"no image")
    yield put(folder / "really_a_png.jpg", good["a.png"], is_whole=True)
    yield put(folder / "²³.png", good["a.png"], is_whole=True)
    yield put(folder / ("n" * 250 + ".png"), good["a.png"], is_whole=True)
    os.mkfifo(folder / "pipe.png")
    yield Made(folder / "pipe.png")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    yield Made(folder / "gone.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    yield Made(folder / "zero.png")
    (folder / "a_folder.png").mkdir()
    yield Made(folder / "a_folder.png")
    for name, head in (("photo.nef", b"MM\0*"), ("photo.dng", b"II*\0"), ("photo.cr3", b"\0\0\0\x18ftypcrx ")):
        yield put(folder / name, head + rng.bytes(2000))
    (folder / "itself.png").symlink_to("itself.png")
    yield Made(folder / "itself.png")
    (folder / "linked.png").symlink_to("really_a_png.jpg")
    yield Made(folder / "linked.png", is_whole=True)
    yield put(folder / "secret.png", good["a.png"])
    (folder / "secret.png").chmod(0)  # root reads it all the same
    for name in _NAMES:
        yield put(folder / f"{name}.png", good["a.png"], is_whole=True)
    yield from odd_images(folder, good)
    for name, head in (("art.psd", b"8BPS"), ("page.pdf", b"%PDF-1.7"), ("draw.svg", b"<?xml version='1.0'?><svg/>")):
        yield put(folder / name, head + bytes(500))


def good_images() -> dict[str, bytes]:
    """Return a small image in every format that can be written here, by name."""
    import imagecodecs
    import tifffile
    from PIL import Image

    y, x = np.mgrid[0:48, 0:64]
    values = np.stack([(np.sin(x / 9 + c) + np.cos(y / 7)) / 4 + 0.5 for c in range(3)], -1)
    rgb = (values * 255).astype(np.uint8)
    deep = (values * 65535).astype(np.uint16)
    picture = Image.fromarray(rgb)
    made: dict[str, bytes] = {
        "deep.png": imagecodecs.png_encode(deep),
        "x.jxl": imagecodecs.jpegxl_encode(rgb, lossless=True),
    }
    for name, kind, options in (
        ("a.png", "PNG", {}), ("a.jpg", "JPEG", {}), ("progressive.jpg", "JPEG", {"progressive": True}),

        ("a.webp", "WEBP", {}), ("a.avif", "AVIF", {}), ("a.bmp", "BMP", {}), ("a.gif", "GIF", {}),
        ("a.ppm", "PPM", {}),
    ):  # fmt: skip
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        made[name] = stream.getvalue()
    for name, options in (("a.tif", {}), ("lzw.tif", {"compression": "lzw"}), ("tiled.tif", {"tile": (16, 16)})):
        stream = io.BytesIO()
        tifffile.imwrite(stream, deep, photometric="rgb", **options)
        made[name] = stream.getvalue()
    made["x.jp2"] = imagecodecs.jpeg2k_encode(rgb, level=0)
    made["x.hdr"] = imagecodecs.rgbe_encode(values.astype(np.float32))
    made["a.pfm"] = b"PF\n64 48\n-1.0\n" + values[::-1].astype("<f4").tobytes()
    made["deep.ppm"] = b"P6 64 48 1023\n" + (deep >> 6).astype(">u2").tobytes()
    made["deep.avif"] = imagecodecs.avif_encode(deep >> 6, level=95, bitspersample=10)
    with contextlib.suppress(ImportError), tempfile.TemporaryDirectory() as folder:
        import OpenEXR

        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        OpenEXR.File(header, {"RGB": values.astype(np.float32)}).write(f"{folder}/a.exr")
        made["a.exr"] = Path(folder, "a.exr").read_bytes()
    with contextlib.suppress(ImportError):
        import pillow_heif

        stream = io.BytesIO()
        pillow_heif.from_pillow(picture).save(stream)
        made["a.heic"] = stream.getvalue()
    return {name: bytes(content) for name, content in made.items()}


def _bombs() -> dict[str, bytes]:
    """Return files of a few kilobytes that declare sizes of gigabytes."""
    import imagecodecs

    signature = b"\x89PNG\r\n\x1a\n"
    good = good_images()
    jpeg, bmp, gif = bytearray(good["a.jpg"]), bytearray(good["a.bmp"]), bytearray(good["a.gif"])
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", SIDE, SIDE)
    bmp[18:26] = struct.pack("<ii", SIDE, SIDE)
    gif[6:10] = struct.pack("<HH", SIDE, SIDE)
    rows = 100
    strip = zlib.compress(b"\x40" * (SIDE * rows), 9)
    count, start = SIDE // rows, 8 + len(strip) + len(strip) % 2
    tags = (
        (256, 4, 1, SIDE), (257, 4, 1, SIDE), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (273, 4, count, start),
        (277, 3, 1, 1), (278, 4, 1, rows), (279, 4, count, start + 4 * count),
    )  # fmt: skip
    tiff = b"II*\0" + struct.pack("<I", start + 8 * count) + strip + b"\0" * (len(strip) % 2)
    tiff += struct.pack("<I", 8) * count + struct.pack("<I", len(strip)) * count + struct.pack("<H", len(tags))
    tiff += b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    text = zlib.compress(bytes(200_000_000), 9)
    pixels = chunk(b"IDAT", zlib.compress(bytes(72))) + chunk(b"IEND", b"")
    large = signature + chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0))
    small = signature + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    loop = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 0) + struct.pack("<I", 8)
    zeros = bytes(imagecodecs.brotli_encode(bytes(500_000_000)))
    boxes = bytes(imagecodecs.jpegxl_encode(np.zeros((8, 8), np.uint8), usecontainer=True))
    jp2 = bytearray(good["x.jp2"])
    at = jp2.index(b"\xff\x4f\xff\x51")
    jp2[at + 8 : at + 16] = struct.pack(">II", SIDE, SIDE)
    exr = bytearray(good.get("a.exr", b""))
    if (at := exr.find(b"dataWindow")) > 0:
        exr[at + 21 : at + 37] = struct.pack("<4i", 0, 0, SIDE - 1, SIDE - 1)
    webp = b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<IB3x", 10, 0) + b"\xff\xff\x00" * 2 + bytes(8)
    return {
        "box.jxl": boxes + struct.pack(">I4s", len(zeros) + 12, b"brob") + b"Exif" + zeros,
        "size.jp2": bytes(jp2), "size.exr": bytes(exr), "size.webp": webp,
        "size.pfm": b"PF\n40000 40000\n-1\n" + bytes(100),
        "size.pam": b"P7\nWIDTH 40000\nHEIGHT 40000\nDEPTH 4\nMAXVAL 255\nENDHDR\n" + bytes(100),
        "size.png": large + pixels, "text.png": small + chunk(b"zTXt", b"k\0\0" + text) + pixels,
        "profile.png": small + chunk(b"iCCP", b"k\0\0" + text) + pixels,
        "size.jpg": bytes(jpeg), "size.bmp": bytes(bmp), "size.gif": bytes(gif), "strips.tif": tiff, "loop.tif": loop,
        "size.hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 40000 +X 40000\n" + bytes(100),
        "size.ppm": b"P6 40000 40000 255\n" + bytes(100),
    }  # fmt: skip
