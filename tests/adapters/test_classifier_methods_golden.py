"""Tent, CoTTA, SAR and EATA in their literal form against traces of the official rules (shared/golden/causiam)."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from tta_restore import models
from tta_restore.adapters import EATA, SAR, CoTTA, SiamCTTA, Tent, Tiles

GOLDEN = Path(__file__).parents[1] / "golden" / "causiam"
NORMS = ["bn1", "layer4.bn"]


def branch(**parts):
    return nn.ModuleDict(parts)


class Classifier(nn.Module):
    """The recorded classifier, of pictures of 8 x 8 pixels."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.block = branch(conv=nn.Conv2d(8, 8, 3, padding=1), gn=nn.GroupNorm(2, 8))
        self.layer4 = branch(conv=nn.Conv2d(8, 8, 1), bn=nn.BatchNorm2d(8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)))
        h = h + F.relu(self.block["gn"](self.block["conv"](h)))
        h = F.relu(self.layer4["bn"](self.layer4["conv"](h))).mean((2, 3))
        return self.head(self.norm(h))


def trace(name):
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        settings = file.metadata()
    net = Classifier()
    weights = {key.removeprefix("source/"): value for key, value in tensors.items() if key.startswith("source/")}
    net.load_state_dict(weights, strict=False)
    return net, tensors, settings


def replay(adapter, tensors, settings, unsettled=()):
    """Five batches; outputs, adapted weights of both roles, and that nothing else was adapted."""
    assert sorted(adapter.adapted) == sorted(json.loads(settings["adapted_params"]))
    for i in range(1, 6):
        logits = adapter(tensors[f"batch/{i}"])
        torch.testing.assert_close(logits, tensors[f"output/{i}"], atol=2e-5, rtol=0)
        for role in adapter.roles:
            for name, tensor in adapter.state.sets[role].items():
                expected = tensors.get(f"{role}/{i}/{name}")
                if expected is not None and name not in unsettled:
                    torch.testing.assert_close(tensor.detach(), expected, atol=2e-6, rtol=0)


def test_tent():
    net, tensors, settings = trace("tent")
    adapter = Tent(net, variant="official", select=NORMS)
    replay(adapter, tensors, settings)
    adapter.reset()
    logits = adapter(tensors["batch/1"])
    torch.testing.assert_close(logits, tensors["output_after_reset/1"], atol=2e-5, rtol=0)


def cotta(net, settings):
    return CoTTA(
        net,
        variant="official",
        views=[(lambda x, k=k: torch.roll(x, k % 8, 3), lambda logits: logits) for k in range(32)],
        ema=float(settings["ema"]),
        restore=float(settings["restore_p"]),
        confidence_threshold=float(settings["ap"]),
    )


def test_cotta():
    net, tensors, settings = trace("cotta_rst0")
    adapter = cotta(net, settings)
    # Behind batch statistics a bias has no gradient, and Adam makes steps out of its rounding.
    replay(adapter, tensors, settings, unsettled=("conv1.bias", "layer4.conv.bias"))
    expected = tensors["anchor_prob_mean/5"].item()
    assert adapter.report.metrics["anchor"] == pytest.approx(expected, abs=1e-6)


def test_cotta_where_the_source_is_sure_takes_the_teachers_plain_output():
    net, tensors, settings = trace("cotta_noaug_ap0")
    adapter = cotta(net, settings)
    logits = adapter(tensors["batch/1"])
    torch.testing.assert_close(logits, tensors["output/1"], atol=2e-5, rtol=0)
    # Student and teacher are still one: the gradient is zero but for rounding, out of which Adam makes steps of its
    # learning rate. The rest of the trace is that rounding, on the machine that recorded it.
    assert adapter.report.grad_norm < 1e-5
    for name, source in adapter.source.items():
        recorded = tensors[f"student/1/{name}"]
        assert (recorded - source).abs().max() < 1.001e-3
        expected = source.lerp(recorded, 0.1)
        torch.testing.assert_close(tensors[f"teacher/1/{name}"], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(
            adapter.teacher[name], source.lerp(adapter.student[name], 0.1).detach(), atol=1e-7, rtol=0
        )


def test_sar_without_a_reliable_sample():
    net, tensors, settings = trace("sar_none_reliable")
    adapter = SAR(net, variant="official", select=["bn1", "block.gn"], lr=0.01)
    replay(adapter, tensors, settings)
    assert tensors["loss_ema"].isnan().all()
    assert adapter.memory["running"] is None
    assert not adapter.report.updated
    assert adapter.report.skipped_because == "no pixel is reliable"


def test_eata():
    net, tensors, settings = trace("eata")
    adapter = EATA(net, variant="official", select=NORMS, max_similarity=float(settings["d_margin"]))
    assert adapter.entropy_margin * torch.log(torch.tensor(10.0)).item() == pytest.approx(float(settings["e_margin"]))
    replay(adapter, tensors, settings)
    assert [adapter.memory["reliable"], adapter.memory["used"]] == tensors["counters"][-1].tolist()
    torch.testing.assert_close(adapter.memory["mean"], tensors["probs_ema"], atol=1e-6, rtol=0)


def test_what_a_classifier_gives_is_not_turned_back_nor_put_together_from_tiles():
    net, tensors, _ = trace("tent")
    batch = tensors["batch/1"]
    for adapter in (SiamCTTA(net, select=NORMS), Tent(net)):
        with pytest.raises(ValueError, match='the model gives no image, .* views="rot4" asks; pass views="identity"'):
            adapter(batch)
    tiled = Tent(net, variant="official", select=NORMS, tiles=Tiles(4, 0))
    with pytest.raises(ValueError, match="the model gives no image that tiles could be put together to"):
        tiled.predict(batch)
    plain = SiamCTTA(net, select=NORMS, views="identity")
    torch.testing.assert_close(plain.predict(batch), net.eval()(batch), atol=1e-6, rtol=0)
    report = models.probe(net, example=batch)
    assert (report.spec.dense, report.output, report.normalization["BatchNorm2d"]) == (False, "tensor", 2)


def entropy_of(logits, target=None):
    logarithm = logits.log_softmax(1)
    return -((logarithm.exp() if target is None else target.softmax(1)) * logarithm).sum(1)


def whole_copy(net, select):
    """A whole copy of the network in train mode, and its adapted weights by name."""
    copied = copy.deepcopy(net).train()
    return copied, {n: p for n, p in copied.named_parameters() if any(n.startswith(start) for start in select)}


def agree(adapter, weights):
    for name, weight in weights.items():
        if name not in ("conv1.bias", "layer4.conv.bias"):
            torch.testing.assert_close(adapter.student[name].detach(), weight.detach(), atol=2e-6, rtol=0, msg=name)


def test_sar_written_out():
    """Samples reliable at both points, momentum, and a fresh start when the running second loss is small."""
    net, tensors, _ = trace("eata")
    net.head.weight.data *= 1.5  # surer, so that there are reliable samples and others
    select, margin = ["bn1", "block.gn"], 0.4 * math.log(10)
    theirs, weights = whole_copy(net, select)
    source = {name: weight.detach().clone() for name, weight in weights.items()}
    sgd = torch.optim.SGD(weights.values(), lr=0.01, momentum=0.9)
    adapter = SAR(net, variant="official", select=select, lr=0.01, reset_threshold=0.55)
    running, counts, restarts = None, [], 0
    for i in range(10):
        batch = tensors[f"batch/{i % 5 + 1}"]
        logits = adapter(batch)
        expected = theirs(batch)
        torch.testing.assert_close(logits, expected.detach(), atol=2e-5, rtol=0)
        first = entropy_of(expected)
        reliable = first < margin
        found = torch.autograd.grad(first[reliable].mean(), list(weights.values()))
        norm = torch.cat([gradient.flatten() for gradient in found]).norm()
        with torch.no_grad():
            for weight, gradient in zip(weights.values(), found, strict=True):
                weight += 0.05 / (norm + 1e-12) * gradient
        second = entropy_of(theirs(batch))[reliable]
        second = second[second < margin].mean()
        gradients = torch.autograd.grad(second, list(weights.values()))
        with torch.no_grad():
            for weight, gradient, up in zip(weights.values(), gradients, found, strict=True):
                weight -= 0.05 / (norm + 1e-12) * up
                weight.grad = gradient
        sgd.step()
        running = second.item() if running is None else 0.9 * running + 0.1 * second.item()
        counts.append(int(reliable.sum()))
        if running < 0.55:
            restarts, running = restarts + 1, None
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(source[name])
            sgd = torch.optim.SGD(weights.values(), lr=0.01, momentum=0.9)
        agree(adapter, weights)
    assert 0 < min(counts) < 8
    assert 0 < restarts < 10


def test_eata_with_fisher_written_out():
    net, tensors, _ = trace("eata")
    net.head.weight.data *= 8
    margin = 0.4 * math.log(10)
    theirs, weights = whole_copy(net, NORMS)
    source = {name: weight.detach().clone() for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(0)
    fisher = {name: torch.rand(weight.shape, generator=generator) for name, weight in weights.items()}
    sgd = torch.optim.SGD(weights.values(), lr=1e-3, momentum=0.9)
    adapter = EATA(net, variant="official", select=NORMS, max_similarity=0.9, fisher=fisher)
    mean, counters = None, [0, 0]
    for i in range(10):
        batch = tensors[f"batch/{i % 5 + 1}"]
        logits = adapter(batch)
        expected = theirs(batch)
        torch.testing.assert_close(logits, expected.detach(), atol=2e-5, rtol=0)
        uncertainty, probability = entropy_of(expected), expected.detach().softmax(1)
        used = uncertainty < margin
        counters[0] += int(used.sum())
        if mean is not None:
            used &= F.cosine_similarity(mean[None], probability).abs() < 0.9
        counters[1] += int(used.sum())
        if not used.any():
            continue
        now = probability[used].mean(0)
        mean = now if mean is None else 0.9 * mean + 0.1 * now
        loss = (uncertainty * (margin - uncertainty.detach()).exp())[used].mean()
        pulls = (fisher[name] * (weight - source[name]) ** 2 for name, weight in weights.items())
        loss = loss + 2000 * sum(pull.sum() for pull in pulls)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        agree(adapter, weights)
    assert [adapter.memory["reliable"], adapter.memory["used"]] == counters
    assert 0 < counters[1] < counters[0] < 80


def test_two_steps_of_tent_and_a_full_restore_of_cotta_written_out():
    net, tensors, _ = trace("tent")
    theirs, weights = whole_copy(net, NORMS)
    adam = torch.optim.Adam(weights.values(), lr=1e-3)
    adapter = Tent(net, variant="official", select=NORMS, steps=2)
    slow = cotta(net, {"ema": "0.9", "restore_p": "1", "ap": "0.92"})
    student, all_weights = whole_copy(net, [""])
    teacher = copy.deepcopy(student)
    other = torch.optim.Adam(all_weights.values(), lr=1e-3)
    for i in range(1, 6):
        batch = tensors[f"batch/{i}"]
        logits = adapter(batch)
        for _ in range(2):
            expected = theirs(batch)
            adam.zero_grad()
            entropy_of(expected).mean().backward()
            adam.step()
        torch.testing.assert_close(logits, expected.detach(), atol=2e-5, rtol=0)
        agree(adapter, weights)
        logits = slow(batch)
        with torch.no_grad():
            expected = torch.stack([teacher(torch.roll(batch, k % 8, 3)) for k in range(32)]).mean(0)
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)
        other.zero_grad()
        entropy_of(student(batch), expected).mean().backward()
        other.step()
        with torch.no_grad():
            for name, weight in student.named_parameters():
                teacher.get_parameter(name).lerp_(weight, 0.1)
                weight.copy_(net.get_parameter(name))
        agree(slow, all_weights)
        for name, weight in teacher.named_parameters():
            if name not in ("conv1.bias", "layer4.conv.bias"):
                torch.testing.assert_close(slow.teacher[name], weight, atol=2e-6, rtol=0, msg=name)
