"""Literal forms on pictures do what the specification predicts, and the regression forms do what they say."""

import math

import pytest
import torch
import torch.nn.functional as F
from adapters.recipes import look
from adapters.zoo import build, frames
from torch import nn

from tta_restore.adapters import EATA, ROID, SAR, CoTTA, Guards, Semantic, Tent
from tta_restore.adapters.baselines.entropy import entropy, view_variance
from tta_restore.models import RestorerSpec

SPEC = RestorerSpec()


def test_entropy_of_pictures_is_nearly_flat():
    image = torch.rand(2, 3, 5, 4, dtype=torch.float64)
    p = image.softmax(1)
    torch.testing.assert_close(entropy(image), -(p * p.log()).sum(1).float(), atol=1e-6, rtol=0)
    corners = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 0]])[:, :, None, None]
    assert entropy(corners).aminmax() == (pytest.approx(0.9753, abs=1e-4), pytest.approx(math.log(3), abs=1e-6))
    other = torch.rand(2, 3, 5, 4)
    expected = F.cross_entropy(other, image.softmax(1).float(), reduction="none")
    torch.testing.assert_close(entropy(other, image), expected)


def test_literal_tent_saturates_color():
    torch.manual_seed(0)
    net = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        net.weight.copy_(torch.eye(3)[..., None, None])
        net.bias.zero_()
    adapter = Tent(net, variant="official", select="all", lr=1e-2, spec=SPEC)
    x = torch.rand(1, 3, 16, 16)
    for _ in range(20):
        adapter(x)
    spread = [image.amax(1) - image.amin(1) for image in (x, adapter.predict(x))]
    assert spread[1].mean() > 1.1 * spread[0].mean()


def test_regression_tent_makes_views_agree_and_gives_their_mean_of_before():
    torch.manual_seed(0)
    net = build("plain")
    adapter = Tent(net, select="all", lr=1e-3, spec=SPEC)
    x = frames("plain", 1)[0]
    with torch.no_grad():
        views = torch.stack([torch.rot90(net(torch.rot90(x, k, (2, 3))), -k, (2, 3)) for k in range(4)])
    torch.testing.assert_close(adapter(x), views.mean(0))
    assert adapter.report.loss == pytest.approx(views.var(0, correction=0).mean().item(), rel=1e-4)
    first = adapter.report.loss
    for _ in range(30):
        adapter(x)
    assert adapter.report.loss < 0.5 * first


@pytest.mark.parametrize("method", [SAR, EATA])
def test_literal_forms_with_a_margin_never_learn_from_pictures(method):
    adapter = method(build("plain"), variant="official", spec=SPEC)
    for x in frames("plain", 3):
        adapter(x)
        assert not adapter.report.updated
    assert "reliable" in adapter.report.skipped_because


def test_sar_steps_with_the_gradient_of_the_worst_point_near_by():
    net = build("plain")
    adapter = SAR(
        net, select="all", lr=0.5, rho=0.1, reliable_fraction=0.8, guards=Guards(max_loss_ratio=None), spec=SPEC
    )
    x = frames("plain", 1)[0]

    def loss(weights, within=None):
        image = [torch.func.functional_call(net, weights, torch.rot90(x, k, (2, 3))) for k in range(4)]
        variance = view_variance(torch.stack([torch.rot90(v, -k, (2, 3)) for k, v in enumerate(image)]))
        reliable = variance <= variance.flatten().sort().values[round(0.8 * variance.numel()) - 1]
        reliable = reliable if within is None else reliable & within
        return variance[reliable].mean(), reliable

    weights = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    first, reliable = loss(weights)
    up = torch.autograd.grad(first, list(weights.values()))
    norm = torch.stack([g.norm() for g in up]).norm()
    near = {n: (w + 0.1 * g / norm).detach().requires_grad_() for (n, w), g in zip(weights.items(), up, strict=True)}
    down = torch.autograd.grad(loss(near, reliable)[0], list(near.values()))
    adapter(x)
    for (name, w), g in zip(weights.items(), down, strict=True):
        step = w.detach() - adapter.student[name].detach()
        torch.testing.assert_close(step, 0.5 * g, atol=1e-9 + 1e-3 * float(g.abs().max()), rtol=0)


def test_literal_sar_starts_afresh_when_everything_is_certain():
    torch.manual_seed(0)
    net = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        net.weight.mul_(0)
        net.bias.copy_(torch.tensor([9.0, 0, 0]))  # as sure as a classifier
    adapter = SAR(net, variant="official", select="all", spec=SPEC)
    adapter(torch.rand(1, 3, 8, 8))
    assert adapter.report.updated
    assert adapter.memory["running"] is None
    assert all(torch.equal(tensor, adapter.source[name]) for name, tensor in adapter.student.items())


def test_eata_skips_what_it_has_seen_and_stays_near_the_source_where_fisher_says():
    stream = frames("plain", 3)
    adapter = EATA(build("plain"), select="all", lr=1.0, spec=SPEC)
    reports = [adapter.adapt(x) for x in (stream[0], stream[0], stream[1])]
    assert [report.updated for report in reports] == [True, False, True]
    fisher = adapter.measure_fisher(stream)
    assert fisher.keys() == adapter.source.keys()
    assert all((value >= 0).all() for value in fisher.values())
    assert any(value.any() for value in fisher.values())
    free = EATA(build("plain"), select="all", lr=1.0, max_similarity=2.0, steps=8, spec=SPEC)
    held = EATA(
        build("plain"), select="all", lr=1.0, max_similarity=2.0, steps=8, spec=SPEC,
        fisher={name: torch.ones_like(value) for name, value in fisher.items()}, fisher_weight=0.4,
    )  # fmt: skip
    assert held.adapt(stream[0]).drift < 0.9 * free.adapt(stream[0]).drift


def test_roid_mixes_the_source_back_in():
    x = frames("plain", 1)[0]
    kept = ROID(build("plain"), select="all", momentum=1.0, spec=SPEC)
    mixed = ROID(build("plain"), select="all", momentum=0.75, spec=SPEC)
    kept(x)
    mixed(x)
    for name, source in kept.source.items():
        torch.testing.assert_close(mixed.student[name], source.lerp(kept.student[name], 0.75).detach())
    with pytest.raises(ValueError, match="expected momentum to be a number in"):
        ROID(build("plain"), momentum=1.5)


def test_literal_cotta_does_not_undo_its_random_views_and_repeats_them():
    net = build("plain")
    outputs = []
    for _ in range(2):
        adapter = CoTTA(net, variant="official", spec=SPEC)
        outputs.append(adapter(frames("plain", 1)[0]))
        assert adapter.report.metrics["anchor"] < 0.576
    assert torch.equal(*outputs)
    with torch.no_grad():
        assert (outputs[0] - net(frames("plain", 1)[0])).abs().mean() > 0.02  # misaligned, as predicted


def test_regression_cotta_is_the_siamese_rule_with_a_slow_teacher():
    adapter = CoTTA(build("plain"), spec=SPEC)
    assert (adapter.learning_rate(1000), adapter.ema, adapter.emitted) == (1e-4, 0.999, "teacher_mean")
    assert adapter.region is None
    assert len(adapter.adapted) == 4


def test_what_is_adapted_when_nothing_is_said():
    assert Tent(build("batch_norm"), spec=SPEC).adapted == ("body.1.weight", "body.1.bias")
    assert Tent(build("plain"), spec=SPEC).adapted == ("body.0.bias", "body.2.bias")
    semantic = Semantic(look, "body.0")
    assert all(name.startswith("injected.") for name in Tent(build("plain"), semantic=semantic, spec=SPEC).adapted)
    with pytest.raises(ValueError, match="Tent: expected variant to be one of 'official', 'ours'"):
        Tent(build("plain"), variant="published")
