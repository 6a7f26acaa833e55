"""Training carried by Lightning Fabric: the same steps as our loop, accumulation, resuming, refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _meta_networks import Deblur
from safetensors.torch import load_file
from torch import Tensor, nn

from tta_restore.cli import main
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


def objective():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Fit()


def source(count, generator):
    return torch.rand(count, 3, generator=generator)


def weights(folder):
    return load_file(folder / "layer.safetensors")


def carried(out, **changes):
    pytest.importorskip("lightning_fabric")
    run = dataclasses.replace(RUN, out=out, engine="fabric", **changes)
    with torch.random.fork_rng(devices=[]):
        return train(objective(), source, run, validate=lambda current: {"score": 1.0})


def test_one_process_takes_the_steps_of_our_loop(tmp_path):
    carried(tmp_path / "fabric")
    train(objective(), source, dataclasses.replace(RUN, out=tmp_path / "own"))
    own, theirs = weights(tmp_path / "own"), weights(tmp_path / "fabric")
    assert own.keys() == theirs.keys()
    torch.testing.assert_close(theirs, own, atol=1e-6, rtol=1e-5)
    assert (tmp_path / "fabric/best/layer.safetensors").exists()
    lines = [json.loads(line) for line in (tmp_path / "fabric/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "fit" in line] == [0, 1, 2, 3]


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

    class Own(Fit):
        def update(self, batch, step, optimizers, processes):
            raise AssertionError

    with pytest.raises(UsageError, match="does not carry Own, .* torchrun shares its batches"):
        carriers.train_with_fabric(Own(), source, dataclasses.replace(RUN, out=tmp_path, engine="fabric"))
    with pytest.raises(UsageError, match="does not carry Own"):
        train(Own(), source, dataclasses.replace(RUN, out=tmp_path / "runs/own", engine="fabric"))
    assert list(tmp_path.iterdir()) == []
    for name in ("lightning.fabric", "lightning_fabric", "lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="fabric is not installed: pip install lightning-fabric"):
        train(Fit(), source, dataclasses.replace(RUN, out=tmp_path, engine="fabric"))


PROGRAM = """
import sys
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


def test_the_command_line_with_a_recipe_of_the_package(tmp_path, capsys):
    pytest.importorskip("lightning_fabric")
    words = ["train", "supervised", "--model.name", "_meta_networks:Deblur", "--data.pictures", "bundled"]
    words += ["--data.size", "32", "--settings.reblur_weight", "0", "--settings.disparity_weight", "0", "-q"]
    words += ["--run.steps", "2", "--run.batch_size", "1", "--run.draw_every", "0", "--run.logger", "none"]
    words += ["--run.engine", "fabric", "--run.accumulate", "2", "--run.out", str(tmp_path / "out")]
    assert main([*words, "--run.fabric", '{"precision": "bf16-mixed"}']) == 0, capsys.readouterr().err
    assert load_file(tmp_path / "out/restorer.safetensors").keys() == Deblur().state_dict().keys()
    for kind, name in (("reblur", "ReblurObjective"), ("meta", "MetaObjective")):
        clips = [
            "train",
            kind,
            "--model.name",
            "_meta_networks:Deblur",
            "--data.pictures",
            "bundled",
            "--data.size",
            "40",
        ]
        clips += [
            "--run.steps",
            "1",
            "--run.engine",
            "fabric",
            "--run.logger",
            "none",
            "--run.out",
            str(tmp_path / "runs" / kind),
        ]
        assert main(clips) == 2
        assert f"fabric does not carry {name}, which takes more than one optimizer step" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert main([*words, "--run.fabric.strategy", "nix"]) == 2
    assert "[fabric] You selected an invalid strategy" in capsys.readouterr().err
    assert main([*words, "--run.fabric", '{"strategy": "fsdp2", "devices": "auto"}']) == 2
    assert "[fabric] strategy 'fsdp2': expected a number of devices, got 'auto'" in capsys.readouterr().err
