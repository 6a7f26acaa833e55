"""Files and folders through a method that learns: trees kept, failures alone, resumed bit for bit after kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from _fresh import run_program, started_program
from PIL import Image as PilImage
from safetensors.torch import load_file, save_file
from torch import Tensor

from tta_restore.adapters import Adapter
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.engine.run.methods import ImageMethod
from tta_restore.engine.run.restore import restore_files, run_jobs
from tta_restore.engine.run.restore_plan import Job, check_output, plan_jobs
from tta_restore.engine.run.usage import UsageError


class Learner:
    """Adds a running mean of all it has seen: its outputs depend on every frame before."""

    def __init__(self) -> None:
        self.mean = torch.zeros(())
        self.seen: list[float] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.mean = 0.7 * self.mean + 0.3 * x.mean()
        self.seen.append(float(x.mean()))
        return x * 0.5 + self.mean * 0.5

    def save(self, path: str | Path) -> None:
        save_file({"mean": self.mean}, path, metadata={"kind": "learner"})

    def load(self, path: str | Path) -> None:
        content = load_file(path)
        if set(content) != {"mean"}:
            raise ValueError("belongs to another method")
        self.mean = content["mean"]


def photo(seed: int, height: int = 13, width: int = 17) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "in"
    for index, name in enumerate(["frame2.png", "frame10.png", "sub/a.tif", "sub/deep/b.jpg"]):
        write_image(root / name, Image(photo(index)))
    (root / "notes.txt").write_text("not an image")
    (root / ".hidden.png").write_bytes(b"")
    return root


def lines() -> tuple[list[str], object]:
    said: list[str] = []
    return said, said.append


def test_a_folder_keeps_its_tree_and_natural_order(folder, tmp_path):
    plan = plan_jobs([folder], tmp_path / "out")
    jobs, problems = plan.jobs, plan.problems
    names = [str(job.destination.relative_to(tmp_path / "out")) for job in jobs]
    assert names == ["frame2.png", "frame10.png", "sub/a.tif", "sub/deep/b.jpg"]
    assert problems == []
    summary = run_jobs(jobs, Learner())
    assert (summary.restored, summary.kept, summary.failed, summary.exit_code) == (4, 0, 0, 0)
    mean = 0.3 * read_image(folder / "frame2.png").pixels.mean()
    expected = read_image(folder / "frame2.png").pixels * 0.5 + mean * 0.5
    assert (read_image(tmp_path / "out" / "frame2.png").pixels - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_outputs_inside_the_input_folder_are_not_restored_again(folder):
    jobs = plan_jobs([folder], folder / "out").jobs
    run_jobs(jobs, Learner())
    again = plan_jobs([folder], folder / "out").jobs
    assert [job.source for job in again] == [job.source for job in jobs]


def test_a_quiet_run_switches_off_the_progress_of_its_adapter(tmp_path):
    method = Learner()
    method.adapter = SimpleNamespace(show_progress=True)
    run_jobs([], method)
    assert method.adapter.show_progress
    run_jobs([], method, progress=False)
    assert not method.adapter.show_progress


def test_single_files_go_into_a_folder_or_to_a_name(folder, tmp_path):
    source = folder / "frame2.png"
    assert plan_jobs([source], tmp_path / "x" / "named.tif").jobs == [Job(source, tmp_path / "x" / "named.tif")]
    assert plan_jobs([source], tmp_path / "x").jobs == [Job(source, tmp_path / "x" / "frame2.png")]
    assert plan_jobs([source, source], tmp_path / "x").jobs == [Job(source, tmp_path / "x" / "frame2.png")]
    odd = tmp_path / "picture"
    odd.write_bytes(source.read_bytes())
    assert plan_jobs([odd], tmp_path / "x").jobs == [Job(odd, tmp_path / "x" / "picture.png")]


def test_collisions_and_overwriting_an_original_are_refused_before_anything_is_done(folder, tmp_path):
    with pytest.raises(UsageError, match="originals would be overwritten"):
        plan_jobs([folder], folder)
    with pytest.raises(UsageError, match="overwritten by its own result"):
        plan_jobs([folder / "frame2.png"], folder)
    write_image(tmp_path / "other" / "frame2.png", Image(photo(9)))
    with pytest.raises(UsageError, match="would both be written to"):
        plan_jobs([folder / "frame2.png", tmp_path / "other" / "frame2.png"], tmp_path / "out")


def test_missing_inputs_and_empty_folders_are_one_line_each(tmp_path):
    (tmp_path / "empty").mkdir()
    plan = plan_jobs([tmp_path / "absent.png", tmp_path / "empty"], tmp_path / "out")
    jobs, problems = plan.jobs, plan.problems
    assert jobs == []
    assert problems == [
        f"{tmp_path / 'absent.png'}: no such file or directory",
        f"{tmp_path / 'empty'}: no image and no video in this folder",
    ]
    assert plan_jobs([tmp_path / "Emtpy"], tmp_path / "out").problems == [
        f"{tmp_path / 'Emtpy'}: no such file or directory; did you mean {tmp_path / 'empty'}?"
    ]


def test_bad_inputs_never_stop_the_others(folder, tmp_path):
    good = (folder / "frame2.png").read_bytes()
    (folder / "a_truncated.png").write_bytes(good[: len(good) // 2])
    (folder / "b_empty.jpg").write_bytes(b"")
    (folder / "c_text.tif").write_text("hello")
    PilImage.fromarray(np.zeros((8, 8, 4), np.uint8), mode=None).convert("CMYK").save(folder / "d_cmyk.jpg")
    PilImage.fromarray((photo(3) * 255).byte().permute(1, 2, 0).numpy()).quantize(8).save(folder / "e_palette.png")
    said, say = lines()
    summary = run_jobs(plan_jobs([folder], tmp_path / "out").jobs, Learner(), say=say)
    assert (summary.restored, summary.failed, summary.exit_code) == (6, 3, 1)
    told = {line.split(": ")[1].rsplit("/", 1)[-1].split(".")[0]: line.split(": ")[0] for line in said}
    names = {"a_truncated": "error", "b_empty": "error", "c_text": "error", "d_cmyk": "note", "e_palette": "note"}
    assert told == names
    assert not any("\n" in line for line in said)
    assert str(summary) == "6 restored, 3 failed"


def test_a_link_to_itself_does_not_stop_the_others(folder, tmp_path):
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "around").symlink_to(folder)
    said = []
    out = folder / "out"  # within the input
    summary = restore_files(folder, out, method="source", model="torch.nn:Identity", say=said.append)
    assert (summary.failed, summary.restored) == (1, 4)
    assert [line for line in said if line.startswith("error")] == [
        f"error: {folder / 'itself.png'}: too many levels of symbolic links"
    ]
    assert restore_files(folder, out, method="source", model="torch.nn:Identity", say=said.append).kept == 4


def test_a_model_that_fails_on_one_image_does_not_stop_the_others(folder, tmp_path):
    class Moody(Learner):
        def __call__(self, x: Tensor) -> Tensor:
            if len(self.seen) == 1:
                self.seen.append(0.0)
                raise RuntimeError("out of luck\nsecond line")
            return super().__call__(x)

    said, say = lines()
    summary = run_jobs(plan_jobs([folder], tmp_path / "out").jobs, Moody(), say=say)
    assert (summary.restored, summary.failed) == (3, 1)
    assert said == [f"error: {folder / 'frame10.png'}: RuntimeError: out of luck"]


def test_nan_from_a_model_is_never_written(folder, tmp_path):
    said, say = lines()
    jobs = plan_jobs([folder / "frame2.png"], tmp_path / "out").jobs
    assert run_jobs(jobs, lambda x: x * torch.nan, say=say).failed == 1
    assert "NaN" in said[0]
    assert not (tmp_path / "out" / "frame2.png").exists()


def test_bits_alpha_and_gray_survive(tmp_path):
    root = tmp_path / "in"
    write_image(root / "a16.png", Image(photo(0), alpha=photo(1)[:1], bit_depth=16))
    write_image(root / "gray.tif", Image(photo(2)[:1], bit_depth=16))
    run_jobs(plan_jobs([root], tmp_path / "out").jobs, lambda x: x)
    for name in ("a16.png", "gray.tif"):
        before, after = read_image(root / name), read_image(tmp_path / "out" / name)
        assert after.bit_depth == 16
        assert torch.equal(before.pixels, after.pixels)
        assert (before.alpha is None) == (after.alpha is None)
    assert torch.equal(read_image(root / "a16.png").alpha, read_image(tmp_path / "out" / "a16.png").alpha)


def test_formats_that_cannot_hold_the_input_are_refused_before_the_work(tmp_path):
    write_image(tmp_path / "a16.png", Image(photo(0), bit_depth=16))
    called = []
    said, say = lines()
    run_jobs([Job(tmp_path / "a16.png", tmp_path / "a.jpg")], called.append, say=say)
    assert called == []
    assert "a.jpg cannot be written: JPEG holds 8 bits, the image has 16" in said[0]


def test_a_scale_grows_the_picture_and_its_alpha(tmp_path):
    write_image(tmp_path / "a.png", Image(photo(0), alpha=photo(1)[:1]))
    jobs = [Job(tmp_path / "a.png", tmp_path / "b.png")]
    assert run_jobs(jobs, lambda x: x.repeat_interleave(2, -1).repeat_interleave(2, -2)).restored == 1
    assert read_image(tmp_path / "b.png").alpha.shape == (1, 26, 34)


def test_what_is_there_is_kept_unless_newer_or_overwritten(folder, tmp_path):
    jobs = plan_jobs([folder], tmp_path / "out").jobs
    run_jobs(jobs, Learner())
    second = Learner()
    assert run_jobs(jobs, second).kept == 4
    assert second.seen == []
    later = time.time() + 10
    os.utime(folder / "frame2.png", (later, later))
    assert run_jobs(jobs, second).restored == 1
    assert run_jobs(jobs, second, overwrite=True).restored == 4


def test_a_state_carries_the_method_from_run_to_run(folder, tmp_path):
    jobs = plan_jobs([folder], tmp_path / "whole").jobs
    run_jobs(jobs, Learner())
    parts = plan_jobs([folder], tmp_path / "parts").jobs
    state = tmp_path / "state.safetensors"
    for job in parts:  # each in a process of its own, as it were
        assert run_jobs([job], Learner(), state=state).restored == 1
    for job in jobs:
        other = tmp_path / "parts" / job.destination.relative_to(tmp_path / "whole")
        assert job.destination.read_bytes() == other.read_bytes()
    assert run_jobs(parts, Learner(), state=state).kept == 4


def test_an_output_without_its_state_is_made_again(folder, tmp_path):
    """A process that died between the two has an output that its state does not know."""
    jobs = plan_jobs([folder], tmp_path / "out").jobs
    state = tmp_path / "state.safetensors"
    run_jobs(jobs[:1], Learner(), state=state)
    before = state.read_bytes()
    run_jobs(jobs[:2], Learner(), state=state)
    after, output = load_file(state)["mean"].clone(), jobs[1].destination.read_bytes()
    state.write_bytes(before)
    assert run_jobs(jobs[:2], Learner(), state=state).restored == 1
    assert torch.equal(load_file(state)["mean"], after)
    assert jobs[1].destination.read_bytes() == output


def test_states_that_do_not_fit_are_usage_errors(folder, tmp_path):
    jobs = plan_jobs([folder], tmp_path / "out").jobs
    with pytest.raises(UsageError, match="keeps none"):
        run_jobs(jobs, lambda x: x, state=tmp_path / "s")
    (tmp_path / "s").write_text("junk")
    with pytest.raises(UsageError, match="not a readable state file"):
        run_jobs(jobs, Learner(), state=tmp_path / "s")
    save_file({"other": torch.ones(1)}, tmp_path / "t")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match="--state .*loop: a link that leads nowhere"):
        check_output(plan_jobs([folder], tmp_path / "out"), [folder], tmp_path / "out", tmp_path / "loop")
    with pytest.raises(UsageError, match="belongs to another method"):
        run_jobs(jobs, Learner(), state=tmp_path / "t")
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "seconds", [0.15, pytest.param(0.0, marks=pytest.mark.slow), pytest.param(0.4, marks=pytest.mark.slow)]
)
def test_kill_9_in_mid_stream_and_the_same_command_again_gives_the_same_bits(seconds, tmp_path):
    """With a real adapter: weights, moments, schedule and random masks all have to come back."""
    root = tmp_path / "in"
    for index in range(12):  # float files show every bit
        write_image(root / f"{index}.tif", Image(photo(index, 40, 50), bit_depth=32))
    program = textwrap.dedent(
        f"""
        import sys, time, torch
        from tta_restore.engine.run.methods import create_method
        from tta_restore.engine.run.restore import run_jobs
        from tta_restore.engine.run.restore_plan import plan_jobs
        from tta_restore.models import as_restorer
        torch.manual_seed(0)
        method = create_method("siam-ctta", as_restorer(torch.nn.Conv2d(3, 3, 3, padding=1)))
        method.adapter.restore_prob = 0.3
        save = method.save
        def slow_save(path):
            save(path)
            time.sleep(0.05)
        method.save = slow_save
        jobs = plan_jobs([{str(root)!r}], sys.argv[1]).jobs
        run_jobs(jobs, method, state=sys.argv[2])
        """
    )
    with started_program(program, tmp_path / "killed", tmp_path / "state") as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "state").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(seconds)
        process.kill()
    assert process.exitcode == -signal.SIGKILL
    done = len(list((tmp_path / "killed").glob("*.tif")))
    assert 0 < done < 12
    for words in (("killed", "state"), ("whole", "other_state")):
        run = run_program(program, *(tmp_path / word for word in words))
        assert run.returncode == 0, run.stderr
    for index in range(12):
        name = f"{index}.tif"
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # The weights did move: the last image would look different to an adapter that starts with it.
    for index in range(11):
        (root / f"{index}.tif").unlink()
    run = run_program(program, tmp_path / "frozen", tmp_path / "third_state")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "frozen" / "11.tif").read_bytes() != (tmp_path / "whole" / "11.tif").read_bytes()


@pytest.mark.slow
def test_24_megapixels_in_bounded_memory(tmp_path):
    """Input and output as floats are 0.6 GB, torch itself about as much; nothing may grow beyond a few such copies."""
    small = torch.rand(1, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(small, size=(4000, 6000), mode="bilinear")[0]
    write_image(tmp_path / "large.jpg", Image(large))
    program = f"""
import torch
from tta_restore.engine.run.methods import create_method
from tta_restore.engine.run.restore import run_jobs
from tta_restore.engine.run.restore_plan import plan_jobs
from tta_restore.models import as_restorer
method = create_method("self-ensemble", as_restorer(torch.nn.Conv2d(3, 3, 1)))
jobs = plan_jobs([{str(tmp_path / "large.jpg")!r}], {str(tmp_path / "out.jpg")!r}).jobs
restored = run_jobs(jobs, method).restored
# the peak of this program alone: that of getrusage is inherited from who started it
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(restored, peak / 1e6)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    restored, gigabytes = done.stdout.split()
    assert restored == "1"
    assert read_image(tmp_path / "out.jpg").pixels.shape == (3, 4000, 6000)
    assert float(gigabytes) < 2.5


def test_a_tensor_of_the_method_is_not_written_into(tmp_path):
    write_image(tmp_path / "in" / "a.png", Image(photo(0)))
    kept = torch.full((1, *photo(0).shape), 1.5)
    run_jobs(plan_jobs([tmp_path / "in"], tmp_path / "out").jobs, lambda x: kept)
    assert bool((kept == 1.5).all())
    assert bool((read_image(tmp_path / "out" / "a.png").pixels == 1).all())


def test_a_run_reports_the_trust_in_the_adapted_model(folder, tmp_path):
    why = "the student was not trusted on this frame, because a test on it failed"
    measured = iter(
        [
            (0.5, ()),
            (0.0, (why,)),
            (0.0, ("learning rate 0.001", why, "steady: further frames are restored")),
            (0.9, ()),
        ]
    )

    class Measured(Adapter):
        def emit(self, frame):
            trust, messages = next(measured)
            frame.metrics["trust"] = trust
            frame.messages += messages
            return super().emit(frame)

    lines: list[str] = []
    jobs = plan_jobs([folder], tmp_path / "out").jobs
    run_jobs(jobs, ImageMethod(Measured(torch.nn.Identity())), say=lines.append)
    text = "trust in the adapted model 0.35 in the mean over 4 frames; 2 restored as without adaptation"
    assert lines[-1] == f"note: {text} ({why})"
    lines.clear()
    run_jobs(jobs, ImageMethod(Adapter(torch.nn.Identity())), overwrite=True, say=lines.append)
    assert not any("trust" in line for line in lines)
    measured = iter([(0.0, (why,)), (0.0, (f"{why} (1.5)",)), (0.0, ("steady: further frames",)), (0.0, ("another",))])
    run_jobs(jobs, ImageMethod(Measured(torch.nn.Identity())), overwrite=True, say=lines.append)
    assert lines[-1].endswith(f"4 restored as without adaptation (3 of them: {why})")
    measured = iter([(0.0, (why,)), (0.5, ()), (0.0, ()), (0.0, ())])  # a reason ends with a frame that has trust
    run_jobs(jobs, ImageMethod(Measured(torch.nn.Identity())), overwrite=True, say=lines.append)
    assert lines[-1].endswith(f"3 restored as without adaptation (1 of them: {why})")
