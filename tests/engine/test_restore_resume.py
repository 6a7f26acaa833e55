"""Videos that were being restored when the process was killed continue, bit for bit."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from safetensors import SafetensorError

from tta_restore.data.io import parts
from tta_restore.engine.run import restore_clips
from tta_restore.engine.run.methods import create_method
from tta_restore.engine.run.restore import run_jobs
from tta_restore.engine.run.restore_plan import Job
from tta_restore.models import as_restorer

pytest.importorskip("av")


@pytest.fixture
def film(tmp_path, monkeypatch):
    from tta_restore.data.io.parts import PartStore
    from tta_restore.data.io.video_writer import write_video

    class ShortParts(PartStore):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, part_frames=5, **options)

    monkeypatch.setattr(restore_clips, "PartStore", ShortParts)
    frames = torch.rand(17, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "film.mkv", frames)
    return tmp_path / "film.mkv"


def method(seed=0):
    torch.manual_seed(3)
    made = create_method("siam-ctta", as_restorer(torch.nn.Conv2d(3, 3, 3, padding=1)), seed=seed)
    made.adapter.restore_probability = 0.3
    return made


class Dies:
    """A method that is gone after some frames."""

    def __init__(self, made, frames):
        self.made, self.left, self.adapter = made, frames, made.adapter
        self.save, self.load = made.save, made.load

    def __call__(self, x):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return self.made(x)


@pytest.mark.parametrize("frames", [0, 4, 5, 6, 12, 16])
def test_an_interrupted_video_continues_bit_for_bit(film, tmp_path, frames):
    job = Job(film, tmp_path / "whole.mkv", "video")
    assert run_jobs([job], method()).restored == 1
    cut = Job(film, tmp_path / "cut.mkv", "video")
    said = []
    with pytest.raises(KeyboardInterrupt):
        run_jobs([cut], Dies(method(), frames), say=said.append)
    stored = frames // 5 * 5
    place = f"its first {stored} frames are stored" if stored else "none of its frames is stored yet"
    assert said == [f"note: {film}: {place}"]
    assert not (tmp_path / "cut.mkv").exists()
    assert len(list(tmp_path.glob(".cut.mkv.parts/*.part"))) == frames // 5
    said.clear()
    rest = Dies(method(), 17 - frames // 5 * 5)
    assert run_jobs([cut], rest, say=said.append).restored == 1
    assert rest.left == 0
    assert said == ([f"note: {film}: continued behind its first {frames // 5 * 5} frames"] if frames >= 5 else [])
    assert (tmp_path / "cut.mkv").read_bytes() == (tmp_path / "whole.mkv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.mkv", "film.mkv", "whole.mkv"]


def test_a_disk_that_refuses_a_part_is_one_line(film, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(parts, "save_tensors", full)
    said = []
    job = Job(film, tmp_path / "out.mkv", "video")
    assert run_jobs([job], method(), say=said.append).failed == 1
    assert said == [
        f"error: {tmp_path / '.out.mkv.parts'}: cannot be written (I/O error: No space left on device (os error 28))"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["film.mkv"]


@pytest.mark.thorough
def test_parts_of_another_method_or_of_other_settings_are_not_continued(film, tmp_path):
    job = Job(film, tmp_path / "out.mkv", "video")
    for second, output in (
        (create_method("self-ensemble", as_restorer(torch.nn.Conv2d(3, 3, 3, padding=1))), restore_clips.Output()),
        (method(), restore_clips.Output(crf=30)),
    ):
        with pytest.raises(KeyboardInterrupt):
            run_jobs([job], Dies(method(), 12))
        said = []
        run_jobs([job], second, output=output, say=said.append)
        assert said == []
        assert (tmp_path / "out.mkv").exists()
        (tmp_path / "out.mkv").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0, 1.5])
def test_kill_9_while_a_video_is_restored(film, tmp_path, seconds):
    program = tmp_path / "run.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import sys, time, torch
            from pathlib import Path
            from tta_restore.data.io import parts
            from tta_restore.engine.run.methods import create_method
            from tta_restore.engine.run.restore import run_jobs
            from tta_restore.engine.run.restore_plan import Job
            from tta_restore.models import as_restorer
            parts.PartStore.__init__.__kwdefaults__["part_frames"] = 3
            torch.manual_seed(0)
            method = create_method("siam-ctta", as_restorer(torch.nn.Conv2d(3, 3, 3, padding=1)))
            save = method.save
            method.save = lambda path: (save(path), time.sleep(0.2))
            print("ready", flush=True)
            run_jobs([Job(Path({str(film)!r}), Path(sys.argv[1]), "video")], method, progress=False)
            """
        )
    )
    whole, killed = tmp_path / "whole.mkv", tmp_path / "killed.mkv"
    subprocess.run([sys.executable, str(program), str(whole)], check=True, stdout=subprocess.DEVNULL)
    with subprocess.Popen([sys.executable, str(program), str(killed)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    subprocess.run([sys.executable, str(program), str(killed)], check=True, stdout=subprocess.DEVNULL)
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (whole, killed)}
    assert len(digests) == 1
