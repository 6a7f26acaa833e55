"""Folders as people have them: every file is restored, named or counted, and no result overwrites another."""

from __future__ import annotations

import io
import os
import time
import types
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image as PilImage

from tta_restore.data.io.atomic import exclusive_lock
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.engine.run import restore as restore_module
from tta_restore.engine.run.restore import Output, restore_files, run_jobs
from tta_restore.engine.run.restore_plan import Job, plan_jobs
from tta_restore.engine.run.usage import UsageError


def put(path, kind="PNG", size=(12, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)
    PilImage.fromarray(pixels).save(path, kind)
    return path


def restore(inputs, out, **options):
    options = {"model": "torch.nn:Identity"} | options
    return restore_files(inputs, out, method="source", device="cpu", **options)


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_files_of_any_name_are_restored_or_counted(tmp_path, capsys):
    put(tmp_path / "in/a.png")
    put(tmp_path / "in/photo.jfif", "JPEG")
    put(tmp_path / "in/scan.JPE", "JPEG")
    put(tmp_path / "in/shot.webp", "WEBP")
    put(tmp_path / "in/old.bmp", "BMP")
    put(tmp_path / "in/no suffix", "PNG")
    put(tmp_path / "in/upload.2019", "JPEG")
    put(tmp_path / "in/.hidden.png")
    for name in ("notes.txt", "more.txt", "art.psd", "song.mp3"):
        (tmp_path / "in" / name).write_bytes(b"8BPS" if name == "art.psd" else b"ID3")
    os.mkfifo(tmp_path / "in/pipe")
    summary = restore([tmp_path / "in"], tmp_path / "out")
    assert names(tmp_path / "out") == [
        "a.png", "no suffix.png", "old.png", "photo.jfif", "scan.JPE", "shot.webp", "upload.2019.png",
    ]  # fmt: skip
    assert summary.exit_code == 0
    assert summary.left_out == {".txt": 2, "Photoshop document": 1, ".mp3": 1, "FIFO": 1, "hidden": 1}
    assert str(summary) == "7 restored, left out: 2 .txt, 1 .mp3, 1 FIFO, 1 Photoshop document, 1 hidden"
    assert capsys.readouterr().err == ""


def test_equal_stems_keep_their_results_apart(tmp_path):
    for name, kind in (("a.png", "PNG"), ("a.bmp", "BMP"), ("a.gif", "GIF"), ("b.jpg", "JPEG"), ("b.png", "PNG")):
        put(tmp_path / "in" / name, kind)
    assert restore([tmp_path / "in"], tmp_path / "out").restored == 5
    assert names(tmp_path / "out") == ["a.bmp.png", "a.gif.png", "a.png", "b.jpg", "b.png"]
    assert restore([tmp_path / "in"], tmp_path / "out").kept == 5
    assert restore([tmp_path / "in"], tmp_path / "jpg", format="jpeg").restored == 5
    assert names(tmp_path / "jpg") == ["a.gif.jpg", "a.jpg", "a.png.jpg", "b.jpg", "b.png.jpg"]


def test_names_that_some_file_systems_take_for_one(tmp_path):
    for name in (unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png"), "A.png", "a.png"):
        put(tmp_path / "in" / name)
    plan = plan_jobs([tmp_path / "in"], tmp_path / "out")
    keys = {unicodedata.normalize("NFC", str(job.destination)).casefold() for job in plan.jobs}
    assert len(keys) == len(plan.jobs) == 4
    assert len(plan.notes) == 2
    assert "differ only in case or in how accents are encoded" in plan.notes[0]


def test_odd_names(tmp_path, capsys):
    for name in ("x².png", "x³.png", "x10.png", "①.png", "-o.png", "a" * 250 + ".png"):
        put(tmp_path / "in" / name)
    (tmp_path / "in/bad\nerror: full \x1b[31m.png").write_text("no image")
    (tmp_path / os.fsdecode(b"in/\xff.png")).write_text("no image")
    summary = restore([tmp_path / "in"], tmp_path / "out")
    assert (summary.restored, summary.failed) == (6, 2)
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert len(said.splitlines()) == 2
    assert "bad\\nerror: full \\x1b[31m.png: not an image" in said


def test_linked_folders_are_entered_once(tmp_path):
    put(tmp_path / "elsewhere/a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/gone.png").symlink_to(tmp_path / "nowhere.png")
    summary = restore([tmp_path / "in"], tmp_path / "out")
    assert names(tmp_path / "out") == ["link/a.png"]
    assert (summary.restored, summary.failed) == (1, 1)


@pytest.mark.parametrize(
    ("inputs", "out", "options", "match"),
    [
        ([""], "out", {}, "expected the input to be a path, got ''"),
        (["in"], "", {}, "expected the output to be a path, got ''"),
        ([], "out", {}, "at least one input"),
        (["in"], "file", {}, "a file with this name is there"),
        (["in"], "file/below", {}, "file is not a folder"),
        (["in"], "out.png", {}, "named like a file, .* out.png/ names the folder"),
        (["in/a.png"], "out.jepg", {}, ".jepg cannot be written; there are: png, .*; out.jepg/ names a folder"),
        (["in/a.png"], "out.jpg", {"format": "png"}, "ends in .png for --format png"),
        (["in/film.mkv"], "out.mkv", {"bit_depth": 16}, "--bit-depth 16: video results have 8, 10, 12 bits"),
        (["in/a.png"], "out.png", {"bit_depth": 10}, "--bit-depth 10: image results have 8, 16, 32 bits"),
        (["in"], "out.jp2", {}, ".jp2 cannot be written"),
        (["in/a.png"], "out.ppm", {}, ".ppm cannot be written; there are: png, jpeg"),
        (["in/a.png"], "out.avi", {}, ".avi cannot be written; .* and for videos .mp4"),
        (["in/a.png"], "out.mp4", {}, "a.png is an image, not written as .mp4"),
        (["in/film.mkv"], "out.png", {}, "film.mkv is a video, not written as .png"),
        (["in"], "loop", {}, "output loop: a link that leads nowhere"),
        (["in/a.png"], "pipe.png", {}, "output pipe.png: a FIFO with this name is there"),
        (["in/a.png"], "pipe/a.png/", {}, "pipe is not a folder"),
        (["in"], "taken", {}, "output taken/a.png: a folder with this name is there"),
        (["in"], "taken", {"clips": True}, "output taken/in: a file with this name is there"),
        (["in/a.png"], "x" * 300 + ".png", {}, "file name too long"),
        (["in"], "x" * 300, {}, "(?i)file name too long"),
        (["in"], "out", {"state": "x" * 300}, "--state x+: file name too long"),
        (["in/a.png"], "out", {"model": "x" * 300}, "no model 'x+'"),
        (["in/a.png"], "out", {"model": "ifan", "checkpoint": "x" * 300}, "no weights called 'x+' are shipped"),
        (["in/a.png"], "out", {"model": "ifan", "checkpoint": "./" + "x" * 300}, "there is no file x+"),
        (["in/a.png", "in/b.png"], "out.webp", {}, "named like a file"),
        (["in"], "in", {}, "the originals would be overwritten"),
        (["in"], "out", {"state": "in"}, "--state in: is a folder"),
        (["in"], "out", {"state": "file/x"}, "--state"),
        (["in"], "out", {"state": "in/a.png"}, "is also an input"),
        (["in"], "out", {"quality": 0}, "quality from 1 to 100, got 0"),
        (["in"], "out", {"bit_depth": 9}, "expected bit_depth"),
        (["in"], "out", {"format": "gif"}, "no format 'gif'; there are: png"),
        (["in"], "out", {"codec": "divx"}, "no codec 'divx'"),
        (["in"], "out", {"max_pixels": 0}, "max_pixels >= 1"),
        (["in"], "out", {"format": "jpeg", "bit_depth": 16}, "--bit-depth 16: jpeg holds 8 bits"),
        (["in"], "out", {"format": "png", "bit_depth": 32}, "--bit-depth 32: png holds 8 or 16 bits"),
        (["in/a.png"], "/proc/out.png", {}, "output /proc: /proc cannot be written to"),
        (["in"], "/proc/out", {}, "output /proc/out: /proc cannot be written to"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_done(inputs, out, options, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "in/a.png")
    put(tmp_path / "in/b.png")
    (tmp_path / "in/film.mkv").write_bytes(b"\x1a\x45\xdf\xa3")
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "taken/a.png").mkdir(parents=True)
    (tmp_path / "taken/in").write_text("")
    before = names(tmp_path)
    with pytest.raises(UsageError, match=match):
        restore(inputs, out, **options)
    assert names(tmp_path) == before


@pytest.mark.parametrize("out", ["out.png/", "out.jepg/", "out.v2", "out.2024"])
def test_a_single_file_into_a_folder_with_a_dot(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "in/a.png")
    assert restore(["in/a.png"], out).restored == 1
    assert (tmp_path / out / "a.png").is_file()


def test_an_output_in_the_input_folder_holds_no_originals(tmp_path):
    folder = tmp_path / "in"
    for name in ("a.png", "b.png", "sub/b.png", "other/c.png"):
        put(folder / name)
    os.utime(folder / "sub/b.png", (0, 0))  # older than b.png, which would be written there
    for name, file in (("sub", "b.png"), ("other", "c.png")):
        with pytest.raises(UsageError, match=f"is part of the input folder and holds {file}, which is no result"):
            restore([folder], folder / name)
    assert restore([folder], folder / "made").restored == 4
    assert restore([folder], folder / "made").kept == 4  # after an interrupted run, without its configuration
    (folder / "made/tta-restore.yaml").write_text("")
    (folder / "a.png").unlink()
    os.utime(folder / "made/b.png", (0, 0))
    assert restore([folder], folder / "made").restored == 1


def test_options_without_effect_are_noted(tmp_path, capsys):
    put(tmp_path / "a.png")
    options = {"quality": 50, "crf": 20, "deinterlace": True, "clips": True}
    assert restore([tmp_path / "a.png"], tmp_path / "b.png", **options).restored == 1
    note = "note: without effect on these inputs: --crf, --deinterlace, --quality, --clips"
    assert note in capsys.readouterr().err.splitlines()
    restore([tmp_path / "a.png"], tmp_path / "b.jpg", quality=50)
    assert "without effect" not in capsys.readouterr().err


def test_addresses_are_no_files(tmp_path, capsys):
    assert restore(["https://example.org/a.png"], tmp_path / "out").failed == 1
    assert "a.png: an address, not a file: download it first" in capsys.readouterr().err


def test_special_inputs_are_named(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.png")
    summary = restore([tmp_path / "pipe.png", "/dev/zero"], tmp_path / "out")
    assert summary.exit_code == 1
    assert [line.rsplit(": ", 2)[1:] for line in capsys.readouterr().err.splitlines()] == [
        ["not a regular file", "a FIFO"],
        ["not a regular file", "a device"],
    ]


def test_constant_images_are_restored_without_adapting(tmp_path):
    class Method:
        def __call__(self, x):
            raise AssertionError("adapted")

        def predict(self, x):
            return 1 - x

    method = Method()

    write_image(tmp_path / "in/white.png", Image(torch.ones(3, 40, 50)))
    sizes = {"one.png": (1, 1), "row.png": (1, 300), "few.png": (7, 9)}
    for name, size in sizes.items():
        write_image(tmp_path / "in" / name, Image(torch.rand(3, *size)))
    said = []
    summary = run_jobs(plan_jobs([tmp_path / "in"], tmp_path / "out").jobs, method, say=said.append)
    assert summary.restored == 4
    assert all("restored without adapting, nothing can be learned from it" in line for line in said)
    assert "the image has 300 x 1 pixels: " in said[2]
    for name in ("white.png", *sizes):
        given, restored = (read_image(tmp_path / folder / name).pixels for folder in ("in", "out"))
        assert torch.allclose(1 - given, restored, atol=1 / 255)


def test_formats_quality_and_depth_by_option(tmp_path):
    rng = np.random.default_rng(0)
    PilImage.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(tmp_path / "a.png", dpi=(300, 300))
    for kind, suffix in (("jpeg", "jpg"), ("webp", "webp"), ("jxl", "jxl"), ("tiff", "tif")):
        assert restore([tmp_path / "a.png"], tmp_path / kind, format=kind).restored == 1
        assert (tmp_path / kind / f"a.{suffix}").is_file()
    sizes = []
    for quality in (30, 95):
        restore([tmp_path / "a.png"], tmp_path / f"q{quality}", format="jpeg", quality=quality)
        sizes.append((tmp_path / f"q{quality}/a.jpg").stat().st_size)
    assert sizes[0] < sizes[1]
    restore([tmp_path / "a.png"], tmp_path / "deep", bit_depth=16)
    assert read_image(tmp_path / "deep/a.png").bit_depth == 16
    restore([tmp_path / "a.png"], tmp_path / "bare", strip=True)
    assert read_image(tmp_path / "bare/a.png").resolution is None
    assert read_image(tmp_path / "deep/a.png").resolution is not None


def test_what_a_result_cannot_hold_is_told_with_its_file(tmp_path, capsys):
    stream = io.BytesIO()
    PilImage.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)).save(
        stream, "JPEG", comment=b"left wing"
    )
    (tmp_path / "a.jpg").write_bytes(stream.getvalue())
    restore([tmp_path / "a.jpg"], tmp_path / "out", format="webp")
    assert f"note: {tmp_path / 'a.jpg'}: text left out: Comment" in capsys.readouterr().err


def test_damaged_images_are_salvaged_by_choice(tmp_path, capsys):
    content = put(tmp_path / "whole.png", size=(64, 64)).read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    assert restore([tmp_path / "cut.png"], tmp_path / "out").exit_code == 1
    assert not (tmp_path / "out/cut.png").exists()
    summary = restore([tmp_path / "cut.png"], tmp_path / "out", keep_going=True)
    assert (summary.restored, summary.incomplete, summary.exit_code) == (1, 1, 1)
    assert str(summary) == "1 restored, 1 of them in part"
    assert "warning: " in capsys.readouterr().err


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(tmp_path, capsys):
    put(tmp_path / "in/a.png", size=(50, 40))
    restore([tmp_path / "in"], tmp_path / "out", dry_run=True)
    said = capsys.readouterr().out
    assert f"would restore {tmp_path / 'in/a.png'} -> {tmp_path / 'out/a.png'}" in said
    assert "1 inputs, 0.0 million pixels, about 0 s" in said
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_the_steps_of_calibration_once_per_stream(tmp_path, capsys, monkeypatch):
    """Steps take 5 s for each of the first two frames, whatever their size, and passes 1 s per 1000 pixels."""
    clock = [0.0]

    class Method:
        adapter = types.SimpleNamespace(calibration_frames=2)

        def predict(self, x):
            clock[0] += x[0, 0].numel() / 1000
            return x

        def __call__(self, x):
            clock[0] += 5
            return self.predict(x)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(restore_module, "create_method", lambda *args, **options: Method())
    for name in "abc":
        put(tmp_path / f"in/{name}.png", size=(50, 40))
    restore([tmp_path / "in"], tmp_path / "out", dry_run=True)
    assert "3 inputs, 0.0 million pixels, about 16 s" in capsys.readouterr().out
    for name in ("a/1", "a/2", "a/3", "b/1", "b/2", "b/3"):
        put(tmp_path / f"clips/{name}.png", size=(50, 40))
    restore([tmp_path / "clips"], tmp_path / "out", clips=True, dry_run=True)
    assert "2 inputs, 0.0 million pixels, about 32 s" in capsys.readouterr().out


def test_code_that_exits_is_a_failure_of_its_input(tmp_path):
    def leaves(x):
        raise SystemExit(0)

    said = []
    job = Job(put(tmp_path / "a.png"), tmp_path / "b.png")
    assert run_jobs([job], leaves, say=said.append).exit_code == 1
    assert "SystemExit" in said[0]


def test_a_state_serves_one_run_at_a_time(tmp_path):
    put(tmp_path / "a.png")
    with exclusive_lock(tmp_path / "state"), pytest.raises(UsageError, match="another run is using it"):
        restore([tmp_path / "a.png"], tmp_path / "out", state=tmp_path / "state")
    assert not (tmp_path / "out/a.png").exists()


def test_images_and_videos_in_one_run(tmp_path):
    pytest.importorskip("av")
    from tta_restore.data.io.video import VideoFile
    from tta_restore.data.io.video_writer import write_video

    frames = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "in/film.mp4", frames)
    (tmp_path / "in/none.mp4").write_bytes(b"")
    put(tmp_path / "in/a.png")
    said = []
    assert restore([tmp_path / "in"], tmp_path / "deep", codec="hevc", bit_depth=10, say=said.append).restored == 2
    assert "note: --bit-depth 10: image results have 8, 16, 32 bits, these keep that of their input" in said
    assert f"error: {tmp_path / 'in/none.mp4'}: empty file" in said
    assert VideoFile(tmp_path / "deep/film.mp4").info.bit_depth == 10
    (tmp_path / "in/none.mp4").unlink()
    seen = []

    def method(x):
        seen.append(tuple(x.shape))
        return x

    summary = run_jobs(plan_jobs([tmp_path / "in"], tmp_path / "out").jobs, method, output=Output(codec="ffv1"))
    assert summary.restored == 2
    assert seen == [(1, 3, 9, 12)] + [(1, 3, 32, 32)] * 3
    assert len(list(VideoFile(tmp_path / "out/film.mp4"))) == 3


def test_names_that_are_no_text_are_restored(tmp_path):
    """Bytes of another encoding, as old archives hold; libraries refuse such names."""
    pytest.importorskip("OpenEXR")
    pytest.importorskip("av")
    from tta_restore.data.io.video import VideoFile
    from tta_restore.data.io.video_writer import write_video

    strange = os.fsdecode(b"caf\xe9")
    put(tmp_path / f"in/{strange}.png")
    write_image(tmp_path / "a.exr", Image(torch.rand(3, 9, 12)))
    (tmp_path / "a.exr").rename(tmp_path / f"in/{strange}.exr")
    write_video(tmp_path / "a.mkv", torch.rand(3, 3, 32, 32))
    (tmp_path / "a.mkv").rename(tmp_path / f"in/{strange}.mkv")
    assert restore([tmp_path / "in"], tmp_path / "out").restored == 3
    assert names(tmp_path / "out") == sorted(f"{strange}.{suffix}" for suffix in ("exr", "mkv", "png"))
    assert len(list(VideoFile(tmp_path / f"out/{strange}.mkv"))) == 3
    assert restore([tmp_path / f"in/{strange}.png"], tmp_path / f"{strange}.exr").restored == 1


def test_an_input_that_is_not_there_is_what_is_told(tmp_path, capsys):
    for name in ("new.png", "old.png"):
        (tmp_path / "old.png").write_bytes(b"kept")
        assert restore([tmp_path / "absent.png"], tmp_path / name).exit_code == 1
        assert "absent.png: no such file" in "".join(capsys.readouterr())
    assert (tmp_path / "old.png").read_bytes() == b"kept"
