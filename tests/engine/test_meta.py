"""Meta-learning: the outer gradient is the derivative of what it says, and the first order is that of every clip."""

import copy

import pytest
import torch
from _meta_networks import Critic, Deblur, Reblur, clips, seeded, task
from _second_derivatives import Squares, TheirLayerNorm2d
from torch import nn

from tta_restore import losses
from tta_restore.adapters.methods.inner_loop import InnerLoopSettings
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train.config import MetaSettings
from tta_restore.engine.train.loop import Processes
from tta_restore.engine.train.meta import MetaObjective
from tta_restore.engine.train.windows import TaskSource, query_windows
from tta_restore.nn import IsotropicReblur, IterativeFilterAdaptiveBlock

squared = nn.functional.mse_loss
EXAMPLE = torch.rand(1, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class KernelReblur(nn.Module):
    """Blurs the center frame by isotropic kernels that it predicts: through the kernels of ops.isotropic_reblur."""

    def __init__(self):
        super().__init__()
        self.seeds, self.weights = nn.Conv2d(15, 35, 1), nn.Conv2d(15, 8, 1)
        self.reblur = IsotropicReblur()

    def forward(self, x):
        seen = x.flatten(1, 2)
        return self.reblur(x[:, 2], self.seeds(seen).square() + 0.1, self.weights(seen).softmax(1))


class KernelDeblur(nn.Module):
    """Restores through filters that are predicted for every pixel and step: ops.iac_from_features."""

    def __init__(self):
        super().__init__()
        self.features, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.block = IterativeFilterAdaptiveBlock(4, 4, num_steps=2)

    def forward(self, x):
        features = self.features(x).tanh()
        return x + self.last(self.block(features, features)).tanh()


def learned(objective, batch, seed=7):
    """Gradients that an update leaves in the weights, with an optimizer that does nothing."""
    optimizers = {"optimizer": torch.optim.SGD(objective.groups(), lr=0.0)}
    for group in optimizers["optimizer"].param_groups:
        group["lr"] = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = objective.update(batch, 0, optimizers, Processes())
    return {name: weight.grad.clone() for name, weight in objective.weights().items()}, found


@pytest.mark.parametrize(
    ("rule", "rate", "order", "deblur", "reblur"),
    [
        ("sgd", 0.05, "official", Deblur, Reblur),
        ("adam", 0.01, "ours", Deblur, Reblur),
        ("sgd", 0.05, "official", KernelDeblur, KernelReblur),
    ],
)
def test_second_order_is_the_derivative_of_the_outer_loss(rule, rate, order, deblur, reblur):
    """Against central differences in float64, through both stages, the critic's opinion and our kernels."""
    networks = [seeded(build).double() for build in (deblur, reblur, Critic)]
    inner = InnerLoopSettings(rate, rate, optimizer=rule, adversarial_weight=0.5, variant=order)
    settings = MetaSettings(inner, second_order=True, discriminator_lr=0.0)  # the critic counts as given
    objective = MetaObjective(*networks, settings=settings, distance=squared, example=EXAMPLE)
    cut, weights = task(), objective.weights()
    found, _ = learned(objective, [cut])
    # the seed of the patches' order is drawn from the global generator: give the differences the same one
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        draws = torch.Generator().manual_seed(int(torch.randint(2**62, ()).item())).get_state()

    def value(shift, direction):
        generator = torch.Generator()
        generator.set_state(draws)
        moved = {n: (w.detach() + shift * direction[n]).requires_grad_() for n, w in weights.items()}
        adapted, _ = objective.adapt(moved, cut, generator)
        parts = objective.query_loss(adapted, cut.query_blurry, cut.query_sharp)
        return sum(part.item() for part in parts.values())

    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        direction = {n: torch.randn(w.shape, generator=draw, dtype=w.dtype) for n, w in weights.items()}
        expected = (value(1e-7, direction) - value(-1e-7, direction)) / 2e-7  # short: there are kinks
        slope = sum((found[n] * direction[n]).sum().item() for n in weights)
        assert slope == pytest.approx(expected, rel=2e-5, abs=1e-9)
    first = MetaObjective(*networks, settings=MetaSettings(inner, discriminator_lr=0.0), distance=squared)
    assert any(not torch.allclose(found[n], g, rtol=1e-2) for n, g in learned(first, [cut])[0].items())  # not the same


def by_hand(deblur, reblur, critic, cut, steps, *, lr):
    """The inner loop as published, with torch's optimizers, written down step by step."""
    deblur, reblur, critic = (copy.deepcopy(module) for module in (deblur, reblur, critic))
    adam = torch.optim.Adam([{"params": reblur.parameters()}, {"params": deblur.parameters(), "lr": 2 * lr}], lr=lr)
    rms = torch.optim.RMSprop(critic.parameters(), lr=1e-3)
    for step in steps:
        window = cut.items[step.sample].clip[None]
        adam.zero_grad()
        if step.stage == "deblur":
            (deblur(reblur(window).clamp(0, 1).detach()) - window[:, 2]).abs().mean().backward()
            adam.step()
            continue
        fake = reblur(window)
        rms.zero_grad()
        (critic(fake.detach()).mean() - critic(window[:, step.real]).mean()).backward()
        rms.step()
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter.clamp_(-0.01, 0.01)
        cycle = (deblur(fake.clamp(0, 1)) - window[:, 2]).abs().mean()
        (-0.99 * critic(fake).mean() + 0.01 * cycle).backward()
        adam.step()
    return deblur, reblur


def outer_by_hand(deblur, reblur, blurry, sharp):
    reblurred = losses.charbonnier_edge_loss(reblur(sharp), blurry[:, 2])
    return 0.5 * reblurred + 0.5 * (deblur(blurry[:, 2]) - sharp[:, 2]).abs().mean()


def networks():
    return [seeded(build) for build in (Deblur, Reblur, Critic)]


INNER = InnerLoopSettings(lr=2e-3, reblur_lr=1e-3, variant="official")
SETTINGS = {"inner": INNER, "discriminator_lr": 1e-3, "reblur_lr": 1e-3, "lr": 2e-3}


@pytest.mark.parametrize("steps", ["clip", "frame"])
@pytest.mark.parametrize("start", ["initial", "adapted"])
def test_first_order_of_every_clip(steps, start):
    """Two clips after each other. ``initial``: each adapts from, and steps from, the meta-weights; ``adapted`` repeats
    what the release does from its second clip on."""
    cuts = [task(seed, dtype=torch.float32) for seed in (1, 2)]
    mine = networks()
    settings = MetaSettings(outer_steps=steps, outer_start=start, **SETTINGS)
    objective = MetaObjective(*mine, settings=settings)
    optimizers = objective.optimizers()
    theirs = networks()
    deblur, reblur, critic = theirs
    adam = torch.optim.Adam([{"params": reblur.parameters(), "lr": 1e-3}, {"params": deblur.parameters(), "lr": 2e-3}])
    for number, cut in enumerate(cuts):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            objective.update([cut], number, optimizers, Processes())
            torch.manual_seed(number)
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ()).item()))
        adapted = by_hand(deblur, reblur, critic, cut, INNER.steps(2, 5, generator), lr=1e-3)
        if start == "adapted":
            for module, values in zip((deblur, reblur), adapted, strict=True):
                module.load_state_dict(values.state_dict())
        count = len(cut.query_blurry)
        shares = [(n, n + 1) for n in range(count)] if steps == "frame" else [(0, count)]
        for first, last in shares:
            for module in adapted:
                module.zero_grad()
            loss = outer_by_hand(*adapted, cut.query_blurry[first:last], cut.query_sharp[first:last])
            (loss * (last - first) / count).backward()
            for module, values in zip((deblur, reblur), adapted, strict=True):
                for weight, there in zip(module.parameters(), values.parameters(), strict=True):
                    weight.grad = there.grad.clone()
            adam.step()
    for module, expected in zip(mine, theirs, strict=True):
        for name, weight in module.named_parameters():
            torch.testing.assert_close(weight, expected.get_parameter(name), atol=2e-6, rtol=1e-5, msg=name)


def test_switches_of_the_release_go_through_one_clip_at_a_time():
    objective = MetaObjective(*networks(), settings=MetaSettings(outer_start="adapted"))
    with pytest.raises(UsageError, match="one clip at a time"):
        objective.update([task(), task()], 0, objective.optimizers(), Processes())
    with pytest.raises(ValueError, match="have no second order"):
        MetaSettings(second_order=True, outer_start="adapted")
    with pytest.raises(ValueError, match="discriminator_lr to be a number >= 0"):
        MetaSettings(discriminator_lr=-1.0)
    with pytest.raises(ValueError, match=r"reblur_weight to be a number in \[0, 1\]"):
        MetaSettings(reblur_weight=2.0)
    with pytest.raises(ValueError, match=r"initial_loss_weight to be a number in \[0, 1\]"):
        MetaSettings(initial_loss_weight=-0.5)
    for switch in ({"outer_start": "adapted"}, {"outer_steps": "frame"}):
        with pytest.raises(ValueError, match="initial_loss_weight is for outer_steps 'clip'"):
            MetaSettings(initial_loss_weight=0.5, **switch)


@pytest.mark.parametrize("second_order", [False, True])
def test_the_start_is_judged_too(second_order):
    """Its share of the outer gradient is that of plain training on the same pairs, the rest that of the adapted."""

    def gradients(share, cuts):
        settings = MetaSettings(
            InnerLoopSettings(0.1, 0.1, optimizer="sgd"), second_order=second_order, initial_loss_weight=share
        )
        return learned(MetaObjective(*networks()[:2], settings=settings, example=EXAMPLE), cuts)

    cuts = [task(seed, patches=1, dtype=torch.float32) for seed in (1, 2)]
    adapted, _ = gradients(0.0, cuts)
    mixed, found = gradients(0.3, cuts)
    deblur, reblur, _ = networks()
    plain = sum(outer_by_hand(deblur, reblur, cut.query_blurry, cut.query_sharp) for cut in cuts) / 2
    plain.backward()
    before = found.parts["reblur_before"] + found.parts["deblur_before"]
    torch.testing.assert_close(before, plain.detach(), atol=1e-6, rtol=1e-5)
    for part, module in (("restorer", deblur), ("reblur", reblur)):
        for name, weight in module.named_parameters():
            name = f"{part}.{name}"
            assert not torch.allclose(weight.grad, adapted[name], atol=1e-6, rtol=1e-3)
            expected = 0.3 * weight.grad + 0.7 * adapted[name]
            torch.testing.assert_close(mixed[name], expected, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("second_order", [False, True])
def test_a_batch_of_clips_is_the_mean_of_its_clips(second_order):
    """And neither the weights nor the critic change while adapting."""
    settings = MetaSettings(InnerLoopSettings(0.1, 0.1, optimizer="sgd"), second_order=second_order)
    objective = MetaObjective(*networks()[:2], settings=settings, example=EXAMPLE)
    before = copy.deepcopy(objective.state_dict())
    cuts = [task(seed, patches=1, dtype=torch.float32) for seed in (1, 2)]
    single = [learned(objective, [cut])[0] for cut in cuts]
    both, found = learned(objective, cuts)
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, (single[0][name] + single[1][name]) / 2, atol=1e-6, rtol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())
    assert found.loss.item() == pytest.approx((found.parts["reblur"] + found.parts["deblur"]).item())
    assert objective.picture(found).shape == (3, 2 * 12 + 4, 3 * 12 + 8)


@pytest.mark.parametrize("order", ["ours", "official"])
def test_keeping_the_graph_changes_no_step(order):
    """The gradient of an inner step is the partial one: a path through what the other network learned is none of it."""
    inner = InnerLoopSettings(0.3, 0.3, optimizer="sgd", variant=order)
    found = []
    for second_order in (False, True):
        settings = MetaSettings(inner, second_order=second_order)
        objective = MetaObjective(*(m.double() for m in networks()[:2]), settings=settings, example=EXAMPLE)
        found.append(objective.adapt(dict(objective.weights()), task(), torch.Generator().manual_seed(0))[0])
    for name, value in found[0].items():
        torch.testing.assert_close(value.detach(), found[1][name].detach(), atol=1e-12, rtol=1e-12)


def test_second_order_while_the_critic_learns():
    """Its steps are in no graph, and do not break the graph that runs through its opinion."""
    inner = InnerLoopSettings(0.05, 0.05, optimizer="sgd", adversarial_weight=0.5)
    settings = MetaSettings(inner, second_order=True, discriminator_lr=1e-3)
    found, _ = learned(MetaObjective(*networks(), settings=settings, example=EXAMPLE), [task(dtype=torch.float32)])
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_second_order_through_a_layer_norm_that_is_wrong():
    """Exchanged where the plain formula gives the same, refused otherwise."""

    def restorer(layer):
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer, nn.GELU(), nn.Conv2d(4, 3, 3, padding=1))

    class LayerNorm2d(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.movedim(1, -1)).movedim(-1, 1)

    class Layer(nn.Module):
        def forward(self, x):
            return Squares.apply(x)

    settings = MetaSettings(InnerLoopSettings(0.05, 0.05, optimizer="sgd"), second_order=True)
    wrong, right = seeded(lambda: restorer(TheirLayerNorm2d(4))), seeded(lambda: restorer(LayerNorm2d(4, eps=1e-6)))
    found = []
    for model in (wrong, right):
        objective = MetaObjective(model, seeded(Reblur), settings=settings, distance=squared, example=EXAMPLE)
        found.append(learned(objective, [task(dtype=torch.float32)])[0])
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], atol=1e-6, rtol=1e-4)
    assert "forward" not in vars(wrong[1])
    with pytest.raises(ValueError, match="refused for the restorer: .* wrong by .*Squares"):
        MetaObjective(restorer(Layer()), seeded(Reblur), settings=settings, distance=squared, example=EXAMPLE)
    MetaObjective(restorer(Layer()), seeded(Reblur), distance=squared)  # first order asks for nothing


def test_restorers_of_clips_see_the_pseudo_blur_among_their_frames():
    from tta_restore.models import RestorerSpec

    class OfClips(nn.Module):
        spec = RestorerSpec(frames=5)

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(15, 3, 1)

        def forward(self, x):
            return self.conv(x.flatten(1, 2))

    objective = MetaObjective(seeded(OfClips), seeded(Reblur))
    cut, center = task(dtype=torch.float32), torch.zeros(2, 3, 12, 12)
    values, windows = dict(objective.weights()), torch.stack([item.clip for item in cut.items])
    seen = windows.clone()
    seen[:, 2] = 0
    found = torch.cat([group[0] for group in objective.restored(values, windows, center)])
    torch.testing.assert_close(found, objective.restorer(seen))
    assert all(g.isfinite().all() for g in learned(objective, [cut])[0].values())


def test_tasks_are_cut_from_clips():
    source = TaskSource(clips(), num_patches=4, patch_size=16, query_frames=2)
    tasks = source(2, torch.Generator().manual_seed(0))
    assert len({cut.name for cut in tasks}) == 2
    assert [item.clip.shape for item in tasks[0].items] == [(5, 3, 16, 16)] * 4
    assert tasks[0].query_blurry.shape == tasks[0].query_sharp.shape == (2, 5, 3, 16, 16)
    again = source(2, torch.Generator().manual_seed(0))
    assert torch.equal(tasks[1].items[3].clip, again[1].items[3].clip)
    clip = clips(1)[0]
    blurry, sharp = query_windows(clip, 32, torch.Generator().manual_seed(0))
    assert torch.equal(blurry[:, 2], clip.blurry)
    assert torch.equal(sharp[:, 2], clip.sharp)
    assert torch.equal(blurry[0, 0], clip.blurry[0])  # the ends are repeated
    assert torch.equal(sharp[5, 4], clip.sharp[5])
    with pytest.raises(ValueError, match="at least 33 x 33"):
        query_windows(clip, 33, torch.Generator())
    with pytest.raises(ValueError, match="at least one clip"):
        TaskSource([])


def test_other_moments_and_patches_without_blur_count_in_meta_training_too():
    source = TaskSource(clips(), num_patches=2, patch_size=16, num_extra_times=3)
    cut = source.task(source.clips[0], torch.Generator().manual_seed(0))
    assert len(cut.items) == 2 * (1 + 3)
    objective = MetaObjective(
        seeded(Deblur), seeded(Reblur), settings=MetaSettings(InnerLoopSettings(lr=1e-2, min_blur_rms=100.0))
    )
    start = dict(objective.weights())
    adapted, terms = objective.adapt(start, cut, torch.Generator())
    assert all(torch.equal(adapted[name], value) for name, value in start.items())  # nothing is changed by so much
    assert not terms


@pytest.mark.parametrize("steps", ["clip", "frame"])
def test_outer_gradients_are_clipped(steps):
    """A subclass, or whoever holds the objective, sets ``clip``, as for any other objective."""
    objective = MetaObjective(*networks(), settings=MetaSettings(outer_steps=steps, **SETTINGS))
    for clip, holds in ((None, False), (1e-3, True)):
        objective.clip = clip
        gradients, _ = learned(objective, [task(dtype=torch.float32)])
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
        assert (norm <= 1.001e-3) == holds
