"""The inner loop against recorded ones, and its second derivatives against finite differences."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.func import functional_call

from tta_restore import models
from tta_restore.adapters.methods.clip_model import restored_images
from tta_restore.adapters.methods.discriminator import DiscriminatorTrainer
from tta_restore.adapters.methods.inner_loop import InnerLoop, InnerLoopSettings, InnerSample, InnerStep
from tta_restore.models import RestorerSpec, SizeRequirements, as_restorer

GOLDEN = Path(__file__).parents[1] / "golden/meta"
RATES = {"lr": 2e-3, "reblur_lr": 1e-3}


class TinyCritic(nn.Module):
    """The discriminator of the recorded runs."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(32))
        self.classifier = nn.Sequential(*[nn.Identity() for _ in range(6)], nn.Linear(4096, 1))

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class OneConvolution(nn.Module):
    """The restorer of the recorded runs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)


def part(tensors, prefix):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def loaded(module, tensors, prefix):
    module.load_state_dict(part(tensors, prefix))
    return module.eval()


def no_influence(name, tensor):
    """Bias of attention keys: its true gradient is zero, and Adam makes steps of rounding noise."""
    kept = torch.ones(len(tensor), dtype=torch.bool)
    if name.endswith(".attn.qkv.bias"):
        kept[len(tensor) // 3 : 2 * len(tensor) // 3] = False
    if name.endswith("cross_attn.kv.bias"):
        kept[: len(tensor) // 2] = False
    return kept


def assert_recorded(weights, recorded, prefix):
    for name, value in weights.items():
        kept = no_influence(name, value)
        torch.testing.assert_close(value.detach()[kept], recorded[prefix + name][kept], atol=1e-5, rtol=0, msg=name)


def recorded_networks(start):
    reblur = models.create_model("video_reblur", num_layers=1, base_channels=2).eval()
    models.load_checkpoint(reblur, part(start, "init.reblur_model."))
    return (
        loaded(OneConvolution(), start, "init.deblur_model."),
        reblur,
        loaded(TinyCritic(), start, "disc_init."),
    )


def loop_over(restorer, reblur, critic, settings, **options):
    module = restorer

    def restore(weights, picture, clip):
        known = as_restorer(module, RestorerSpec())
        return restored_images(
            known, lambda x: known.restore(x, call=lambda y: functional_call(module, weights, (y,))), picture, clip
        )

    return InnerLoop(
        settings,
        restore=restore,
        reblur=lambda weights, clip: functional_call(reblur, weights, (clip,)),
        critic=critic,
        **{"restorer_weights": dict(module.named_parameters()), "reblur_weights": dict(reblur.named_parameters())}
        | options,
    )


@pytest.mark.parametrize(
    ("variant", "order"),
    [("default", "official"), ("cycle_block", "ours")],
)
def test_recorded_inner_loops(variant, order):
    start = load_file(GOLDEN / "inner_loop_default.safetensors")
    recorded = load_file(GOLDEN / f"inner_loop_{variant}.safetensors")
    items = [InnerSample(start[f"sample{i}.blurs"], start[f"sample{i}.blurrer"][0]) for i in range(3)]
    restorer, reblur, discriminator = recorded_networks(start)
    critic = DiscriminatorTrainer(discriminator, lr=1e-4)
    loop = loop_over(restorer, reblur, critic, InnerLoopSettings(**RATES, variant=order))
    chosen = zip(recorded["order_stage1"].tolist(), recorded["real_frame_pick"].tolist(), strict=True)
    for number, (item, real) in enumerate(chosen):
        assert loop.update(loop.loss(InnerStep("reblur", item, real), items[item])) is None
        for name, key in (("adversarial_loss", "stage1_gan_loss"), ("cycle_loss", "stage1_cycle_loss")):
            assert loop.terms[name] == pytest.approx(recorded[key][number].item(), abs=1e-6)
    assert_recorded(loop.reblur_weights, recorded, "after_reblur.reblur_model.")
    assert_recorded(loop.restorer_weights, recorded, "after_reblur.deblur_model.")
    assert_recorded(critic.weights, recorded, "disc_after_reblur.")
    for number, item in enumerate(recorded["order_stage2"].tolist()):
        assert loop.update(loop.loss(InnerStep("deblur", item), items[item])) is None
        assert loop.terms["deblur_loss"] == pytest.approx(recorded["stage2_deblur_loss"][number].item(), abs=1e-6)
    assert_recorded(loop.reblur_weights, recorded, "final.reblur_model.")
    assert_recorded(loop.restorer_weights, recorded, "final.deblur_model.")
    with torch.no_grad():
        probe = recorded["probe"]
        reblurred = functional_call(reblur, loop.reblur_weights, (probe,))
        torch.testing.assert_close(reblurred, recorded["probe_reblur_final"], atol=1e-5, rtol=0)
        restored = functional_call(restorer, loop.restorer_weights, (probe[:, 2],))
        torch.testing.assert_close(restored, recorded["probe_deblur_final"], atol=1e-6, rtol=0)


def test_recorded_critic():
    recorded = load_file(GOLDEN / "gan_tiny.safetensors")
    critic = DiscriminatorTrainer(loaded(TinyCritic(), recorded, "d_init."), lr=1e-3)
    for step in range(3):
        fake = recorded[f"step{step}.fake"].requires_grad_()
        loss = critic.update(fake, recorded[f"step{step}.real"])
        assert loss.item() == pytest.approx(recorded[f"step{step}.g_loss"].item(), abs=1e-6)
        torch.testing.assert_close(
            torch.autograd.grad(loss, fake)[0], recorded[f"step{step}.grad_fake"], atol=1e-6, rtol=0
        )
        for name, weight in critic.weights.items():
            torch.testing.assert_close(weight.detach(), recorded[f"step{step}.d_after.{name}"], atol=1e-6, rtol=0)


def by_hand(restorer, reblur, discriminator, items, real, second):
    """The published inner loop with torch's optimizers on the networks themselves; ``second`` is the second order."""
    adam = torch.optim.Adam(
        [{"params": reblur.parameters(), "lr": 1e-3}, {"params": restorer.parameters(), "lr": 2e-3}]
    )
    rms = torch.optim.RMSprop(discriminator.parameters(), lr=1e-4)
    for clip, blurred in zip(items, real, strict=True):
        fake = reblur(clip)
        rms.zero_grad()
        (discriminator(fake.detach()).mean() - discriminator(blurred).mean()).backward()
        rms.step()
        with torch.no_grad():
            for weight in discriminator.parameters():
                weight.clamp_(-0.01, 0.01)
        adam.zero_grad()
        cycle = (restorer(fake.clamp(0, 1)) - clip[:, 2]).abs().mean()
        (-0.99 * discriminator(fake).mean() + 0.01 * cycle).backward()
        adam.step()
    for clip in (items[i] for i in second):
        adam.zero_grad()
        with torch.no_grad():
            fake = reblur(clip).clamp(0, 1)
        (restorer(fake) - clip[:, 2]).abs().mean().backward()
        adam.step()


@pytest.mark.thorough
def test_the_most_blurred_crop_can_be_the_real_one():
    """The procedure written out repeats a record; with that crop in its place the loop repeats the procedure."""
    recorded = load_file(GOLDEN / "inner_loop_default.safetensors")
    clips = [recorded[f"sample{i}.blurs"][None] for i in range(3)]
    second = recorded["order_stage2"].tolist()
    assert recorded["order_stage1"].tolist() == [0, 1, 2]
    networks = recorded_networks(recorded)
    picks = recorded["real_frame_pick"].tolist()
    by_hand(*networks, clips, [clip[:, pick] for clip, pick in zip(clips, picks, strict=True)], second)
    for module, prefix in zip(networks, ("final.deblur_model.", "final.reblur_model.", None), strict=True):
        if prefix:
            assert_recorded(dict(module.named_parameters()), recorded, prefix)
    blurred = [recorded[f"sample{i}.blurrer"] for i in range(3)]
    networks = recorded_networks(recorded)
    by_hand(*networks, clips, blurred, second)
    restorer, reblur, discriminator = recorded_networks(recorded)
    settings = InnerLoopSettings(**RATES, variant="official", real_source="blurriest")
    critic = DiscriminatorTrainer(discriminator, lr=1e-4)
    loop = loop_over(restorer, reblur, critic, settings)
    items = [InnerSample(clip[0], crop[0]) for clip, crop in zip(clips, blurred, strict=True)]
    for step in [InnerStep("reblur", i) for i in range(3)] + [InnerStep("deblur", i) for i in second]:
        assert loop.update(loop.loss(step, items[step.sample])) is None
    for module, weights in zip(networks, (loop.restorer_weights, loop.reblur_weights, critic.weights), strict=True):
        assert_recorded(weights, dict(module.named_parameters()), "")
    moved = recorded["disc_after_reblur.features.0.weight"] - critic.weights["features.0.weight"]
    assert moved.abs().max() > 1e-4  # another crop, other weights


def test_a_critic_that_learns_at_every_second_judgment_along_a_schedule():
    recorded = load_file(GOLDEN / "gan_tiny.safetensors")
    critic, theirs = (loaded(TinyCritic(), recorded, "d_init.") for _ in range(2))
    critic = DiscriminatorTrainer(critic, lr=1e-3, update_interval=2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(critic.optimizer, 15, eta_min=1e-9)
    rms = torch.optim.RMSprop(theirs.parameters(), lr=1e-3)
    for step in range(4):
        fake, real = recorded[f"step{step % 3}.fake"], recorded[f"step{step % 3}.real"]
        loss = critic.update(fake, real)
        if step % 2 == 0:
            schedule.step()
            rms.param_groups[0]["lr"] = 1e-9 + (1e-3 - 1e-9) * (1 + math.cos(math.pi * (step // 2) / 15)) / 2
            rms.zero_grad()
            (theirs(fake).mean() - theirs(real).mean()).backward()
            rms.step()
            with torch.no_grad():
                for weight in theirs.parameters():
                    weight.clamp_(-0.01, 0.01)
        for name, weight in critic.weights.items():
            torch.testing.assert_close(weight, theirs.get_parameter(name), atol=1e-7, rtol=0)
        assert loss.item() == pytest.approx(-theirs(fake).mean().item(), abs=1e-7)


class TinyReblur(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(9, 3, 3, padding=1)

    def forward(self, clip):
        return clip[:, 1] + 0.1 * torch.tanh(self.conv(clip.flatten(1, 2)))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("order", ["ours", "official"])
def test_second_order_is_that_of_finite_differences(optimizer, order):
    torch.manual_seed(0)
    restorer, reblur = OneConvolution().double(), TinyReblur().double()
    generator = torch.Generator().manual_seed(1)
    items = [
        InnerSample(0.2 + 0.6 * torch.rand(3, 3, 5, 6, generator=generator, dtype=torch.float64)) for _ in range(2)
    ]
    settings = InnerLoopSettings(lr=0.05, reblur_lr=0.03, optimizer=optimizer, variant=order)
    query = torch.rand(1, 3, 5, 6, generator=generator, dtype=torch.float64)

    def outer(a, b):
        weights = {"restorer_weights": {"conv.weight": a, "conv.bias": restorer.conv.bias.detach()}}
        weights["reblur_weights"] = {"conv.weight": b, "conv.bias": reblur.conv.bias.detach().requires_grad_()}
        weights["restorer_weights"]["conv.bias"].requires_grad_()
        loop = loop_over(restorer, reblur, None, settings, create_graph=True, distance=F.mse_loss, **weights)
        loop.run(items, torch.Generator().manual_seed(2))
        return (functional_call(restorer, loop.restorer_weights, (query,)) - 0.5).square().mean() + (
            functional_call(reblur, loop.reblur_weights, (items[0].clip[None],)) - query
        ).square().mean()

    start = [module.conv.weight.detach().clone().requires_grad_() for module in (restorer, reblur)]
    assert torch.autograd.gradcheck(outer, start, eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=True)


def test_a_weight_without_gradient_does_not_spoil_second_order_adam():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    settings = InnerLoopSettings(lr=0.1)
    used = torch.tensor([1.0, 0.0])
    loop = InnerLoop(
        settings,
        restore=lambda weights, picture, clip: [picture * (weights["w"] * used).sum()],
        reblur=lambda weights, clip: clip[:, 0] * weights["r"],
        restorer_weights={"w": weight},
        reblur_weights={"r": torch.tensor(0.5, requires_grad=True)},
        create_graph=True,
    )
    loop.run([InnerSample(torch.full((1, 3, 4, 4), 0.5))], torch.Generator())
    (gradient,) = torch.autograd.grad(loop.restorer_weights["w"].sum(), weight)
    assert gradient.isfinite().all()


def test_steps_are_those_of_the_settings():
    steps = InnerLoopSettings(num_epochs=2).steps(3, 5, torch.Generator().manual_seed(0))
    assert [step.stage for step in steps] == ["reblur"] * 6 + ["deblur"] * 6
    for stage in (steps[:3], steps[3:6], steps[6:9], steps[9:]):
        assert sorted(step.sample for step in stage) == [0, 1, 2]
    assert {step.real for step in InnerLoopSettings().steps(99, 5, torch.Generator())[:99]} == {0, 1, 3, 4}
    blurriest = InnerLoopSettings(real_source="blurriest").steps(2, 5, torch.Generator())
    assert all(step.real is None for step in blurriest)
    assert InnerLoopSettings().steps(1, 1, torch.Generator())[0].real == 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"optimizer": "rmsprop"}, "optimizer to be one of 'adam', 'sgd'"),
        ({"variant": "right"}, "variant to be one of 'official', 'ours', got 'right'"),
        ({"real_source": "sharp"}, "real_source to be one of"),
        ({"adversarial_weight": 1.5}, r"adversarial_weight to be a number in \[0, 1\], got 1.5"),
        ({"lr": -1.0}, "inner loop: expected lr to be a number >= 0"),
        ({"num_epochs": 0}, "num_epochs to be an integer >= 1"),
    ],
)
def test_settings_out_of_range_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        InnerLoopSettings(**bad)


def test_pictures_of_models_of_frames_clips_and_stages():
    clip, picture = torch.rand(5, 3, 8, 8), torch.rand(1, 3, 8, 8)

    def run(model, spec, outputs="main"):
        restorer = as_restorer(model, spec)
        return restored_images(restorer, restorer.restore, picture, clip, outputs=outputs)

    assert torch.equal(run(lambda x: x, RestorerSpec())[0], picture)
    windows = []
    out = run(lambda x: windows.append(x.clone()) or x[:, 1], RestorerSpec(frames=3))
    assert torch.equal(out[0], picture)
    assert torch.equal(windows[0], torch.stack([clip[1], picture[0], clip[3]])[None])
    wide = []
    run(lambda x: wide.append(x.clone()) or x[:, 3], RestorerSpec(frames=7))
    assert torch.equal(wide[0][0, [0, 1, 2, 4, 5, 6]], clip[[0, 0, 1, 3, 4, 4]])
    assert torch.equal(run(lambda x: x, RestorerSpec(frames=None))[0], picture)
    stages = run(lambda x: [F.avg_pool2d(x, 2), x.repeat(1, 2, 1, 1), x], RestorerSpec(value_range=(0, 2)), "all")
    assert [tuple(stage.shape) for stage in stages] == [(1, 3, 8, 8), (1, 3, 4, 4)]
    torch.testing.assert_close(stages[1], F.avg_pool2d(picture, 2))
    padded = RestorerSpec(size=SizeRequirements(multiple_of=12))  # 8 becomes 12: 6 at half the scale, 4 of it real
    stages = run(lambda x: [F.avg_pool2d(x, 2), x], padded, "all")
    torch.testing.assert_close(stages[1], F.avg_pool2d(picture, 2))
    with pytest.raises(ValueError, match="scale 1, got scale 2"):
        run(lambda x: x, RestorerSpec(scale=2))


class Counted(nn.Module):
    """A reblurrer that counts its calls."""

    def __init__(self):
        super().__init__()
        self.scale, self.calls = nn.Parameter(torch.tensor(0.9)), 0

    def forward(self, x):
        self.calls += 1
        return self.scale * x[:, x.shape[1] // 2]


@pytest.mark.parametrize(("order", "calls"), [("ours", 3), ("official", 3)])
def test_a_patch_is_reblurred_once_while_the_reblurrer_rests(order, calls):
    """In the deblur stage; where the reblurrer goes on by momentum, before every step."""
    items = [InnerSample(torch.rand(3, 3, 8, 8)) for _ in range(3)]
    reblur = Counted()
    settings = InnerLoopSettings(lr=1e-3, reblur_lr=1e-3, num_epochs=3, variant=order, noise_std=0.01)
    loop_over(OneConvolution(), reblur, None, settings).run(items, torch.Generator())
    assert reblur.calls == 9 + calls  # 9 in the reblur stage


def test_nothing_to_learn_in_the_reblur_stage_leaves_it_out():
    stages = {
        (rate, order): {
            step.stage for step in InnerLoopSettings(reblur_lr=rate, variant=order).steps(2, 3, torch.Generator())
        }
        for rate in (0.0, 1e-3)
        for order in ("ours", "official")
    }
    assert stages.pop((0.0, "ours")) == {"deblur"}
    assert all(found == {"reblur", "deblur"} for found in stages.values())
