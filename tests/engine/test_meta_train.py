"""Meta-training as a run: exact resume, two processes, and that it does what it is for."""

import json
from pathlib import Path

import pytest
import torch
from _fresh import run_processes
from _meta_networks import Critic, Deblur, Reblur, clips, seeded
from safetensors.torch import load_file

from tta_restore.adapters.methods.inner_loop import InnerLoopSettings
from tta_restore.data.datasets.clips import Clip
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train.config import MetaSettings, TrainingRun
from tta_restore.engine.train.loop import step_seed
from tta_restore.engine.train.meta import MetaObjective, meta_train
from tta_restore.engine.train.windows import TaskSource

TESTS = Path(__file__).parents[1]
PROGRAM = f"""
import sys
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS / "engine")!r}]
from test_meta_train import run_small
run_small(sys.argv[1], int(sys.argv[2]))
"""
RATES = {"inner": InnerLoopSettings(1e-3, 1e-3), "reblur_lr": 1e-3, "lr": 1e-3}


pytestmark = pytest.mark.usefixtures("one_thread")  # as the processes have that are started here


def run_small(out, steps, *, batch_size=1, **options):
    run = TrainingRun(
        Path(out), steps=steps, batch_size=batch_size, save_every=2, log_every=1, draw_every=2, progress=False
    )
    return meta_train(
        seeded(Deblur), seeded(Reblur), clips(), run, discriminator=seeded(Critic), num_patches=2, patch_size=16,
        query_frames=2, settings=MetaSettings(**(RATES | options)),
    )  # fmt: skip


def weights_of(folder):
    return {**load_file(folder / "restorer.safetensors"), **load_file(folder / "reblur.safetensors")}


@pytest.mark.parametrize("second_order", [False, True])
def test_resumed_runs_end_with_the_same_bits(tmp_path, second_order):
    run_small(tmp_path / "whole", 4, second_order=second_order)
    run_small(tmp_path / "parts", 2, second_order=second_order)
    run_small(tmp_path / "parts", 4, second_order=second_order)
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not torch.equal(whole["first.weight"], seeded(Deblur).first.weight)
    lines = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert {"loss", "reblur", "deblur", "inner_cycle_loss", "inner_adversarial_loss", "inner_deblur_loss"} <= set(
        lines[0]
    )
    assert len(list((tmp_path / "whole/pictures").iterdir())) == 3
    with pytest.raises(UsageError, match=f"second_order {second_order} there, {not second_order} here"):
        run_small(tmp_path / "whole", 5, second_order=not second_order)
    with pytest.raises(UsageError, match=r"inner\.lr 0.001 there, 0.5 here"):
        run_small(tmp_path / "whole", 5, second_order=second_order, inner=InnerLoopSettings(0.5, 1e-3))


@pytest.mark.thorough
def test_two_processes_learn_from_both_their_clips(tmp_path):
    """On gloo: the weights of a run whose gradients are the means over both processes' clips."""
    run_processes(PROGRAM, tmp_path / "two", "2")
    objective = MetaObjective(seeded(Deblur), seeded(Reblur), seeded(Critic), settings=MetaSettings(**RATES)).train()
    optimizer, source = objective.optimizers()["optimizer"], TaskSource(
        clips(), num_patches=2, patch_size=16, query_frames=2
    )  # fmt: skip
    from tta_restore.engine.train.loop import Processes

    for step in range(2):
        total = {}
        for rank in range(2):
            seed = step_seed(0, step, rank)
            (cut,) = source(1, torch.Generator().manual_seed(seed))
            still = {"optimizer": torch.optim.SGD(objective.groups(), lr=0.0)}
            for group in still["optimizer"].param_groups:
                group["lr"] = 0.0
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                objective.update([cut], step, still, Processes())
            for name, weight in objective.weights().items():
                total[name] = total.get(name, 0) + weight.grad / 2
        for name, weight in objective.weights().items():
            weight.grad = total[name]
        optimizer.step()
    found = weights_of(tmp_path / "two")
    for module in (objective.restorer, objective.reblur):
        for name, weight in module.state_dict().items():
            torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=1e-4)
    with pytest.raises(UsageError, match="processes 2 there, 1 here"):
        run_small(tmp_path / "two", 3)


def shifted_clip(number, gain):
    """A clip whose blur is a gain of its own: what must be learned from the clip itself."""
    generator = torch.Generator().manual_seed(number)
    sharp = torch.rand(6, 3, 16, 16, generator=generator) * 0.5 + 0.2
    return Clip(f"clip{number}", sharp * gain, sharp)


class Gain(torch.nn.Module):
    """Multiplies; for windows, their center."""

    def __init__(self, start):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(start))

    def forward(self, x):
        return self.gain * (x[:, x.shape[1] // 2] if x.ndim == 5 else x)


@pytest.mark.thorough
def test_it_learns_to_adapt(tmp_path):
    """The restorer cannot know the gain of a clip and the reblurrer's is wrong: meta-training sets it right, so that
    the outer loss after adaptation falls."""
    tasks = [shifted_clip(number, 0.6) for number in range(4)]
    run = TrainingRun(
        tmp_path / "run", steps=25, batch_size=2, save_every=100, log_every=1, draw_every=0, progress=False
    )
    inner = InnerLoopSettings(0.2, 0.0, optimizer="sgd")
    settings = MetaSettings(inner, second_order=True, reblur_lr=0.03, lr=0.03)
    objective = meta_train(
        Gain(1.0), Gain(1.0), tasks, run, num_patches=2, patch_size=16, query_frames=2, settings=settings
    )
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.3 * losses[0]
    assert objective.reblur.gain.item() == pytest.approx(0.6, abs=0.1)
    assert objective.restorer.gain.item() > 1.3
