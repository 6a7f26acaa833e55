"""Videos and folders of frames as clips: what is planned, written, kept and told."""

import os
from pathlib import Path

import pytest
import torch
from _meta_networks import Critic, seeded
from safetensors.torch import save_file

from tta_restore import adapters
from tta_restore.adapters import create_adapter
from tta_restore.cli import main
from tta_restore.data.datasets.clips import stack_frames
from tta_restore.data.io.image import read_image, write_image
from tta_restore.data.io.pixels import Image, ImageError
from tta_restore.engine.run import restore_clips
from tta_restore.engine.run.methods import BY_MOTION, create_clip_method, load_discriminator, load_reblurrer
from tta_restore.engine.run.restore import run_jobs
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
    assert "none.mp4: no such file" in said[1]


def test_a_video_from_end_to_end(tmp_path, capsys):
    """`tta-restore restore clip.mp4` with a method of frames: as many frames, at the same rate."""
    pytest.importorskip("av")
    from tta_restore.data.io.video import VideoFile, write_video

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
