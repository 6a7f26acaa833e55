"""Tent, CoTTA, SAR and EATA in their literal form against traces of the official rules (shared/golden/causiam)."""

import json
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
    adapter = Tent(net, form="literal", select=NORMS)
    replay(adapter, tensors, settings)
    adapter.reset()
    logits = adapter(tensors["batch/1"])
    torch.testing.assert_close(logits, tensors["output_after_reset/1"], atol=2e-5, rtol=0)


def cotta(net, settings):
    return CoTTA(
        net,
        form="literal",
        views=[(lambda x, k=k: torch.roll(x, k % 8, 3), lambda logits: logits) for k in range(32)],
        ema=float(settings["ema"]),
        restore=float(settings["restore_p"]),
        threshold=float(settings["ap"]),
    )


def test_cotta():
    net, tensors, settings = trace("cotta_rst0")
    adapter = cotta(net, settings)
    # Behind batch statistics a bias has no gradient, and Adam makes steps out of its rounding.
    replay(adapter, tensors, settings, unsettled=("conv1.bias", "layer4.conv.bias"))
    expected = tensors["anchor_prob_mean/5"].item()
    assert adapter.report.extra["anchor"] == pytest.approx(expected, abs=1e-6)


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
    adapter = SAR(net, form="literal", select=["bn1", "block.gn"], lr=0.01)
    replay(adapter, tensors, settings)
    assert tensors["loss_ema"].isnan().all()
    assert adapter.extra["running"] is None
    assert not adapter.report.updated
    assert adapter.report.skipped_because == "no pixel is reliable"


def test_eata():
    net, tensors, settings = trace("eata")
    adapter = EATA(net, form="literal", select=NORMS, redundant=float(settings["d_margin"]))
    assert adapter.margin * torch.log(torch.tensor(10.0)).item() == pytest.approx(float(settings["e_margin"]))
    replay(adapter, tensors, settings)
    assert [adapter.extra["reliable"], adapter.extra["used"]] == tensors["counters"][-1].tolist()
    torch.testing.assert_close(adapter.extra["mean"], tensors["probs_ema"], atol=1e-6, rtol=0)


def test_what_a_classifier_gives_is_not_turned_back_nor_put_together_from_tiles():
    net, tensors, _ = trace("tent")
    batch = tensors["batch/1"]
    for adapter in (SiamCTTA(net, select=NORMS), Tent(net)):
        with pytest.raises(ValueError, match='the model gives no image, .* views="rot4" asks; pass views="identity"'):
            adapter(batch)
    tiled = Tent(net, form="literal", select=NORMS, tiles=Tiles(4, 0))
    with pytest.raises(ValueError, match="the model gives no image that tiles could be put together to"):
        tiled.predict(batch)
    plain = SiamCTTA(net, select=NORMS, views="identity")
    torch.testing.assert_close(plain.predict(batch), net.eval()(batch), atol=1e-6, rtol=0)
    report = models.probe(net, example=batch)
    assert (report.spec.dense, report.output, report.normalization["BatchNorm2d"]) == (False, "tensor", 2)
