"""Supervised training: recorded steps of IFAN, its schedule, any restorer, views, resume, and that it learns."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _alexnet import save_alexnet
from safetensors.torch import load_file
from torch import nn

from tta_restore import metrics, models
from tta_restore.data.datasets.pairs import LensPairs, Pair
from tta_restore.degradations.lens import Lens, disk
from tta_restore.engine.train.config import SupervisedSettings, TrainingRun
from tta_restore.engine.train.loop import Processes
from tta_restore.engine.train.supervised import (
    SupervisedObjective,
    mean_scores,
    reblur_of,
    train_supervised,
)

GOLDEN = Path(__file__).parents[1] / "golden/ifan"
SMALL = {"base_channels": 4, "num_steps": 3, "num_res_blocks": 1}
RUN = TrainingRun(Path(), batch_size=2, save_every=2, log_every=1, draw_every=0, progress=False)


pytestmark = pytest.mark.usefixtures("one_thread")


def build(name="ifan", **config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.create_model(name, **(SMALL | config))


def pairs(size=24, views=True):
    pictures = torch.nn.functional.interpolate(
        torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(1)), scale_factor=5, mode="bicubic"
    ).clamp(0, 1)
    lens = Lens("disk", disk, (1.0, 3.0))
    return LensPairs(pictures, size=size, views=views, lens=lambda generator: lens)


@pytest.mark.filterwarnings("ignore:load_checkpoint. these weights have the official names")
@pytest.mark.parametrize(
    ("case", "name", "horizontal"),
    [("train_small_quirk", "ifan", "vertical"), ("train_dual_small_fixed", "ifan_dual", "own")],
)
def test_eight_recorded_steps(case, name, horizontal):
    """Losses, optimizer, schedule and clip together are the published trainer."""
    recorded = load_file(GOLDEN / f"{case}.safetensors")

    def weights(prefix):
        return {key.removeprefix(prefix): t for key, t in recorded.items() if key.startswith(prefix)}

    restorer = build(name, horizontal=horizontal)
    objective = SupervisedObjective(
        restorer, reblur_of(restorer), settings=SupervisedSettings(lr=1e-3, decay_after=(3, 5))
    )
    networks = (objective.restorer, objective.reblur)
    for network in networks:
        models.load_checkpoint(network, weights("state_dict0."))
    batch = Pair(*(recorded[f"input.{view}"] for view in ("C", "GT", "R", "L")))
    optimizers = objective.train().optimizers()
    group = optimizers["optimizer"].param_groups[0]
    for step in range(8):
        group["lr"] = 1e-3 * objective.rate(step)
        assert group["lr"] == recorded["lr_used"][step]
        found = objective.update(batch, step, optimizers, Processes())
        for ours, theirs in (("image", "image"), ("disparity", "dme"), ("reblur", "reblur")):
            torch.testing.assert_close(found.parts[ours], recorded[f"loss.{theirs}"][step], atol=1e-6, rtol=0)
        torch.testing.assert_close(found.loss.detach(), recorded["loss.total"][step], atol=1e-6, rtol=0)
    for network in networks:
        expected = network.convert_state_dict(weights("state_dict8."))
        for key, tensor in network.state_dict().items():
            torch.testing.assert_close(tensor, expected[key], atol=1e-6, rtol=0, msg=lambda text, key=key: key + text)


def test_the_published_schedule():
    """Iterations 1 to 500001 at 1e-4, to 550001 at half of it, the rest at a quarter."""
    rate = SupervisedSettings().rate
    assert [rate(i - 1) for i in (1, 500_001, 500_002, 550_001, 550_002)] == [1, 1, 0.5, 0.5, 0.25]
    cosine = SupervisedSettings(cosine_steps=100, warm_up=4).rate
    assert cosine(0) == pytest.approx(0.2)
    assert cosine(50) == pytest.approx(0.5)
    assert cosine(100) == cosine(200) == pytest.approx(0)


@pytest.mark.thorough
def test_it_learns_and_resumes_to_the_same_bits(tmp_path):
    held_out = [pairs()(4, torch.Generator().manual_seed(99))]
    settings = SupervisedSettings(lr=2e-3)

    def run(out, steps):
        options = {"settings": settings, "validation": held_out, "built": {"restorer": ("ifan", SMALL)}}
        return train_supervised(build(), pairs(), replace(RUN, out=tmp_path / out, steps=steps), **options)

    def parts_of(objective):
        with torch.no_grad():
            return objective.train()(held_out[0], 0).parts

    before = mean_scores(SupervisedObjective(build()).eval(), held_out, "cpu")["psnr"]
    parts_before = parts_of(SupervisedObjective(build(), reblur_of(build())))
    objective = run("whole", 60)
    lines = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    after = lines[-1]["validation/psnr"]
    assert after == pytest.approx(mean_scores(objective, held_out, "cpu")["psnr"])
    parts_after = parts_of(objective)
    for name, most in (("image", 0.95), ("disparity", 0.95), ("reblur", 0.98)):  # the last one starts near its best
        assert parts_after[name] < most * parts_before[name]
    assert after > before + 0.1
    assert set(lines[0]) >= {"loss", "image", "disparity", "reblur"}
    run("short", 5)
    run("parts", 3)
    run("parts", 5)
    for name in ("restorer", "reblur"):
        whole, parts = (load_file(tmp_path / out / f"{name}.safetensors") for out in ("short", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    # the file says what it was built from
    model = models.create_model("ifan", checkpoint=tmp_path / "whole/restorer.safetensors")
    torch.testing.assert_close(model.state_dict(), objective.restorer.state_dict())


def test_ours_lets_gradients_through_from_the_first_step_and_the_published_start_does_not():
    batch = pairs()(2, torch.Generator().manual_seed(0))
    reached = {}
    for variant in ("ours", "official"):
        objective = SupervisedObjective(build(num_steps=17, variant=variant))
        objective(batch, 0).loss.backward()
        layers = (objective.restorer.get_submodule("encoder.stage4")[2], objective.restorer.decoder.enter[0])
        before, behind = (layer[0].weight.grad.norm().item() for layer in layers)
        assert behind > 0
        reached[variant] = before / behind
    assert reached["official"] < 1e-8
    assert reached["ours"] > 0.1


def test_any_restorer(tmp_path):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return [x + self.conv(x)]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mine()
    settings = SupervisedSettings(loss="charbonnier", optimizer="adamw", lr=1e-2, clip=0, precision="bf16")
    run = replace(RUN, out=tmp_path, steps=30, draw_every=30)
    objective = train_supervised(model, pairs(views=False), run, settings=settings)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert set(lines[0]) == {"step", "loss", "image", "seconds"}
    assert objective.reblur is None
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["restorer.safetensors"]
    assert len(list((tmp_path / "pictures").iterdir())) == 2


@pytest.mark.parametrize("name", ["ifan", "ifan_dual"])
def test_bf16_is_near_and_the_picture_shows_everything(name):
    batch = pairs()(1, torch.Generator().manual_seed(0))
    losses = {}
    for precision in ("fp32", "bf16"):
        restorer = build(name)
        settings = SupervisedSettings(precision=precision)
        objective = SupervisedObjective(restorer, reblur_of(restorer), settings=settings)
        found = objective(batch, 0)
        found.loss.backward()
        assert found.loss.dtype == torch.float32
        losses[precision] = found.loss.item()
        assert objective.picture(found).shape == (3, 3 * 24 + 8, 3 * 24 + 8)  # with disparity and filters
        assert objective.eval().restore(batch).shape == batch.sharp.shape
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


def test_without_views_only_two_losses_are_left():
    restorer = build()
    objective = SupervisedObjective(restorer, reblur_of(restorer))
    found = objective(pairs(views=False)(1, torch.Generator().manual_seed(0)), 0)
    assert set(found.parts) == {"image", "reblur"}


def test_refusals():
    with pytest.raises(ValueError, match="needs filters, and the restorer has no forward_train"):
        SupervisedObjective(nn.Identity(), nn.Identity())
    with pytest.raises(ValueError, match="loss to be one of 'mse'"):
        SupervisedSettings(loss="huber")
    with pytest.raises(ValueError, match="lr to be a number > 0"):
        SupervisedSettings(lr=0)
    with pytest.raises(ValueError, match=r"restored images of shape \(1, 3, 24, 24\), got \(1, 3, 48, 48\)"):
        SupervisedObjective(nn.Upsample(scale_factor=2))(pairs(views=False)(1, torch.Generator()), 0)
    with pytest.raises(ValueError, match=r"\[settings\] lpips_weights: Lpips: .* at nowhere.pth, found no file"):
        SupervisedObjective(nn.Identity(), settings=SupervisedSettings(lpips_weight=0.1, lpips_weights="nowhere.pth"))


@pytest.mark.thorough
def test_the_lpips_term_is_a_tenth_of_its_square(tmp_path):
    pytest.importorskip("torchmetrics")
    torch.manual_seed(0)
    save_alexnet(tmp_path / "alexnet.pth")
    settings = SupervisedSettings(reblur_weight=0, lpips_weight=0.1, lpips_weights=str(tmp_path / "alexnet.pth"))
    restorer = nn.Conv2d(3, 3, 3, padding=1)
    nn.init.dirac_(restorer.weight)  # what it restores stays in [0, 1], where metric and term agree
    nn.init.zeros_(restorer.bias)
    objective = SupervisedObjective(restorer, settings=settings)
    blurry, sharp = torch.rand(2, 2, 3, 40, 40)
    step = objective(Pair(blurry, sharp), 0)
    lpips, restored = metrics.Lpips(tmp_path / "alexnet.pth"), restorer(blurry)
    torch.testing.assert_close(step.parts["lpips"], 0.1 * lpips(restored, sharp).square().mean())
    expected = (restored - sharp).square().mean() + 0.1 * lpips.distance(restored, sharp).square().mean()
    gradients = (torch.autograd.grad(loss, restorer.weight)[0] for loss in (step.loss, expected))
    torch.testing.assert_close(*gradients)
    assert not any("lpips" in name for name in objective.state_dict())


def test_scores_are_means_over_images():
    class Given:
        def restore(self, pair: Pair) -> torch.Tensor:
            return pair.blurry

    sharp = torch.full((1, 3, 8, 8), 0.5)
    scores = mean_scores(
        Given(), [Pair(sharp + 0.1, sharp), Pair(sharp + 0.01, sharp)], "cpu", {"offset": lambda a, b: (a - b).mean()}
    )
    assert scores == {"psnr": pytest.approx(30, abs=0.01), "offset": pytest.approx(0.055, abs=1e-4)}
