"""RoTTA's memory bank, its schedule and its loss."""

import math

import pytest
import torch
from adapters.zoo import build, frames

from tta_restore.adapters import RoTTA
from tta_restore.models import RestorerSpec

SPEC = RestorerSpec()


def test_a_step_every_interval_towards_the_teacher_and_its_output_before_the_update():
    stream = frames("plain", 4)
    net = build("plain")
    adapter = RoTTA(net, select="all", capacity=4, interval=2, patch_size=16, views="identity", ema=0.75, spec=SPEC)
    first = adapter(stream[0])
    with torch.no_grad():
        torch.testing.assert_close(first, net(stream[0]))
    updated = [adapter.report.updated]
    for x in stream[1:]:
        before = {name: tensor.clone() for name, tensor in adapter.teacher.items()}
        adapter(x)
        updated.append(adapter.report.updated)
        if adapter.report.updated:
            for name, tensor in adapter.teacher.items():
                torch.testing.assert_close(tensor, 0.75 * before[name] + 0.25 * adapter.student[name])
    assert updated == [False, True, False, True]
    assert [item["age"] for item in adapter.memory["bank"]] == [4, 3, 2, 1]
    assert all(item["patch"].shape[-2:] == (16, 16) for item in adapter.memory["bank"])


def adapter_with(items, capacity, variant="ours"):
    """An adapter whose bank holds items (category, age, uncertainty), and a way to insert another one."""
    adapter = RoTTA(build("plain"), variant=variant, capacity=capacity, spec=SPEC)
    bank = [{"patch": torch.full((1, 3, 4, 4), float(i)), "age": a, "category": c, "uncertainty": u}
            for i, (c, a, u) in enumerate(items)]  # fmt: skip
    adapter._state = adapter.state
    adapter.state.memory["bank"] = bank

    def insert(category, uncertainty):
        adapter._judge = lambda patch: (category, uncertainty)
        adapter._insert(torch.full((1, 3, 4, 4), -1.0))
        return [(int(item["patch"][0, 0, 0, 0]), item["age"]) for item in adapter.memory["bank"]]

    return insert


def test_a_full_bank_drops_what_is_old_and_uncertain():
    insert = adapter_with([(0, 8, 0.1), (0, 2, 0.1), (0, 2, 0.9)], capacity=3)
    assert insert(0, 0.5) == [(0, 9), (1, 3), (-1, 1)]  # the score of the third, 0.66 + 0.9, is the largest
    insert = adapter_with([(0, 8, 0.1), (0, 2, 0.1), (0, 2, 0.2)], capacity=3)
    assert insert(0, 0.2) == [(1, 3), (2, 3), (-1, 1)]  # the oldest: 0.94 + 0.1
    assert insert(0, 1.0) == [(1, 4), (2, 4), (-1, 2)]  # itself worse than any: not taken


def test_the_official_bank_is_balanced_over_channels():
    insert = adapter_with([(0, 3, 0.9), (0, 2, 0.1), (1, 9, 0.9)], capacity=6, variant="official")
    assert insert(0, 0.2) == [(1, 3), (2, 10), (-1, 1)]  # its channel is full: the worst of the channel goes
    assert insert(2, 0.9)[-1] == (-1, 1)  # another channel has room
    insert = adapter_with([(0, 1, 0.1)] * 3 + [(1, 9, 0.9)], capacity=4, variant="official")
    assert [place for place, _ in insert(2, 0.1)] == [1, 2, 3, -1]  # full: one of the largest channel goes


def test_the_loss_is_weighted_by_age():
    adapter = RoTTA(build("plain"), select="all", capacity=2, interval=1, patch_size=99, views="identity",
                    noise_std=0.0, lr=0.0, spec=SPEC)  # fmt: skip
    adapter._distance = lambda patch: adapter.student["body.0.bias"].sum() * 0 + patch.mean()
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    adapter(x)
    weight = math.exp(-0.5) / (1 + math.exp(-0.5))  # of age 1
    assert adapter.report.loss == pytest.approx(weight * float(x.mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "mine"}, "RoTTA: expected variant to be one of"),
        ({"capacity": 0}, "RoTTA: expected capacity to be"),
        ({"ema": 1.5}, "RoTTA: expected ema to be a number in"),
        ({"noise_std": -1}, "RoTTA: expected noise_std to be"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        RoTTA(build("plain"), spec=SPEC, **options)
