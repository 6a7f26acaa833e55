"""Training on misaligned pairs: it learns, survives kill -9 bit by bit, and runs in two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tta_restore.data.datasets.misaligned import GeneratedPairs, Misalignment
from tta_restore.data.io.image import read_image
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train.config import MisalignedSettings, TrainingRun
from tta_restore.engine.train.loop import step_seed
from tta_restore.engine.train.misaligned import train_misaligned
from tta_restore.models.jdrl import JDRLReblur
from tta_restore.models.optical_flow import LucasKanade

PROGRAM = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_train_misaligned import run_small
run_small({out!r}, steps={steps}, slow={slow})
"""


pytestmark = pytest.mark.usefixtures("one_thread")  # as the processes have that are started here


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 3, padding=1)
        self.dropout = torch.nn.Dropout(0.2)

    def forward(self, x):
        return x + self.last(self.dropout(self.first(x).relu()))


def run_small(out, steps, slow=0.0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        restorer, reblur = Small(), JDRLReblur(width=4)
    generator = torch.Generator().manual_seed(1)
    pictures = torch.nn.functional.interpolate(torch.rand(4, 3, 20, 20, generator=generator), scale_factor=4)
    source = GeneratedPairs(pictures, size=24, misalignment=Misalignment(1.5, 0.01, 0.01, 0.5))
    run = TrainingRun(
        Path(out), steps=steps, batch_size=2, save_every=4, log_every=2, draw_every=6, seed=3, progress=False
    )

    def pause(step, found):
        time.sleep(slow)

    settings = MisalignedSettings(warm_up=3, border=2, **options)
    flow = LucasKanade(levels=1, iterations=2, window=11)
    return train_misaligned(restorer, source, run, reblur=reblur, flow=flow, settings=settings, on_step=pause)


def weights_of(folder):
    return {**load_file(folder / "restorer.safetensors"), **load_file(folder / "reblur.safetensors")}


def start(out, steps, slow, *, launcher=(sys.executable,), **environment):
    program = PROGRAM.format(tests=str(Path(__file__).parent), out=str(out), steps=steps, slow=slow)
    file = Path(out).with_suffix(".py")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(program)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen([*launcher, str(file)], env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.thorough
def test_a_run_writes_what_it_should(tmp_path):
    before = torch.get_rng_state()
    objective = run_small(tmp_path / "run", 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert not objective.training
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4, 6, 7]
    assert set(lines[0]) == {"step", "loss", "pair", "seconds"}
    assert lines[-1]["loss"] == pytest.approx(lines[-1]["pair"] + lines[-1]["reblur"], rel=1e-5)
    pictures = sorted((tmp_path / "run/pictures").iterdir())
    assert [path.stem for path in pictures] == ["000000", "000006", "000007"]
    assert read_image(pictures[-1]).pixels.shape == (3, 2 * 24 + 4, 5 * 24 + 16)
    torch.testing.assert_close(objective.restorer.state_dict(), load_file(tmp_path / "run/restorer.safetensors"))


def test_it_learns(tmp_path):
    losses = {}
    for steps in (1, 15):
        objective = run_small(tmp_path / str(steps), steps, lr=5e-3)
        source = GeneratedPairs(torch.rand(4, 3, 80, 80, generator=torch.Generator().manual_seed(1)), size=24,
                                misalignment=Misalignment(1.5, 0.01, 0.01, 0.5))  # fmt: skip
        pair = source(4, torch.Generator().manual_seed(9))
        with torch.no_grad():
            losses[steps] = objective(pair, 1000).parts["reblur"].item()
    assert losses[15] < 0.95 * losses[1]


@pytest.mark.slow
def test_kill_minus_nine_and_resume_ends_with_the_same_bits(tmp_path):
    run_small(tmp_path / "whole", 10)
    process = start(tmp_path / "killed", 10, 0.5)
    state = tmp_path / "killed/state.pt"
    end = time.monotonic() + 400
    while not state.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.7)  # into the next step
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/restorer.safetensors").exists()
    done = torch.load(state, weights_only=True)["step"]
    assert 4 <= done < 10
    run_small(tmp_path / "killed", 10)
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Both end with the same weights, those of a run whose batches are both processes' together."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    process = start(tmp_path / "two", 4, 0.0, launcher=launcher)
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors[-2000:]
    identity = torch.load(tmp_path / "two/state.pt", weights_only=True)["identity"]
    assert identity["processes"] == 2
    with pytest.raises(UsageError, match="processes 2 there, 1 here"):
        run_small(tmp_path / "two", 5)
    # the same steps by hand: the mean of both processes' gradients
    from tta_restore.data.datasets.misaligned import MisalignedPair
    from tta_restore.engine.train.misaligned import MisalignedObjective

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        restorer, reblur = Small(), JDRLReblur(width=4)
        settings = MisalignedSettings(warm_up=3, border=2)
        flow = LucasKanade(levels=1, iterations=2, window=11)
        objective = MisalignedObjective(restorer, reblur, flow=flow, settings=settings).train()
        optimizer = torch.optim.Adam(objective.groups())
        generator = torch.Generator().manual_seed(1)
        pictures = torch.nn.functional.interpolate(torch.rand(4, 3, 20, 20, generator=generator), scale_factor=4)
        source = GeneratedPairs(pictures, size=24, misalignment=Misalignment(1.5, 0.01, 0.01, 0.5))
        for step in range(4):
            optimizer.zero_grad()
            for rank in range(2):
                seed = step_seed(3, step, rank)
                pair: MisalignedPair = source(2, torch.Generator().manual_seed(seed))
                torch.manual_seed(seed)
                (objective(pair, step).loss / 2).backward()
            optimizer.step()
    found = weights_of(tmp_path / "two")
    for name, tensor in {**restorer.state_dict(), **reblur.state_dict()}.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4)


def test_other_settings_and_damage_are_told(tmp_path):
    run_small(tmp_path / "run", 4)
    with pytest.raises(UsageError, match="another run .*lr 0.0005 there, 0.1 here"):
        run_small(tmp_path / "run", 5, lr=0.1)
    (tmp_path / "run/state.pt").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"state.pt is damaged"):
        run_small(tmp_path / "run", 5)


def test_stopped_and_continued_ends_with_the_same_bits(tmp_path):
    run_small(tmp_path / "whole", 6)
    run_small(tmp_path / "parts", 4)  # within the joint stage
    run_small(tmp_path / "parts", 6)
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
