"""Images above the limit of pixels: read, restored and written in strips, as they are whole."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as PilImage

from tta_restore.adapters import Adapter
from tta_restore.data.io import large as strips
from tta_restore.data.io import png
from tta_restore.data.io.image import read_image
from tta_restore.data.io.pixels import ImageError
from tta_restore.engine.run import methods, restore_large
from tta_restore.engine.run.methods import ImageMethod, create_method
from tta_restore.engine.run.restore import Output, run_jobs
from tta_restore.engine.run.restore_clips import is_constant
from tta_restore.engine.run.restore_plan import Job
from tta_restore.models import as_restorer

imagecodecs = pytest.importorskip("imagecodecs")
Y, X = np.mgrid[0:210, 0:90]
RGB = (np.stack([np.sin(X / 9 + c) * 60 + np.cos(Y / 7) * 50 + 128 for c in range(3)], -1)).astype(np.uint8)
RGB += np.random.default_rng(0).integers(0, 9, RGB.shape).astype(np.uint8)


def files(folder):
    PilImage.fromarray(RGB).save(folder / "rgb.png", dpi=(300, 300))
    PilImage.fromarray(RGB[..., 0]).save(folder / "gray.png")
    PilImage.fromarray(np.dstack([RGB, RGB[..., :1]])).save(folder / "alpha.png")
    (folder / "deep.png").write_bytes(imagecodecs.png_encode(RGB.astype(np.uint16) * 257 + 3))
    tifffile.imwrite(folder / "strips.tif", RGB, photometric="rgb", rowsperstrip=64, compression="lzw")
    tifffile.imwrite(folder / "tiles.tif", RGB.astype(np.uint16) * 200, photometric="rgb", tile=(64, 64))
    return sorted(folder.iterdir())


def test_decoding_and_encoding_by_strips_keeps_every_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(strips, "_ROWS", 37)
    (tmp_path / "in").mkdir()
    for path in files(tmp_path / "in"):
        whole = read_image(path)
        with strips.open_large(path, tmp_path / "disk", max_pixels=10**6) as found:
            assert found.size == tuple(whole.pixels.shape[1:])
            image = found.rows(0, found.size[0])
            strips.write_large(tmp_path / path.name, found.samples, found.carried)
        again = read_image(tmp_path / path.name)
        for other in (image, again):
            assert torch.equal(other.pixels, whole.pixels)
            assert (other.alpha is None) == (whole.alpha is None)
            assert whole.alpha is None or torch.equal(other.alpha, whole.alpha)
            assert other.resolution == whole.resolution
        assert list((tmp_path / "disk").iterdir()) == []


@pytest.mark.parametrize("kind", range(5))
def test_every_row_filter_of_png(kind):
    """Filtered by the definition, byte by byte."""
    rng = np.random.default_rng(kind)
    plain = rng.integers(0, 256, (9, 21), np.uint8)
    above, step = rng.integers(0, 256, 21, np.uint8), 3
    lines = np.zeros_like(plain)
    for r, row in enumerate(plain):
        up = plain[r - 1] if r else above
        for i in range(21):
            a, b, c = int(row[i - step]) if i >= step else 0, int(up[i]), int(up[i - step]) if i >= step else 0
            near = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            lines[r, i] = (int(row[i]) - (0, a, b, (a + b) // 2, near)[kind]) % 256
    np.testing.assert_array_equal(strips._unfilter(np.full(9, kind), lines, above, step), plain)


def test_strips_give_the_restored_image(tmp_path, monkeypatch):
    monkeypatch.setattr(restore_large, "LARGE_PIXELS", 10000)
    monkeypatch.setattr(restore_large, "_STRIP", 50)
    monkeypatch.setattr(restore_large, "_OVERLAP", 8)
    PilImage.fromarray(RGB).save(tmp_path / "a.png")
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 3, 3, padding=1, padding_mode="replicate")
    said = []
    output = Output(max_pixels=10**9)
    run_jobs(
        [Job(tmp_path / "a.png", tmp_path / "b.tif")],
        create_method("source", as_restorer(net)),
        output=output,
        say=said.append,
    )
    assert "90 x 210 pixels restored in strips" in said[0]
    expected = net(read_image(tmp_path / "a.png").pixels[None])[0].clamp(0, 1)
    assert (read_image(tmp_path / "b.tif").pixels - expected).abs().max() <= 0.5 / 255 + 1e-5
    doubled = lambda x: x.repeat_interleave(2, -1).repeat_interleave(2, -2)  # noqa: E731
    run_jobs([Job(tmp_path / "a.png", tmp_path / "c.png")], doubled, output=output)
    assert read_image(tmp_path / "c.png").pixels.shape == (3, 420, 180)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.tif", "c.png"]
    run_jobs([Job(tmp_path / "a.png", tmp_path / "d.jpg")], doubled, output=output, say=said.append)
    assert "written as PNG or TIFF" in said[-1]


class Learning(Adapter):
    """Counts the frames it adapts on, and restores to their number."""

    def initial_memory(self):
        return {"frames": 0}

    def begin_frame(self, frame):
        assert not any(is_constant(one) for one in frame.image)
        self.memory["frames"] += len(frame.image)

    def emit(self, frame):
        restored = super().emit(frame)
        return restored.with_image(restored.image * 0 + self.memory["frames"] / 255)


@pytest.mark.parametrize(("content", "count"), [("all", 0), ("center", 8), ("strips", 3)])
def test_constant_parts_of_large_images_are_not_adapted_on(tmp_path, monkeypatch, content, count):
    monkeypatch.setattr(restore_large, "LARGE_PIXELS", 10000)
    monkeypatch.setattr(restore_large, "_STRIP", 50)
    monkeypatch.setattr(restore_large, "_WINDOW", 30)
    pixels = RGB.copy()
    if content == "all":
        pixels[:] = 7
    elif content == "center":
        pixels[90:120, 30:60] = 255
    else:
        pixels[:180] = 255
    PilImage.fromarray(pixels).save(tmp_path / "a.png")
    said = []
    method = ImageMethod(Learning(torch.nn.Identity()))
    run_jobs([Job(tmp_path / "a.png", tmp_path / "b.png")], method, output=Output(max_pixels=10**9), say=said.append)
    how = (
        f"adapted to {count} windows of it" if count else "without adapting: the parts that were looked at are constant"
    )
    assert said == [f"note: {tmp_path / 'a.png'}: 90 x 210 pixels restored in strips, {how}"]
    assert np.all(np.asarray(PilImage.open(tmp_path / "b.png")) == count)


def test_large_images_get_fewer_views_and_say_so(tmp_path, monkeypatch):
    PilImage.fromarray(RGB).save(tmp_path / "a.png")
    job, said = Job(tmp_path / "a.png", tmp_path / "b.png"), []
    method = create_method("self-ensemble", as_restorer(torch.nn.Conv2d(3, 3, 3, padding=1)), views="rot4")
    assert method.max_view_pixels is None  # asked for
    method = create_method("self-ensemble", as_restorer(torch.nn.Conv2d(3, 3, 3, padding=1)))
    views, tiles, used = method.adapter.views, method.adapter.tiles, []
    method.max_view_pixels = RGB.size  # of three views
    monkeypatch.setattr(methods, "_LARGE", 10000)
    monkeypatch.setattr(method.adapter, "emit", lambda frame: used.append((method.adapter.views, method.adapter.tiles)))
    run_jobs([job], method, say=said.append)  # emits nothing: the file fails
    [(few, small)] = used
    assert few == views[:3]
    assert small.size == 512
    assert (method.adapter.views, method.adapter.tiles) == (views, tiles)
    with method.sized(200, 100) as note:
        assert note.startswith("0 megapixels: averaged over 2 of 4 turned views")
    with method.sized(20, 20) as note:
        assert note is None
        assert method.adapter.views is views


def test_damaged_large_files_are_told(tmp_path):
    paths = files(tmp_path)
    for path in paths:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with (
            pytest.raises(ImageError, match=f"{path.name}: truncated"),
            strips.open_large(path, tmp_path, max_pixels=10**6),
        ):
            pass
    with pytest.raises(ImageError, match="declares 90 x 210"), strips.open_large(paths[-1], tmp_path, max_pixels=99):
        pass


def pack_12(samples):
    """Two samples of 12 bits in three bytes. Shape: (H, W) with an even W."""
    first, second = samples[:, ::2], samples[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1)
    return packed.astype(np.uint8).tobytes()


def test_nothing_is_lost_in_strips_without_a_word(tmp_path, monkeypatch):
    """Chunks behind the samples, bits in larger words, and what the other format cannot hold."""
    monkeypatch.setattr(restore_large, "LARGE_PIXELS", 10000)
    output, said = Output(max_pixels=10**9), []

    def restore(source, name):
        said.clear()
        job = Job(tmp_path / source, tmp_path / name)
        summary = run_jobs([job], lambda x: x, output=output, overwrite=True, say=said.append)
        return summary, [line.split(": ", 2)[2] for line in said if "in strips" not in line]

    PilImage.fromarray(RGB).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    exif = PilImage.Exif()
    exif[271] = "camera"
    behind = png.chunk(b"tEXt", b"Title\0late") + png.chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    (tmp_path / "a.png").write_bytes(content[:-12] + behind + png.chunk(b"oFFs", bytes(9)) + content[-12:])
    assert restore("a.png", "b.png")[1] == []
    found = read_image(tmp_path / "b.png")
    assert found.text == (("Title", "late"),)
    assert found.exif is not None
    assert [extra.name for extra in found.extras] == ["oFFs"]
    assert restore("a.png", "b.tif")[1] == [
        "text left out: Title", "PNG chunks left out: oFFs",
        "EXIF left out: a TIFF file of this size is written without it",
    ]  # fmt: skip
    tags = [(256, 90), (257, 210), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, 210), (279, 210 * 135)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries
    (tmp_path / "deep.tif").write_bytes(head.ljust(122, b"\0") + pack_12(RGB[..., 0].astype(np.uint16) * 16))
    assert restore("deep.tif", "deep.png")[0].restored == 1
    torch.testing.assert_close(read_image(tmp_path / "deep.png").pixels, read_image(tmp_path / "deep.tif").pixels)
    exif[0x0112] = 6
    PilImage.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    assert "turned by its EXIF orientation: convert it first" in restore("turned.png", "c.png")[1][0]
    PilImage.fromarray(RGB).save(tmp_path / "one.png", transparency=(1, 2, 3))
    assert "with one transparent color" in restore("one.png", "c.png")[1][0]
    shape = np.dstack([RGB, RGB[..., :1]])
    tifffile.imwrite(tmp_path / "multiplied.tif", shape, photometric="rgb", extrasamples=["assocalpha"])
    assert "PNG cannot hold premultiplied alpha" in restore("multiplied.tif", "d.png")[1][0]
    gamma = png.chunk(b"gAMA", (100000).to_bytes(4, "big"))
    (tmp_path / "gamma.png").write_bytes(content[:33] + gamma + content[33:])
    assert "with a gamma of its own is written as PNG" in restore("gamma.png", "e.tif")[1][0]
