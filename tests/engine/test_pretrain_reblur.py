"""Pre-training of the reblurrer: the published step by hand, what it writes, and that it learns."""

import copy
import json
from pathlib import Path

import pytest
import torch
from _meta_networks import Critic, Deblur, Reblur, clips, seeded
from safetensors.torch import load_file

from tta_restore import losses
from tta_restore.data.datasets.clips import Clip
from tta_restore.engine.train.config import ReblurSettings, TrainingRun
from tta_restore.engine.train.loop import Processes
from tta_restore.engine.train.reblur import ReblurObjective, WindowSource, pretrain_reblur


def run_in(out, steps, **options):
    run = TrainingRun(Path(out), steps=steps, batch_size=2, save_every=2, log_every=1, draw_every=2, progress=False)
    networks = {"restorer": seeded(Deblur), "discriminator": seeded(Critic)}
    return pretrain_reblur(seeded(Reblur), clips(), run, size=16, **(networks | options))


def test_one_step_by_hand():
    reblur, deblur, critic = seeded(Reblur), seeded(Deblur), seeded(Critic)
    objective = ReblurObjective(*(copy.deepcopy(m) for m in (reblur, deblur, critic)), steps=10,
                                settings=ReblurSettings(lr=1e-3, discriminator_lr=1e-3))  # fmt: skip
    batch = WindowSource(clips(), size=16)(2, torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        found = objective.update(batch, 0, objective.optimizers(), Processes())
        torch.manual_seed(1)
        real = batch.blurry[:, [0, 1, 3, 4][int(torch.randint(0, 4, ()))]]
    adam = torch.optim.Adam([*reblur.parameters(), *deblur.parameters()], lr=1e-3)
    rms = torch.optim.RMSprop(critic.parameters(), lr=1e-3)
    fake = reblur(batch.sharp)
    (critic(fake.detach()).mean() - critic(real).mean()).backward()
    rms.step()
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.clamp_(-0.01, 0.01)
    distance = losses.charbonnier_edge_loss(fake, batch.blurry[:, 2])
    loss = (
        0.5 * distance + 0.5 * (deblur(fake.clamp(0, 1)) - batch.sharp[:, 2]).abs().mean() - 0.5 * critic(fake).mean()
    )
    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    adam.step()
    for mine, expected in ((objective.reblur, reblur), (objective.restorer, deblur), (objective.discriminator, critic)):
        torch.testing.assert_close(
            dict(mine.named_parameters()), dict(expected.named_parameters()), atol=1e-6, rtol=1e-5
        )


def test_a_run_writes_and_resumes(tmp_path):
    objective = run_in(tmp_path / "whole", 4)
    assert not objective.training
    run_in(tmp_path / "parts", 4, settings=ReblurSettings(cosine=False))
    lines = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert set(lines[0]) == {"step", "loss", "reblur", "cycle", "adversarial", "seconds"}
    for name in ("reblur", "restorer", "discriminator"):
        assert load_file(tmp_path / f"whole/{name}.safetensors")
    state = (tmp_path / "whole/state.pt").read_bytes()
    (tmp_path / "again").mkdir()
    (tmp_path / "again/state.pt").write_bytes(state)
    again = run_in(tmp_path / "again", 4)  # at its end already
    torch.testing.assert_close(again.state_dict(), objective.state_dict(), atol=0, rtol=0)


def test_the_restorer_may_only_judge(tmp_path):
    run_in(tmp_path, 2, settings=ReblurSettings(train_restorer=False))
    assert all(torch.equal(tensor, seeded(Deblur).state_dict()[name])
               for name, tensor in load_file(tmp_path / "restorer.safetensors").items())  # fmt: skip


@pytest.mark.thorough
def test_it_learns_the_blur(tmp_path):
    """Clips blurred by one kernel: after training, reblurring sharp frames is nearer to it than they are."""
    material = clips(2)
    run = TrainingRun(tmp_path, steps=60, batch_size=4, save_every=100, log_every=59, draw_every=0, progress=False)
    settings = ReblurSettings(lr=1e-2)
    objective = pretrain_reblur(seeded(Reblur), material, run, settings=settings, size=16)
    first, last = (json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert last < 0.7 * first
    assert objective.rate(0) == 1
    assert objective.rate(60) == pytest.approx(1e-4)


def test_material_is_checked():
    with pytest.raises(ValueError, match="at least one clip"):
        WindowSource([])
    with pytest.raises(ValueError, match="no sharp originals"):
        WindowSource([Clip("alone", torch.rand(3, 3, 20, 20))], size=16)(1, torch.Generator())
    with pytest.raises(ValueError, match="lr to be a number >= 0"):
        ReblurSettings(lr=-1.0)


def test_windows_of_both_kinds_show_the_same_place():
    """Blurred by nothing, they are equal, turned and flipped alike."""
    frames = torch.rand(6, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    batch = WindowSource([Clip("same", frames, frames)], size=12)(6, torch.Generator().manual_seed(0))
    assert torch.equal(batch.blurry, batch.sharp)
    assert batch.sharp.shape == (6, 5, 3, 12, 12)
    assert len({tuple(window.flatten().tolist()) for window in batch.sharp[:, 2]}) == 6
