"""Videos and folders of frames as clips: what is planned, written, kept and told."""

import os
import re
from pathlib import Path

import pytest
import torch
from _meta_networks import Critic, seeded
from PIL import Image as PilImage
from safetensors.torch import save_file

from tta_restore import adapters
from tta_restore._core import progress
from tta_restore.adapters import create_adapter
from tta_restore.cli import main
from tta_restore.data.datasets.clips import stack_frames
from tta_restore.data.io.atomic import exclusive_lock
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image, ImageError
from tta_restore.engine.run import restore_clips
from tta_restore.engine.run.methods import BY_MOTION, create_clip_method, load_discriminator, load_reblurrer
from tta_restore.engine.run.restore import Output, run_jobs
from tta_restore.engine.run.restore_plan import Job, plan_jobs
from tta_restore.engine.run.usage import UsageError
from tta_restore.models import as_restorer, create_model


def frames(count=3, size=32):
    """Smooth, for what goes through a video file."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, 1, 4, 4, generator=generator).expand(-1, 3, -1, -1)
    return torch.nn.functional.interpolate(small, size=size, mode="bilinear")


def folder(path, count=3):
    for number, frame in enumerate(frames(count)):
        write_image(path / f"f{number + 8}.png", Image(frame))  # f10 comes after f9
    return path


def halved(clip):
    for time in range(len(clip)):
        yield clip[time] / 2


def test_plan(tmp_path):
    folder(tmp_path / "in/a/one")
    folder(tmp_path / "in/two")
    (tmp_path / "in/film.avi").write_bytes(b"")
    (tmp_path / "in/note.txt").write_text("")
    out = tmp_path / "out"
    plan = plan_jobs([tmp_path / "in", tmp_path / "none.mp4"], out, clips=True)
    assert plan.jobs == [
        Job(tmp_path / "in/a/one", out / "in/a/one", "frames"),
        Job(tmp_path / "in/film.avi", out / "in/film.mp4", "video"),
        Job(tmp_path / "in/two", out / "in/two", "frames"),
    ]
    assert [problem.split(": ")[1] for problem in plan.problems] == ["no such file or directory"]
    assert plan.left_out == {".txt": 1}
    assert plan_jobs([tmp_path / "in/film.avi"], tmp_path / "new.mkv").jobs == [
        Job(tmp_path / "in/film.avi", tmp_path / "new.mkv", "video")
    ]
    with pytest.raises(UsageError, match="would both be written to"):
        plan_jobs([tmp_path / "in/two", folder(tmp_path / "x/two")], out, clips=True)
    (tmp_path / "own.mp4").write_bytes(b"")
    with pytest.raises(UsageError, match="overwritten by its own result"):
        plan_jobs([tmp_path / "own.mp4"], tmp_path)
    with pytest.raises(UsageError, match="overwritten by its own result"):
        plan_jobs([tmp_path / "in/two"], tmp_path / "in", clips=True)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["f1.png", "f2.png", "f3.jpg"], None),  # not one sequence
        ([f"{n:04}.png" for n in range(0, 90, 10)], None),  # every tenth frame
        ([f"frame 2 - {n}.png" for n in (8, 9, 10, 11)], None),
        ([f"{n}.png" for n in (1, 5, 100, 1000)], None),  # no counter
        (["a.png", "b.png", "3.png"], None),
        (["only 1.png"], None),
        ([f"v2_{n}.png" for n in (1, 2, 3, 5, 9, 10, 100)], "4, 6 to 8, 11 to 99"),
        ([f"{n}.png" for n in (0, 10, 20, 40, 50)], "30"),
        ([f"{n}.png" for n in (*range(20), *range(20, 32, 2))], "21, 23, 25, 27 and 1 more"),
    ],
)
def test_missing_numbers_of_a_clip_are_told(names, missing, tmp_path):
    for name in names:
        write_image(tmp_path / "in" / name, Image(frames(1)[0]))
    plan = plan_jobs([tmp_path / "in"], tmp_path / "out", clips=True)
    expected = [] if missing is None else [f"{tmp_path / 'in'}: numbers are missing among its frames: {missing}"]
    assert plan.notes == expected
    assert plan_jobs([tmp_path / "in"], tmp_path / "out").notes == []


def test_folders_keep_their_frames_and_what_is_done_is_kept(tmp_path):
    job = Job(folder(tmp_path / "in", 3), tmp_path / "out", "frames")
    summary = run_jobs([job], halved, whole_clips=True)
    assert (summary.restored, summary.kept, summary.failed) == (1, 0, 0)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["f10.png", "f8.png", "f9.png"]
    expected = read_image(tmp_path / "in/f10.png").pixels / 2
    torch.testing.assert_close(read_image(tmp_path / "out/f10.png").pixels, expected, atol=1 / 255, rtol=0)
    assert run_jobs([job], halved, whole_clips=True).kept == 1
    (tmp_path / "out/f9.png").unlink()  # half a clip is none
    assert run_jobs([job], halved, whole_clips=True).restored == 1
    os.utime(tmp_path / "in/f8.png")
    assert run_jobs([job], halved, whole_clips=True).restored == 1
    assert run_jobs([job], halved, whole_clips=True, overwrite=True).restored == 1


@pytest.mark.parametrize("container", ["", ".mp4", ".mkv"])
def test_progress_within_a_clip_and_between_inputs(container, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_INTERVAL", 1e-9)  # a line for every frame
    source = folder(tmp_path / "in", 3)
    kind = "video" if container else "frames"
    if container:
        video = pytest.importorskip("tta_restore.data.io.video")
        writer = pytest.importorskip("tta_restore.data.io.video_writer")
        source = tmp_path / f"film{container}"  # MP4 declares the number of frames, Matroska length and rate
        writer.write_video(source, frames(3))
        assert video.VideoFile(source).info.frames == (3 if container == ".mp4" else None)
    jobs = [Job(source, tmp_path / f"out{number}{source.suffix}", kind) for number in range(2)]
    run_jobs(jobs, halved, whole_clips=True)
    lines = capsys.readouterr().err.splitlines()
    assert any(re.fullmatch(rf"{source.name}: 2 of 3 after [\d:]+, estimating the time left", line) for line in lines)
    assert any(re.fullmatch(rf"1 of 2 after [\d:]+, estimating the time left, {source.name}", line) for line in lines)
    run_jobs(jobs, halved, whole_clips=True, progress=False, overwrite=True)
    assert not capsys.readouterr().err


def test_a_clip_that_fails_is_told_and_the_others_go_on(tmp_path):
    def breaks(clip):
        yield clip[0]
        raise RuntimeError("no memory")

    said = []
    jobs = [
        Job(folder(tmp_path / "a"), tmp_path / "out/a", "frames"),
        Job(tmp_path / "none.mp4", tmp_path / "out/b.mp4", "video"),
    ]
    pytest.importorskip("av")
    summary = run_jobs(jobs, breaks, whole_clips=True, say=said.append)
    assert summary.failed == 2
    assert said[0].endswith("a: RuntimeError: no memory")
    assert said[1] == f"note: {tmp_path / 'a'}: 1 of its frames lie in {tmp_path / 'out/a'}"
    assert "none.mp4: no such file" in said[2]
    assert summary.has_written


def test_frames_keep_format_bits_and_metadata(tmp_path):
    """A folder of frames loses nothing that a single image would keep, and its options mean the same."""
    deep = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(1))
    text = (("Title", "Harbor"),)
    for number in range(3):
        write_image(tmp_path / f"in/f{number}.png", Image(deep, bit_depth=16, text=text, resolution=(300.0, 300.0, 2)))
    for suffix in ("jpg", "tif", "bmp"):
        write_image(tmp_path / "in/g.png", Image(deep))
        with PilImage.open(tmp_path / "in/g.png") as picture:
            picture.save(tmp_path / f"in/g.{suffix}")
    job, said = Job(tmp_path / "in", tmp_path / "out", "frames"), []
    assert run_jobs([job], halved, whole_clips=True, say=said.append).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "f0.png", "f1.png", "f2.png", "g.bmp.png", "g.jpg", "g.png", "g.tif",
    ]  # fmt: skip
    for number in range(3):
        before, restored = read_image(tmp_path / f"in/f{number}.png"), read_image(tmp_path / f"out/f{number}.png")
        assert (restored.bit_depth, restored.text, restored.resolution) == (16, text, before.resolution)
        torch.testing.assert_close(restored.pixels, deep / 2, atol=1 / 65535, rtol=0)
    assert said == []
    jpeg = Job(tmp_path / "in", tmp_path / "jpeg", "frames", "jpeg")
    options = Output(bit_depth=8, quality=60, strip=True)
    assert run_jobs([jpeg], halved, output=options, whole_clips=True, say=said.append).exit_code == 0
    assert {path.suffix for path in (tmp_path / "jpeg").iterdir()} == {".jpg"}
    assert said == []
    kept = Job(tmp_path / "in", tmp_path / "kept", "frames", "webp")
    run_jobs([kept], halved, output=Output(bit_depth=8), whole_clips=True, say=said.append)
    assert said == [
        f"note: {tmp_path / 'in'}: resolution (DPI) left out: WEBP is written without it (4 frames)",
        f"note: {tmp_path / 'in'}: text left out: Title (3 frames)",
    ]
    assert run_jobs([kept], halved, whole_clips=True, say=said.append).kept == 1
    too_deep = Job(tmp_path / "in", tmp_path / "deep", "frames", "webp")
    assert run_jobs([too_deep], halved, whole_clips=True, say=said.append).failed == 1
    assert "f0.png: f0.webp cannot be written: WEBP holds 8 bits, the image has 16 bits" in said[-1]


def test_a_damaged_frame_is_named_and_saved_by_choice(tmp_path):
    folder(tmp_path / "in")
    whole = (tmp_path / "in/f9.png").read_bytes()
    (tmp_path / "in/f9.png").write_bytes(whole[: len(whole) * 2 // 3])
    job, said = Job(tmp_path / "in", tmp_path / "out", "frames"), []
    assert run_jobs([job], halved, whole_clips=True, say=said.append).failed == 1
    assert said[0].startswith(f"error: {tmp_path / 'in/f9.png'}: truncated or damaged PNG")
    summary = run_jobs([job], halved, output=Output(keep_going=True), whole_clips=True, say=said.append)
    assert (summary.restored, summary.incomplete, summary.exit_code) == (1, 1, 1)
    assert said[-1].startswith(f"warning: {tmp_path / 'in'}: f9.png: truncated or damaged PNG: ")
    small = Output(max_pixels=100, keep_going=True)
    assert run_jobs([job], halved, output=small, whole_clips=True, overwrite=True, say=said.append).failed == 1
    assert "above the limit" in said[-2]


def test_a_clip_that_another_run_is_writing_is_refused(tmp_path):
    pytest.importorskip("av")
    from tta_restore.data.io.video_writer import write_video

    write_video(tmp_path / "film.mp4", frames(4, 64))
    long = "n" * 250 + ".mp4"
    jobs = [
        Job(tmp_path / "film.mp4", tmp_path / "out/film.mp4", "video"),
        Job(tmp_path / "film.mp4", tmp_path / "out" / long, "video"),
        Job(folder(tmp_path / "in"), tmp_path / "out/in", "frames"),
    ]
    for job in jobs:
        said = []
        with exclusive_lock(job.destination):
            assert run_jobs([job], halved, whole_clips=True, say=said.append).failed == 1
        assert said == [f"error: {job.destination}: another run is writing it"]
        assert not job.destination.exists()
        assert run_jobs([job], halved, whole_clips=True).restored == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["film.mp4", "in", long]


def test_a_video_from_end_to_end(tmp_path, capsys):
    """`tta-restore restore clip.mp4` with a method of frames: as many frames, at the same rate."""
    pytest.importorskip("av")
    from tta_restore.data.io.video import VideoFile
    from tta_restore.data.io.video_writer import write_video

    write_video(tmp_path / "clip.mp4", frames(4, 64), frame_rate=12)
    arguments = ["restore", str(tmp_path / "clip.mp4"), "-o", str(tmp_path / "out.mp4"), "--method", "source"]
    assert main([*arguments, "--model", "torch.nn:Identity"]) == 0
    before, after = VideoFile(tmp_path / "clip.mp4"), VideoFile(tmp_path / "out.mp4")
    assert after.info.frame_rate == before.info.frame_rate
    torch.testing.assert_close(stack_frames(after.load()), stack_frames(before.load()), atol=0.05, rtol=0)
    assert "1 restored" in capsys.readouterr().err
    assert main([*arguments, "--model", "torch.nn:Identity"]) == 0
    assert "1 kept" in capsys.readouterr().err


def test_frame_methods_start_afresh_with_every_clip():
    restore = create_clip_method("siam-ctta", as_restorer(torch.nn.Conv2d(3, 3, 3, padding=1)))
    first = torch.stack(list(restore(frames())))
    assert torch.equal(first, torch.stack(list(restore(frames()))))


@pytest.mark.parametrize(
    "config",
    [
        {"fusion": "attention", "num_layers": 1, "base_channels": 2},
        {"fusion": "attention", "num_layers": 2, "base_channels": 2, "num_frames": 3},
        {"fusion": "conv3d", "num_layers": 1, "base_channels": 2},
        {"fusion": "channels", "num_layers": 1, "base_channels": 4, "num_frames": 7},
    ],
)
def test_the_sizes_of_a_reblurrer_are_read_from_its_file(tmp_path, config):
    model = create_model("video_reblur", **config)
    save_file(model.state_dict(), tmp_path / "reblur.safetensors")
    torch.save({"state_dict": {f"module.{name}": t for name, t in model.state_dict().items()}}, tmp_path / "reblur.pt")
    for name in ("reblur.safetensors", "reblur.pt"):
        found = create_model("video_reblur", checkpoint=tmp_path / name)
        assert (found.num_frames, found.fusion) == (model.num_frames, config["fusion"])
        torch.testing.assert_close(found.state_dict(), model.state_dict())


def test_networks_that_do_not_fit_are_told(tmp_path):
    save_file(seeded(Critic).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not fit VideoReblur"):
        create_model("video_reblur", checkpoint=tmp_path / "other.safetensors")
    save_file(create_model("patch_critic", base_channels=3).state_dict(), tmp_path / "critic.safetensors")
    assert load_discriminator(tmp_path / "critic.safetensors").layers[0].out_channels == 3
    restorer = as_restorer(torch.nn.Identity())
    with pytest.raises(UsageError, match="'source' takes no reblur"):
        create_clip_method("source", restorer, reblur="x")
    with pytest.raises(UsageError, match="meta-transfer.*there is no file"):
        create_clip_method("meta-transfer", restorer, reblur=tmp_path / "none.pt")


@pytest.mark.thorough
def test_meta_transfer_from_end_to_end(tmp_path):
    """A folder of frames and the files that training writes: adapted to, and restored differently from the source."""
    folder(tmp_path / "in", 6)
    model = seeded(lambda: create_model("video_reblur", num_layers=1, base_channels=2, fusion="channels"))
    save_file(model.state_dict(), tmp_path / "reblur.safetensors")
    save_file(
        seeded(lambda: create_model("patch_critic", base_channels=2)).state_dict(), tmp_path / "critic.safetensors"
    )
    shared = ["restore", str(tmp_path / "in"), "--model", "generalist", "--clips"]
    networks = [
        "--reblur",
        str(tmp_path / "reblur.safetensors"),
        "--discriminator",
        str(tmp_path / "critic.safetensors"),
    ]
    sizes = ["--method.num_patches", "2", "--method.patch_size", "32"]
    assert main([*shared, "-o", str(tmp_path / "meta"), "--method", "meta-transfer", *networks, *sizes]) == 0
    written = sorted((tmp_path / "meta/in").iterdir())
    assert len(written) == 6
    assert read_image(written[0]).pixels.shape == (3, 32, 32)
    assert main([*shared, "-o", str(tmp_path / "x"), "--method", "source", *networks]) == 2
    assert main(["restore", str(tmp_path / "in"), "-o", str(tmp_path / "x"), "--method", "source", *networks]) == 2


@pytest.mark.thorough
def test_without_a_reblurrer_the_motion_of_the_clip_is_used(tmp_path, monkeypatch):
    save_file({"exposure": torch.tensor(0.7)}, tmp_path / "reblur.safetensors")
    assert load_reblurrer(tmp_path / "reblur.safetensors").exposure.item() == pytest.approx(0.7)
    assert load_reblurrer(None).exposure.item() == 0.5
    folder(tmp_path / "in", 6)
    made = []
    monkeypatch.setattr(adapters, "create_adapter", lambda *a, **k: made.append(k) or create_adapter(*a, **k))
    shared = ["restore", str(tmp_path / "in"), "--model", "generalist", "--clips"]
    assert main([*shared, "-o", str(tmp_path / "out"), "--method", "meta-transfer", "--method.patch_size", "32"]) == 0
    assert made[0].items() >= {**BY_MOTION, "patch_size": 32}.items()
    assert len(list((tmp_path / "out/in").iterdir())) == 6


def test_the_memory_of_whole_clips_is_told_before_the_work(monkeypatch):
    job, said = Job(Path("film.mkv"), Path("out.mkv"), "video"), []
    restore_clips._announce_memory(job, 100, 640 * 480, said.append)
    assert said == []
    restore_clips._announce_memory(job, 300, 640 * 480, said.append)
    assert said == [
        "note: film.mkv: the method takes the whole clip at once: 300 frames need at least 2.5 GB of memory"
    ]
    with pytest.raises(ImageError, match=r"film.mkv: .* 100000000 frames need .*; split it into shorter clips"):
        restore_clips._announce_memory(job, 10**8, 640 * 480, said.append)


WINDOWED = """
import torch
from tta_restore.models import Restorer, RestorerSpec
class Weighted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.tensor([0.125, 0.5, 0.375]))
    def forward(self, x):
        return (x * self.weights[:, None, None, None]).sum(1)
class Faded(torch.nn.Module):
    def forward(self, x):
        return 0.5 * x + 0.5 * x.mean(1, keepdim=True)
def window():
    return Restorer(Weighted(), RestorerSpec(frames=3))
def whole():
    return Restorer(Faded(), RestorerSpec(frames=None))
"""


@pytest.fixture
def multi_frame(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "multi_frame.py").write_text(WINDOWED)
    return folder(tmp_path / "in", 4)


@pytest.mark.filterwarnings("ignore:recommended. the model")
@pytest.mark.parametrize("method", ["source", "recommended"])
@pytest.mark.parametrize("kind", ["frames", "video"])
def test_models_of_several_frames_restore_clips(kind, method, multi_frame):
    clip = frames(4)
    windows = [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]
    weights = torch.tensor([0.125, 0.5, 0.375]).view(3, 1, 1, 1)
    expected = {
        "window": torch.stack([(weights * clip[around]).sum(0) for around in windows]),
        "whole": 0.5 * clip + 0.5 * clip.mean(0),
    }
    source = "in"
    if kind == "video":
        video = pytest.importorskip("tta_restore.data.io.video")
        writer = pytest.importorskip("tta_restore.data.io.video_writer")
        source = "film.mkv"
        writer.write_video(Path(source), clip, codec="ffv1")
    for name, target in expected.items():
        out = f"{name}_{method}.mkv" if kind == "video" else f"{name}_{method}"
        words = ["restore", source, "-o", out, "--clips", "--model", f"multi_frame:{name}", "--method", method]
        assert main([*words, "--codec", "ffv1", "-q"]) == 0
        if kind == "video":
            restored = torch.stack([frame.float() for frame in video.VideoFile(Path(out))])
        else:
            paths = [Path(out) / "in" / f"f{number}.png" for number in range(8, 12)]
            restored = torch.stack([read_image(path).pixels for path in paths])
        assert (restored - target).abs().max() < (0.02 if kind == "video" else 1 / 255)


@pytest.mark.filterwarnings("ignore:recommended. the model")
def test_models_of_several_frames_name_what_takes_them(multi_frame, capsys):
    model = ["--model", "multi_frame:window"]
    assert main(["restore", "in/f8.png", "-o", "out", *model]) == 2
    assert "in/f8.png: multi_frame:window takes several frames and restores clips" in capsys.readouterr().err
    assert main(["restore", "in", "-o", "out", "--clips", *model, "--dry-run"]) == 0
    assert "about 0 s" in capsys.readouterr().out
    assert main(["restore", "in", "-o", "out", "--clips", "--model", "multi_frame:whole", "--state", "s"]) == 2
    assert "'multi_frame:whole' takes whole clips" in capsys.readouterr().err
    for words in (
        ["evaluate", "--degradations", "noise:20", "--out", "out"],
        ["evaluate", "--data", "DPDD=in", "--out", "out"],
        ["calibrate", "in", "-o", "out.safetensors"],
        ["evaluate-pairs", "in", "--layout", "folders", "--flow", "lucas_kanade"],
    ):
        assert main([*words, *model]) == 2
        assert "Weighted takes clips of 3 frames, and this command single images" in capsys.readouterr().err
