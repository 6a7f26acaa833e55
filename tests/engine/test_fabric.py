"""Training carried by Lightning Fabric: the same steps as our loop, accumulation, resuming, refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from _meta_networks import Deblur
from safetensors.torch import load_file
from torch import Tensor, nn

from tta_restore.cli import main
from tta_restore.engine.run.outputs import is_first_process, locked_output
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train import fabric as carriers
from tta_restore.engine.train.config import TrainingRun
from tta_restore.engine.train.loop import Objective, StepOutput, train

RUN = TrainingRun(steps=4, batch_size=2, save_every=2, log_every=1, draw_every=0, progress=False, logger="none")


class Fit(Objective):
    clip = 2.4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1))

    def forward(self, batch: Tensor, step: int) -> StepOutput:
        return StepOutput.sum_of({"fit": (self.layer(batch) - batch.sum(1, keepdim=True)).square().mean()}, {})

    def groups(self):
        return [{"params": list(self.parameters()), "lr": 1e-2}]

    def rate(self, step):
        return 0.5**step

    def exports(self):
        return {"layer": self.layer}


class Alternating(Fit):
    """Takes an optimizer step for each of its layers in turn."""

    def optimizers(self):
        return {name: torch.optim.Adam(self.layer[i].parameters(), lr=1e-2) for name, i in (("first", 0), ("last", 2))}

    def update(self, batch, step, optimizers, processes):
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
            found = self(batch, step)
            found.loss.backward()
            processes.average([p.grad for p in optimizer.param_groups[0]["params"]])
            optimizer.step()
        return found


def objective(kind=Fit):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind()


def source(count, generator):
    return torch.rand(count, 3, generator=generator)


def weights(folder):
    return load_file(folder / "layer.safetensors")


def carried(out, kind=Fit, **changes):
    pytest.importorskip("lightning_fabric")
    run = dataclasses.replace(RUN, out=out, engine="fabric", **changes)
    return train(objective(kind), source, run, validate=lambda current: {"score": 1.0})


def test_one_process_takes_the_steps_of_our_loop(tmp_path):
    carried(tmp_path / "fabric")
    train(objective(), source, dataclasses.replace(RUN, out=tmp_path / "own"))
    own, theirs = weights(tmp_path / "own"), weights(tmp_path / "fabric")
    assert own.keys() == theirs.keys()
    torch.testing.assert_close(theirs, own, atol=1e-6, rtol=1e-5)
    assert (tmp_path / "fabric/best/layer.safetensors").exists()
    lines = [json.loads(line) for line in (tmp_path / "fabric/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "fit" in line] == [0, 1, 2, 3]


def test_batches_are_made_ahead_and_steps_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(Fit, "picture", lambda self, found: torch.full((3, 4, 4), 0.5))
    threads = []

    def watched(count, generator):
        threads.append(threading.current_thread().name)
        return source(count, generator)

    pytest.importorskip("lightning_fabric")
    state = torch.random.get_rng_state()
    run = dataclasses.replace(RUN, out=tmp_path / "ahead", engine="fabric", num_workers=2, draw_every=2, accumulate=2)
    train(objective(), watched, run)
    assert threads.count(threading.current_thread().name) == 1  # the sample by which memory is reckoned
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sorted(path.name for path in (tmp_path / "ahead/pictures").iterdir()) == [
        "000000.png", "000002.png", "000003.png",
    ]  # fmt: skip
    carried(tmp_path / "plain", accumulate=2)
    assert all(map(torch.equal, weights(tmp_path / "ahead").values(), weights(tmp_path / "plain").values()))


def test_an_update_rule_of_its_own_takes_the_steps_of_our_loop(tmp_path):
    carried(tmp_path / "fabric", Alternating)
    train(objective(Alternating), source, dataclasses.replace(RUN, out=tmp_path / "own"))
    own, theirs = weights(tmp_path / "own"), weights(tmp_path / "fabric")
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    carried(tmp_path / "parts", Alternating, steps=2)
    assert json.loads((tmp_path / "parts/fabric/state.json").read_text())["step"] == 2
    carried(tmp_path / "parts", Alternating)
    assert all(torch.equal(own[name], tensor) for name, tensor in weights(tmp_path / "parts").items())
    half = carried(tmp_path / "half", Alternating, fabric={"precision": "bf16-mixed"})
    assert half(torch.rand(2, 3), 0).loss.dtype == torch.float32
    assert not half.layer._forward_hooks
    changed = weights(tmp_path / "half")
    assert not all(torch.equal(own[name], changed[name]) for name in own)
    torch.testing.assert_close(changed, own, atol=0.02, rtol=0.0)  # Adam's steps are 0.01 long


def test_processes_that_lightning_starts_leave_the_lock_to_the_first(tmp_path, monkeypatch):
    with locked_output(tmp_path / "out"):
        with pytest.raises(UsageError, match="another run is using it"), locked_output(tmp_path / "out"):
            pass
        for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
            with monkeypatch.context() as patch:
                patch.setenv(name, "1")
                assert not is_first_process()
                with locked_output(tmp_path / "out"):
                    pass


def test_the_weights_of_an_unfinished_run_are_next_to_its_state(tmp_path):
    """As the run leaves them when it is killed behind its second step."""

    def killed(step, found):
        if step == 2:
            raise KeyboardInterrupt

    pytest.importorskip("lightning_fabric")
    run = dataclasses.replace(RUN, out=tmp_path / "killed", engine="fabric")
    with pytest.raises(KeyboardInterrupt):
        train(objective(), source, run, on_step=killed)
    carried(tmp_path / "short", steps=2)
    there, expected = load_file(tmp_path / "killed/fabric/layer.safetensors"), weights(tmp_path / "short")
    assert all(torch.equal(there[name], expected[name]) for name in expected)
    assert not (tmp_path / "killed/layer.safetensors").exists()


def test_gradients_are_accumulated_over_batches(tmp_path):
    out = carried(tmp_path, accumulate=2, steps=1)
    reference = objective()
    optimizer = reference.optimizers()["optimizer"]
    with torch.random.fork_rng(devices=[]):
        for part in range(2):
            seed = carriers.step_seed(RUN.seed, part, 0)
            batch = source(2, torch.Generator().manual_seed(seed))
            torch.manual_seed(seed)
            (reference(batch, 0).loss / 2).backward()
    nn.utils.clip_grad_norm_(reference.parameters(), 2.4)
    optimizer.step()
    torch.testing.assert_close(dict(out.layer.state_dict()), dict(reference.layer.state_dict()))


def test_a_run_is_continued(tmp_path):
    carried(tmp_path / "whole")
    carried(tmp_path / "parts", steps=2)
    carried(tmp_path / "parts")
    torch.testing.assert_close(weights(tmp_path / "parts"), weights(tmp_path / "whole"), atol=1e-6, rtol=1e-5)
    with pytest.raises(UsageError, match="of another run \\(batch_size 2 there, 3 here\\)"):
        carried(tmp_path / "parts", batch_size=3)
    with pytest.raises(UsageError, match="holds a run of the engine fabric"):
        train(objective(), source, dataclasses.replace(RUN, out=tmp_path / "parts"))
    train(objective(), source, dataclasses.replace(RUN, out=tmp_path / "own"))
    with pytest.raises(UsageError, match="holds a run of the engine own"):
        carried(tmp_path / "own")


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="accumulate is for engine 'fabric'"):
        dataclasses.replace(RUN, accumulate=2)
    with pytest.raises(ValueError, match="fabric is for engine 'fabric'"):
        dataclasses.replace(RUN, fabric={"strategy": "ddp"})

    own = dataclasses.replace(RUN, out=tmp_path / "runs/own", engine="fabric")
    for changes, message in (
        ({"fabric": {"strategy": "fsdp2"}}, "strategy 'fsdp2' does not go with Alternating, .* expected 'ddp'"),
        ({"fabric": {"precision": "16-mixed"}}, "'32-true' or 'bf16-mixed' for Alternating, got '16-mixed'"),
        ({"accumulate": 2}, "Alternating takes its own optimizer steps; a larger batch_size does the same"),
    ):
        run = dataclasses.replace(own, **changes)
        for start in (train, carriers.train_with_fabric):
            with pytest.raises(UsageError, match=message):
                start(Alternating(), source, run)
    assert list(tmp_path.iterdir()) == []
    for name in ("lightning.fabric", "lightning_fabric", "lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="fabric is not installed: pip install lightning-fabric"):
        train(Fit(), source, dataclasses.replace(RUN, out=tmp_path, engine="fabric"))


PROGRAM = """
import sys
import threading
from pathlib import Path
from engine.test_fabric import Fit, objective, source, RUN
import dataclasses
from tta_restore.engine.train.loop import train
run = dataclasses.replace(RUN, out=Path(sys.argv[1]), engine=sys.argv[2], steps=int(sys.argv[3]),
                          fabric={"devices": 2, "strategy": sys.argv[4]} if sys.argv[2] == "fabric" else {})
train(objective(), source, run)
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_take_the_steps_of_our_loop_and_continue(tmp_path, strategy):
    pytest.importorskip("lightning_fabric")
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "program.py"]
    for words in (["own", "own", "4", ""], ["fabric", "fabric", "2", strategy], ["fabric", "fabric", "4", strategy]):
        done = subprocess.run(
            [*launcher, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
    torch.testing.assert_close(weights(tmp_path / "fabric"), weights(tmp_path / "own"), atol=1e-6, rtol=1e-5)
    assert [path.name for path in (tmp_path / "fabric/fabric").glob("*.ckpt")] == ["4.ckpt"]


@pytest.mark.thorough
def test_the_command_line_with_a_recipe_of_the_package(tmp_path, capsys):
    pytest.importorskip("lightning_fabric")
    words = ["train", "supervised", "--model.name", "_meta_networks:Deblur", "--data.pictures", "bundled"]
    words += ["--data.size", "32", "--settings.reblur_weight", "0", "--settings.disparity_weight", "0", "-q"]
    words += ["--run.steps", "2", "--run.batch_size", "1", "--run.draw_every", "0", "--run.logger", "none"]
    words += ["--run.engine", "fabric", "--run.accumulate", "2", "--run.out", str(tmp_path / "out")]
    assert main([*words, "--run.fabric", '{"precision": "bf16-mixed"}']) == 0, capsys.readouterr().err
    assert load_file(tmp_path / "out/restorer.safetensors").keys() == Deblur().state_dict().keys()
    assert main([*words, "--run.fabric.strategy", "nix"]) == 2
    assert "[fabric] You selected an invalid strategy" in capsys.readouterr().err
    assert main([*words, "--run.fabric", '{"strategy": "fsdp2", "devices": "auto"}']) == 2
    assert "[fabric] strategy 'fsdp2': expected a number of devices, got 'auto'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["reblur", "meta"])
def test_trainings_on_clips(tmp_path, capsys, kind):
    pytest.importorskip("lightning_fabric")
    words = ["train", kind, "--model.name", "_meta_networks:Deblur", "--reblur.num_layers", "1", "--data.frames", "5"]
    words += ["--reblur.base_channels", "2", "--reblur.fusion", "channels", "--discriminator.base_channels", "2"]
    words += ["--data.pictures", "bundled", "--data.size", "40", "--data.length", "2", "--data.num_subframes", "3"]
    words += ["--windows.patch_size", "32", "--windows.num_patches", "1", "--windows.query_frames", "1"]
    words += ["--run.steps", "2", "--run.batch_size", "1", "--run.logger", "none", "-q", "--run.out"]
    assert main([*words, str(tmp_path / "own")]) == 0, capsys.readouterr().err
    by_fabric = ["--run.engine", "fabric", "--run.fabric"]
    assert main([*words, str(tmp_path / "fabric"), *by_fabric, '{"strategy": "auto"}']) == 0, capsys.readouterr().err
    assert main([*words, str(tmp_path / "half"), *by_fabric, '{"precision": "bf16-mixed"}']) == 0
    for name in ("restorer", "reblur"):
        own, theirs, half = (
            load_file(tmp_path / out / f"{name}.safetensors") for out in ("own", "fabric", "half")
        )  # fmt: skip
        assert all(torch.equal(own[key], theirs[key]) for key in own)
        assert any(not torch.equal(own[key], half[key]) for key in own)
        torch.testing.assert_close(half, own, atol=1e-3, rtol=0.0)
    assert (tmp_path / "fabric/pictures/000000.png").exists()
    assert main([*words, str(tmp_path / "no"), *by_fabric, '{"strategy": "fsdp2", "devices": 2}']) == 2
    assert "[run] fabric: strategy 'fsdp2' does not go with" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
