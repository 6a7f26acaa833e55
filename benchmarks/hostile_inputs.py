"""Count what happens to at least 150 damaged, lying and unusual inputs: each has to be named in one line, or restored.

    python -m benchmarks.hostile_inputs [--out results.json] [--only images,videos,states,checkpoints,configurations]

A child process takes the inputs one after the other; one that takes more than ten seconds, ends the process or lets an
exception out is a failure, and the child goes on behind it. Peak memory is that of the child.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import selectors
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

KINDS = ("images", "videos", "states", "checkpoints", "configurations")
LONGEST = 10.0  # seconds for one input
SIDE = 40000


def make_inputs(folder: Path, kinds: tuple[str, ...] = KINDS) -> list[tuple[str, Path]]:
    """Write all hostile inputs below a folder; return their kinds and paths."""
    makers: dict[str, Callable[[Path], Iterator[Path]]] = {
        "images": _images, "videos": _videos, "states": _states, "checkpoints": _checkpoints,
        "configurations": _configurations,
    }  # fmt: skip
    made = []
    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        made += [(kind, path) for path in makers[kind](folder / kind)]
    (folder / "list.json").write_text(json.dumps([(kind, str(path)) for kind, path in made]))
    return made


def _images(folder: Path) -> Iterator[Path]:
    rng = np.random.default_rng(0)
    for name, content in _good_images().items():
        stem, suffix = name.rsplit(".", 1)
        cuts = {f"cut{percent}": content[: len(content) * percent // 100] for percent in (1, 50, 97)}
        for how, data in cuts.items():
            yield _put(folder / f"{stem}_{how}.{suffix}", data)
        for number in range(2):
            flipped = bytearray(content)
            for at in rng.integers(0, len(content), 8):
                flipped[at] ^= 1 << int(rng.integers(8))
            yield _put(folder / f"{stem}_flipped{number}.{suffix}", bytes(flipped))
        yield _put(folder / f"{stem}_headless.{suffix}", content[64:])
        yield _put(folder / f"{stem}_tail.{suffix}", content + rng.bytes(500))
    for name, content in _bombs().items():
        yield _put(folder / f"bomb_{name}", content)
    random = {
        "empty.png": b"",
        "zeros.jpg": bytes(4096),
        "noise.tif": rng.bytes(4096),
        "text.webp": b"hello",
        "one.jxl": b"\xff",
    }
    for name, content in random.items():
        yield _put(folder / name, content)
    good = _good_images()
    yield _put(folder / "line\nbreak \x1b[31m.png", b"no image")
    yield _put(folder / "really_a_png.jpg", good["a.png"])
    yield _put(folder / "²³.png", good["a.png"])
    yield _put(folder / ("n" * 250 + ".png"), good["a.png"])
    os.mkfifo(folder / "pipe.png")
    yield folder / "pipe.png"
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    yield folder / "gone.png"
    (folder / "zero.png").symlink_to("/dev/zero")
    yield folder / "zero.png"
    (folder / "a_folder.png").mkdir()
    yield folder / "a_folder.png"
    for name, head in (("photo.nef", b"MM\0*"), ("photo.dng", b"II*\0"), ("photo.cr3", b"\0\0\0\x18ftypcrx ")):
        yield _put(folder / name, head + rng.bytes(2000))
    for name, head in (("art.psd", b"8BPS"), ("page.pdf", b"%PDF-1.7"), ("draw.svg", b"<?xml version='1.0'?><svg/>")):
        yield _put(folder / name, head + bytes(500))


def _good_images() -> dict[str, bytes]:
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
    """Files of a few kilobytes that declare sizes of gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    signature = b"\x89PNG\r\n\x1a\n"
    good = _good_images()
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
    return {
        "size.png": large + pixels, "text.png": small + chunk(b"zTXt", b"k\0\0" + text) + pixels,
        "profile.png": small + chunk(b"iCCP", b"k\0\0" + text) + pixels,
        "size.jpg": bytes(jpeg), "size.bmp": bytes(bmp), "size.gif": bytes(gif), "strips.tif": tiff, "loop.tif": loop,
        "size.hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 40000 +X 40000\n" + bytes(100),
        "size.ppm": b"P6 40000 40000 255\n" + bytes(100),
    }  # fmt: skip


def _videos(folder: Path) -> Iterator[Path]:
    import av

    rng = np.random.default_rng(1)
    kinds = (
        ("a.mp4", None, "libx264"), ("a.mkv", None, "libx264"), ("a.avi", None, "mpeg4"), ("a.ts", "mpegts", "libx264"),
        ("a.mpg", "mpeg", "mpeg2video"), ("a.flv", "flv", "flv"), ("a.wmv", "asf", "wmv2"), ("a.webm", None, "libvpx"),
    )  # fmt: skip
    for name, container, codec in kinds:
        path = folder / name
        with av.open(str(path), "w", format=container) as file:
            stream = file.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
            base = rng.integers(0, 255, (24, 32, 3), np.uint8)
            for number in range(12):
                array = np.kron(np.roll(base, number, 1), np.ones((4, 4, 1), np.uint8))
                frame = av.VideoFrame.from_ndarray(array, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
        content = path.read_bytes()
        path.unlink()
        stem, suffix = name.split(".")
        for percent in (2, 60):
            yield _put(folder / f"{stem}_cut{percent}.{suffix}", content[: len(content) * percent // 100])
        flipped = bytearray(content)
        for at in rng.integers(len(content) // 4, len(content), 40):
            flipped[at] ^= 0xFF
        yield _put(folder / f"{stem}_flipped.{suffix}", bytes(flipped))
        yield _put(
            folder / f"{stem}_holes.{suffix}",
            content[: len(content) // 2] + bytes(300) + content[len(content) // 2 + 300 :],
        )
    yield _put(folder / "empty.mp4", b"")
    yield _put(folder / "text.mkv", b"no video")
    yield _put(folder / "noise.mov", rng.bytes(5000))
    yield _put(folder / "http:remote.mp4", b"no address")


def _states(folder: Path) -> Iterator[Path]:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(2)
    save_file({"a": np.zeros(3, np.float32)}, folder / "other.safetensors")
    yield folder / "other.safetensors"
    content = (folder / "other.safetensors").read_bytes()
    save_file({"a": np.zeros(3, np.float32)}, folder / "list.safetensors", {"restored_inputs": "not json"})
    yield folder / "list.safetensors"
    yield _put(folder / "cut.safetensors", content[:20])
    yield _put(folder / "length.safetensors", struct.pack("<Q", 2**62) + content[8:])
    yield _put(folder / "text", b"hello")
    yield _put(folder / "empty", b"")
    yield _put(folder / "noise", rng.bytes(3000))
    (folder / "folder").mkdir()
    yield folder / "folder"
    os.mkfifo(folder / "pipe")
    yield folder / "pipe"


class _RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/hostile_inputs_ran_code",)


def _checkpoints(folder: Path) -> Iterator[Path]:
    import pickle

    import torch
    from safetensors.torch import save_file

    rng = np.random.default_rng(3)
    torch.save({"state_dict": {"layer.weight": torch.zeros(3)}}, folder / "other.pth")
    yield folder / "other.pth"
    content = (folder / "other.pth").read_bytes()
    yield _put(folder / "cut.pth", content[: len(content) // 2])
    yield _put(folder / "pickle.pth", pickle.dumps(_RunsCode()))
    torch.save([1, 2, 3], folder / "list.pth")
    yield folder / "list.pth"
    torch.save({}, folder / "nothing.pth")
    yield folder / "nothing.pth"
    save_file({"w": torch.full((3,), float("nan"))}, folder / "nan.safetensors")
    yield folder / "nan.safetensors"
    for name, data in (
        ("empty.pth", b""),
        ("text.pth", b"hello"),
        ("noise.pth", rng.bytes(3000)),
        ("noise.safetensors", rng.bytes(3000)),
    ):
        yield _put(folder / name, data)


def _configurations(folder: Path) -> Iterator[Path]:
    texts = {
        "empty.toml": "", "text.toml": "hello", "list.json": "[1]", "number.json": "3",
        "unknown.toml": "[nonsense]\na = 1\n",
        "model.toml": "[model]\nname = 'nothing'\n", "cut.json": '{"model": ', "deep.json": "[" * 5000,
        "kinds.toml": "model = 3\ndata = 'x'\n", "steps.toml": "[run]\nsteps = -5\n", "null.json": "null",
    }  # fmt: skip
    for name, text in texts.items():
        yield _put(folder / name, text.encode())
    yield _put(folder / "bytes.toml", bytes(range(128, 256)))


def _put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def run_child(folder: Path, numbers: list[int], kinds: tuple[str, ...], made: list[tuple[str, Path]]) -> None:
    """Take the inputs with these numbers and print a line of JSON for each."""
    good = folder / "good.png"
    with contextlib.redirect_stderr(io.StringIO()):  # imports are not what is timed
        _take("images", good, good, folder / "warm")
    for number in numbers:
        kind, path = made[number]
        print(json.dumps({"start": number}), flush=True)
        before = time.perf_counter()
        said, status, failure = io.StringIO(), None, None
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                status = _take(kind, path, good, folder / "out")
        except BaseException as error:  # what gets out is a failure, whatever it is
            failure = f"{type(error).__name__}: {str(error)[:150]}"
        lines = [line for line in said.getvalue().splitlines() if line.strip()]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = {"number": number, "status": status, "failure": failure, "lines": lines[:20]}
        print(json.dumps(result | {"seconds": time.perf_counter() - before, "peak": peak}), flush=True)


def _take(kind: str, path: Path, good: Path, out: Path) -> int:
    from tta_restore.cli import main

    identity = ["--method", "source", "--model", "torch.nn:Identity", "--device", "cpu"]
    try:
        if kind in ("images", "videos"):
            return main(["restore", str(path), str(good), "-o", str(out / kind / str(abs(hash(path)))), *identity])
        if kind == "states":
            identity[1], identity[3] = "siam-ctta", "benchmarks.hostile_inputs:restorer"
            return main(["restore", str(good), "-o", str(out / "states"), "--state", str(path), *identity])
        if kind == "checkpoints":
            return main(
                ["restore", str(good), "-o", str(out / "checkpoints"), "--method", "source", "--model", str(path)]
            )
        return main(["train", "supervised", "--config", str(path), "--out", str(out / "run")])
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 2


def restorer() -> object:
    """Return a network that a method can adapt."""
    import torch

    return torch.nn.Conv2d(3, 3, 1, bias=False)


def judge(kind: str, path: Path, result: dict) -> tuple[str, str]:
    """Return an outcome ("named", "restored", "left out" or "failure") and why."""
    if result["failure"]:
        return "failure", result["failure"]
    if result["seconds"] > LONGEST:
        return "failure", f"took {result['seconds']:.0f} s"
    errors = [line for line in result["lines"] if not line.startswith(("note:", "usage:", "warning:"))]
    if any("Traceback" in line for line in result["lines"]):
        return "failure", "a traceback"
    if result["status"] == 0:
        if kind in ("images", "videos"):
            return "restored", "; ".join(line for line in result["lines"] if line.startswith("note:"))[:200]
        return "failure", "accepted without a word"
    name = path.name.encode("unicode_escape").decode() if not path.name.isprintable() else path.name
    named = [line for line in result["lines"] if name in line]
    if kind not in ("images", "videos") and len(errors) == 1 and "Error: " not in errors[0]:
        named = errors  # a command with one such file need not repeat its name
    if not named:
        return "failure", f"not named: {' / '.join(errors)[:200]}"
    return "named", named[0][-200:]


def main_hostile(kinds: tuple[str, ...], limit: int | None = None) -> list[dict]:
    """Run all inputs in child processes and return their results."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = make_inputs(folder / "in", kinds)[:limit]
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(folder / "good.png")
        results: dict[int, dict] = {}
        waiting = list(range(len(made)))
        while waiting:
            _watch(folder, made, waiting, kinds, results)
            waiting = [number for number in waiting if number not in results]
        rows = []
        for number, (kind, path) in enumerate(made):
            outcome, why = judge(kind, path, results[number])
            rows.append({"kind": kind, "name": path.name, "outcome": outcome, "why": why, **results[number]})
        return rows


def _watch(folder: Path, made: list, waiting: list[int], kinds: tuple[str, ...], results: dict[int, dict]) -> None:
    """Run a child until it is done, hangs or dies; note the result of the input that it was at."""
    numbers = ",".join(map(str, waiting))
    command = [sys.executable, "-m", "benchmarks.hostile_inputs", "--child", str(folder), "--numbers", numbers]
    started: int | None = None
    with subprocess.Popen(
        [*command, "--only", ",".join(kinds)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        selector = selectors.DefaultSelector()
        assert child.stdout is not None
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            patience = 120.0 if started is None else 3 * LONGEST
            if not selector.select(patience):
                child.kill()
                break
            line = child.stdout.readline()
            if not line:
                break
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if "start" in event:
                    started = event["start"]
                else:
                    results[event["number"]] = event
                    started = -1
    if started is not None and started >= 0 and started not in results:
        why = "hangs" if child.returncode == -9 else f"ends the process ({child.returncode})"
        results[started] = {"failure": why, "seconds": 0.0, "lines": [], "status": None, "peak": 0}
    elif started is None:
        raise SystemExit("the child did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file with a row per input")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, separated by commas")
    parser.add_argument("--limit", type=int, help="first inputs only")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--numbers", help=argparse.SUPPRESS)
    options = parser.parse_args()
    kinds = tuple(options.only.split(","))
    if options.child is not None:
        made = _listed(options.child / "in", kinds)
        run_child(options.child, [int(number) for number in options.numbers.split(",")], kinds, made)
        return
    rows = main_hostile(kinds, options.limit)
    print(f"{'kind':16}{'inputs':>8}{'named':>8}{'restored':>10}{'failure':>9}{'slowest':>10}")
    for kind in kinds:
        of_kind = [row for row in rows if row["kind"] == kind]
        counts = Counter(row["outcome"] for row in of_kind)
        slowest = max((row["seconds"] for row in of_kind), default=0)
        print(
            f"{kind:16}{len(of_kind):8}{counts['named']:8}{counts['restored']:10}{counts['failure']:9}{slowest:9.1f}s"
        )
    print(f"{len(rows)} inputs, peak memory {max(row['peak'] for row in rows) / 1e6:.2f} GB")
    for row in rows:
        if row["outcome"] == "failure":
            print(f"FAILURE {row['kind']}/{row['name']!r}: {row['why']}")
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1))


def _listed(folder: Path, kinds: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Return what :func:`make_inputs` wrote, in its order, by the list that it left."""
    return [(kind, Path(path)) for kind, path in json.loads((folder / "list.json").read_text())]


if __name__ == "__main__":
    main()
