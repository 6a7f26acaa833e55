"""Images that are whole and unusual, each with what a careless reader gets wrong."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hostile.files import Made, put

__all__ = ["chunk", "odd_images"]

Y, X = np.mgrid[0:48, 0:64]
VALUES = np.stack([(np.sin(X / 9 + c) + np.cos(Y / 7)) / 4 + 0.5 for c in range(3)], -1)
RGB = (VALUES * 255).round().astype(np.uint8)
DEEP = (VALUES * 65535).round().astype(np.uint16)
ALPHA = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(48, 0)
RGBA = np.dstack([RGB, ALPHA])


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def odd_images(folder: Path, good: dict[str, bytes]) -> Iterator[Made]:
    """Write all of them; those that no reader here takes are not marked as whole."""
    for name, content in {**_tiffs(), **_pngs(good["a.png"]), **_jpegs(good["a.jpg"]), **_others()}.items():
        yield put(folder / f"odd_{name}", content, is_whole=not name.startswith("refused_"))


def _tiffs() -> dict[str, bytes]:
    import tifffile

    def tiff(array: np.ndarray, **options: Any) -> bytes:
        stream = io.BytesIO()
        tifffile.imwrite(stream, array, **options)
        return stream.getvalue()

    planes = np.moveaxis(RGB, -1, 0)
    inks = np.dstack([255 - RGB, np.zeros_like(ALPHA)])
    made = {
        "planar.tif": tiff(planes, photometric="rgb", planarconfig="separate"),
        "planar_tiles.tif": tiff(
            np.moveaxis(DEEP, -1, 0), photometric="rgb", planarconfig="separate", tile=(16, 16), compression="zlib"
        ),
        "predictor.tif": tiff(VALUES.astype(np.float32), photometric="rgb", predictor=3, compression="zlib"),
        "half.tif": tiff(VALUES.astype(np.float16), photometric="rgb"),
        "double.tif": tiff(VALUES, photometric="rgb"),
        "big.tif": tiff(RGB, photometric="rgb", bigtiff=True, description="harbor"),
        "motorola.tif": tiff(DEEP, photometric="rgb", byteorder=">"),
        "two.tif": tiff(np.stack([RGB, 255 - RGB]), photometric="rgb"),
        "stack.tif": tiff(np.stack([RGB[..., 0]] * 9), photometric="minisblack"),
        "cmyk.tif": tiff(inks, photometric="separated"),
        "cmyk_alpha.tif": tiff(np.dstack([inks, ALPHA]), photometric="separated", extrasamples=["unassalpha"]),
        "white.tif": tiff(255 - RGB[..., 0], photometric="miniswhite"),
        "bits.tif": tiff(RGB[..., 0] > 127, photometric="minisblack"),
        "alpha.tif": tiff(RGBA, photometric="rgb", extrasamples=["assocalpha"]),
        "extra.tif": tiff(RGBA, photometric="rgb", extrasamples=["unspecified"]),
        "jpeg.tif": tiff(RGB, photometric="ycbcr", compression="jpeg", subsampling=(2, 2)),
        "webp.tif": tiff(RGB, photometric="rgb", compression="webp"),
        "zstd.tif": tiff(RGB, photometric="rgb", compression="zstd"),
        "imagej.tif": tiff(DEEP[..., 0], imagej=True, metadata={"Info": "a leaf"}),
        "map.tif": tiff(
            RGB, photometric="rgb", metadata=None,
            extratags=[(33550, 12, 3, (1.0, 1.0, 0.0), True), (42113, 2, 0, "-9999", True)],
        ),
        "turned.tif": tiff(RGB, photometric="rgb", metadata=None, extratags=[(274, 3, 1, 6, True)]),
        "one.tif": tiff(RGB[:1, :1], photometric="rgb"),
        "refused_signed.tif": tiff((VALUES * 32767).astype(np.int16), photometric="rgb"),
        "refused_long.tif": tiff((VALUES * 2**31).astype(np.uint32), photometric="rgb"),
        "refused_complex.tif": tiff(VALUES[..., 0].astype(np.complex64), photometric="minisblack"),
        "refused_five.tif": tiff(
            np.dstack([RGBA, ALPHA]), photometric="rgb", extrasamples=["unassalpha", "unspecified"]
        ),
        "refused_nan.tif": tiff(np.where(VALUES > 0.8, np.nan, VALUES).astype(np.float32), photometric="rgb"),
        "refused_range.tif": tiff((VALUES * 4000).astype(np.float32), photometric="rgb"),
    }  # fmt: skip
    for name, mode in (("palette.tif", "P"), ("refused_lab.tif", "LAB"), ("fax.tif", "1")):
        made[name] = _pillow("TIFF", _picture().convert(mode), **({"compression": "group4"} if mode == "1" else {}))
    return made


def _pngs(good: bytes) -> dict[str, bytes]:
    from PIL import ImageCms

    def png(array: np.ndarray, color: int, *extra: tuple[bytes, bytes], interlaced: bool = False) -> bytes:
        height, width = array.shape[:2]
        rows = array.astype(">u2") if array.dtype == np.uint16 else array
        passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        parts = [rows[y::down, x::across] for x, y, across, down in passes] if interlaced else [rows]
        raw = b"".join(b"\0" + row.tobytes() for part in parts for row in part if part.size)
        header = struct.pack(">IIBBBBB", width, height, 8 * array.dtype.itemsize, color, 0, 0, interlaced)
        chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*entry) for entry in chunks)

    first = struct.pack(">3H", *map(int, DEEP[0, 0]))
    wide = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    end = chunk(b"IEND", b"")
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    cut = good[: good.rindex(b"IDAT") + 200]
    return {
        "transparent.png": png(DEEP, 2, (b"tRNS", first)),
        "transparent_gray.png": png(DEEP[..., 0], 0, (b"tRNS", first[:2])),
        "linear.png": png(RGB, 2, (b"gAMA", struct.pack(">I", 100000)), (b"cHRM", wide)),
        "hdr.png": png(DEEP, 2, (b"cICP", bytes([9, 16, 0, 1])), (b"mDCV", bytes(24)), (b"cLLI", bytes(8))),
        "interlaced.png": png(RGB, 2, interlaced=True),
        "gamma_zero.png": png(RGB, 2, (b"gAMA", bytes(4))),
        "cut_text.png": png(RGB, 2, (b"zTXt", b"k\0\0" + b"no deflate"), (b"iTXt", b"\xff"), (b"pHYs", b"12")),
        "late.png": good[: -len(end)] + chunk(b"tEXt", b"Comment\0late") + end,
        "animated.png": _pillow("PNG", _picture(), save_all=True, append_images=[_picture().rotate(180)]),
        "profile_lab.png": _pillow("PNG", _picture(), icc_profile=lab),
        "profile_noise.png": _pillow("PNG", _picture(), icc_profile=b"no profile" * 20),
        "palette.png": _pillow("PNG", _picture().quantize(16), bits=4),
        "bit.png": _pillow("PNG", _picture().convert("1")),
        "refused_checksum.png": good.replace(b"IDAT", b"IDAT\xff", 1),
        "refused_no_header.png": good[:8] + good[33:],
        "refused_two_headers.png": cut + good[8:],
    }  # fmt: skip


def _jpegs(good: bytes) -> dict[str, bytes]:
    import imagecodecs
    from PIL import Image

    made = {
        "cmyk.jpg": _pillow("JPEG", _picture().convert("CMYK")),
        "gray.jpg": _pillow("JPEG", _picture().convert("L")),
        "rgb.jpg": imagecodecs.jpeg8_encode(RGB, colorspace="RGB", outcolorspace="RGB"),
        "mpo.jpg": _pillow("MPO", _picture(), save_all=True, append_images=[_picture()]),
        "segments.jpg": good[:2] + b"\xff\xeb\0\6JP\0\0" + b"\xff\xe1\0\3x" + b"\xff\xfe\0\4\xff\xfe" + good[2:],
        "refused_12.jpg": imagecodecs.jpeg8_encode(DEEP[..., 0] >> 4, bitspersample=12),
        "refused_lossless.jpg": imagecodecs.ljpeg_encode(DEEP[..., 0]),
        "refused_ls.jpg": imagecodecs.jpegls_encode(RGB),
    }
    for orientation in (0, 2, 5, 8, 9):
        exif = Image.Exif()
        exif[274] = orientation
        made[f"turned{orientation}.jpg"] = _pillow("JPEG", _picture(), exif=exif)
    made["exif_noise.jpg"] = _pillow("JPEG", _picture(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    return {name: bytes(content) for name, content in made.items()}


def _others() -> dict[str, bytes]:
    import imagecodecs
    from PIL import Image

    turned = _picture().rotate(90, expand=True)
    values = VALUES.astype(np.float32)
    made = {
        "animated.gif": _pillow("GIF", _picture().quantize(64), save_all=True, append_images=[_picture().quantize(8)]),
        "clear.gif": _pillow("GIF", Image.fromarray(RGBA)),
        "animated.webp": _pillow("WEBP", _picture(), save_all=True, append_images=[_picture().rotate(180)]),
        "alpha.webp": _pillow("WEBP", Image.fromarray(RGBA), lossless=True),
        "alpha.avif": _pillow("AVIF", Image.fromarray(RGBA)),
        "gray.avif": imagecodecs.avif_encode(RGB[..., 0]),
        "deep.jxl": imagecodecs.jpegxl_encode(DEEP, lossless=True),
        "float.jxl": imagecodecs.jpegxl_encode(values, lossless=True),
        "alpha.jxl": imagecodecs.jpegxl_encode(RGBA, lossless=True),
        "deep.jp2": imagecodecs.jpeg2k_encode(DEEP, level=0),
        "gray.j2k": imagecodecs.jpeg2k_encode(RGB[..., 0], level=0, codecformat="j2k"),
        "palette.bmp": _pillow("BMP", _picture().quantize(64)),
        "bit.bmp": _pillow("BMP", _picture().convert("1")),
        "alpha.bmp": _pillow("BMP", Image.fromarray(RGBA)),
        "text.ppm": b"P3\n# by hand\n2 1 # small\n15\n1 2 3 15 15 0\n",
        "bits.pbm": b"P4 64 48\n" + np.packbits(RGB[..., 0] > 127, axis=1).tobytes(),
        "alpha.pam": b"P7\nWIDTH 64\nHEIGHT 48\nDEPTH 4\nMAXVAL 255\nENDHDR\n" + RGBA.tobytes(),
        "gray.pfm": b"Pf\n64 48\n2.0\n" + values[::-1, :, 0].astype(">f4").tobytes(),
        "bright.hdr": imagecodecs.rgbe_encode(values * 50),
        "refused_x.qoi": imagecodecs.qoi_encode(RGB),
        "refused_x.jxr": imagecodecs.jpegxr_encode(RGB),
        "refused_x.tga": _pillow("TGA", _picture()),
        "refused_x.ico": _pillow("ICO", turned),
        "refused_nan.pfm": b"PF\n1 1\n-1\n" + b"\0\0\xc0\x7f" * 3,
    }
    with contextlib.suppress(ImportError):
        made |= _exrs()
    with contextlib.suppress(ImportError):
        import pillow_heif

        for name, pictures in (("alpha.heic", [Image.fromarray(RGBA)]), ("two.heic", [_picture(), turned])):
            stream, file = io.BytesIO(), pillow_heif.from_pillow(pictures[0])
            for picture in pictures[1:]:
                file.add_from_pillow(picture)
            file.save(stream)
            made[name] = stream.getvalue()
    return {name: bytes(content) for name, content in made.items()}


def _exrs() -> dict[str, bytes]:
    import tempfile

    import OpenEXR

    def exr(channels: dict[str, np.ndarray], **attributes: Any) -> bytes:
        header = {"compression": OpenEXR.PIZ_COMPRESSION, "type": OpenEXR.scanlineimage, **attributes}
        with tempfile.TemporaryDirectory() as folder:
            OpenEXR.File(header, channels).write(f"{folder}/a.exr")
            return Path(folder, "a.exr").read_bytes()

    def parts(**named: dict[str, np.ndarray]) -> bytes:
        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        with tempfile.TemporaryDirectory() as folder:
            made = [OpenEXR.Part(header | {"name": name}, channels) for name, channels in named.items()]
            OpenEXR.File(made).write(f"{folder}/a.exr")
            return Path(folder, "a.exr").read_bytes()

    values = VALUES.astype(np.float32)
    wide = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.329)
    return {
        "half.exr": exr({"RGB": values.astype(np.float16)}, owner="me", comments="x" * 5000),
        "wide.exr": exr({"RGB": values * 8}, chromaticities=wide, pixelAspectRatio=2.0),
        "window.exr": exr({"Y": values[..., 0]}, dataWindow=((-9, 5), (54, 52)), displayWindow=((0, 0), (99, 99))),
        "depth.exr": exr({"RGBA": np.dstack([values, values[..., :1]]), "Z": values[..., 0]}),
        "parts.exr": parts(depth={"Z": values[..., 0]}, beauty={"RGB": values}, left={"RGB": values / 2}),
        "refused_parts.exr": parts(depth={"Z": values[..., 0]}, id={"N": values[..., 0]}),
        "refused_cut_parts.exr": parts(beauty={"RGB": values}, left={"RGB": values})[:-4000],
        "refused_alpha.exr": exr({"RGBA": np.dstack([values, np.full_like(values[..., :1], np.nan)])}),
        "refused_layers.exr": exr({"diffuse.RGB": values}),
        "refused_nan.exr": exr({"RGB": np.where(values > 0.8, np.inf, values)}),
    }


def _picture() -> Any:
    from PIL import Image

    return Image.fromarray(RGB)


def _pillow(kind: str, picture: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()
