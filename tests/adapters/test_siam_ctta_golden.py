"""SiamCTTA against traces of the released update rule (shared/golden/causiam), and against it written out plainly."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from tta_restore.adapters import CauSiam, CenterCrop, Guards, Semantic, SiamCTTA, resolve_views

GOLDEN = Path(__file__).parents[1] / "golden" / "causiam"
ADAPTED = ["attention_norm", "attention.to_*"]


class ToyCrossAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k = nn.Linear(16, 8, bias=False), nn.Linear(12, 8, bias=False)
        self.to_v, self.to_out = nn.Linear(12, 8, bias=False), nn.Linear(8, 16)
        self.temperature = nn.Parameter(torch.tensor([1.5, 0.75]))

    def forward(self, x, context):
        q, k, v = (
            tokens.unflatten(-1, (2, 4)).transpose(1, 2)
            for tokens in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        weights = (q @ k.transpose(-1, -2) * 4**-0.5 * self.temperature.view(1, 2, 1, 1)).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(-2))


class ToyRestorer(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.attention_norm, self.attention = nn.GroupNorm(4, 16), ToyCrossAttention()
        self.up, self.out = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, context=None):
        e = F.relu(self.enc(x))
        f = F.relu(self.down(e))
        if context is not None:
            context = context[:, None] if context.dim() == 2 else context
            tokens = self.attention_norm(f).flatten(2).transpose(1, 2)
            f = 0.05 * self.attention(tokens, context).transpose(1, 2).reshape(f.shape) + f
        d = F.relu(self.up(F.interpolate(f, scale_factor=2, mode="nearest"))) + e
        return torch.sigmoid(self.out(d))


def trace(name):
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.mark.parametrize("method", [SiamCTTA, CauSiam])
@pytest.mark.parametrize(
    "name", ["causiam_single_rst0", "causiam_tokens_rst0", "causiam_single_rst1", "causiam_tokens_k2_lr1e2"]
)
def test_the_released_traces_are_reproduced(name, method):
    tensors, settings = trace(name)
    net = ToyRestorer()
    net.load_state_dict(part(tensors, "source/"))
    seen = []

    def encoder(restored):
        seen.append(restored)
        return tensors[f"context/{len(seen)}"]

    adapter = method(  # what is not said is the default
        net,
        select=ADAPTED,
        semantic=Semantic(encoder, argument="context"),
        lr=float(settings["lr0"]),
        restore=float(settings["restore_p"]),
        steps=int(settings["steps_per_frame"]),
    )
    assert (adapter.lr_decay, adapter.ema) == (float(settings["gamma"]), float(settings["ema"]))
    assert sorted(adapter.adapted) == sorted(json.loads(settings["adapted_params"]))
    for i in range(1, 6):
        output = adapter(tensors[f"frame/{i}"])
        torch.testing.assert_close(seen[-1], tensors[f"source_out/{i}"], atol=1e-6, rtol=0)
        torch.testing.assert_close(output, tensors[f"output/{i}"], atol=1e-6, rtol=0)
        for role in ("student", "teacher"):
            for key, value in part(tensors, f"{role}/{i}/").items():
                if key in adapter.adapted:
                    torch.testing.assert_close(adapter.state.sets[role][key].detach(), value, atol=1e-6, rtol=0)
    if name == "causiam_single_rst0":  # one token: what asks and is asked for gets no gradient, to the last bit
        for key in ("attention_norm.weight", "attention.to_q.weight", "attention.to_k.weight"):
            assert torch.equal(adapter.student[key], adapter.source[key])
            assert torch.equal(adapter.teacher[key], adapter.source[key])  # 0.9 a + 0.1 a would not be a
    assert len(seen) == 5  # the source never changes: its context is computed once for a frame
    assert adapter.report.learning_rate == pytest.approx(tensors["lr"][-1].item(), rel=1e-9)
    if "grad/1/attention.to_q.weight" in tensors:
        expected = part(tensors, "grad/1/")
        fresh = adapter.fork()
        fresh.reset()
        seen.clear()
        assert fresh.adapt(tensors["frame/1"]).grad_norm == pytest.approx(
            torch.stack([value.norm() for value in expected.values()]).norm().item(), rel=1e-4
        )


def test_views_turn_as_released():
    tensors, _ = trace("views_tiny")
    for k, (there, back) in enumerate(resolve_views("rot4")):
        assert torch.equal(there(tensors["x"]), tensors[f"fwd/{k}"])
        assert torch.equal(back(there(tensors["x"])), tensors["x"])


def published(net, frames, *, lr, restore, steps, masks, crop=None, above=None, encoder=None):
    """The published rule written out on whole copies of the network: what the recipe must equal."""
    import copy

    source, student, teacher = net, copy.deepcopy(net), copy.deepcopy(net)
    names = [name for name, _ in net.named_parameters() if name.startswith("attention") and "temperature" not in name]
    trained = [student.get_parameter(name) for name in names]
    adam = torch.optim.Adam(trained, lr=lr)
    schedule = torch.optim.lr_scheduler.StepLR(adam, 1, 0.95)
    outputs = []

    def ensemble(x, context):
        return torch.stack([
            torch.rot90(teacher(torch.rot90(x, k, (2, 3)), context), -k, (2, 3)) for k in range(4)
        ]).mean(0)  # fmt: skip

    for x in frames:
        big = crop is not None and (x.shape[2] > above[0] or x.shape[3] > above[1])
        top, left = int((x.shape[2] - (crop or 0)) / 2), int((x.shape[3] - (crop or 0)) / 2)
        seen = x[:, :, top : top + crop, left : left + crop] if big else x
        for _ in range(steps):
            with torch.no_grad():
                restored = source(seen)
                context = encoder(restored) if encoder else F.adaptive_avg_pool2d(restored, 2).flatten(1)
                target = ensemble(seen, context)
            adam.zero_grad()
            (target - student(seen, context)).abs().mean().backward()
            adam.step()
            schedule.step()
            with torch.no_grad():
                for name, new in zip(names, trained, strict=True):  # of the others the release lets roundings wander
                    old = teacher.get_parameter(name)
                    old.copy_(0.9 * old + 0.1 * new)
                for name, tensor in zip(names, trained, strict=True):
                    mask = masks(tensor) < restore
                    tensor.copy_(torch.where(mask, source.get_parameter(name), tensor))
        with torch.no_grad():
            outputs.append(ensemble(x, context) if big else target)
    return outputs, {name: student.get_parameter(name) for name in names}


@pytest.mark.parametrize(("steps", "restore"), [(1, 0.3), (2, 0.0)])
def test_large_frames_batches_and_masks_follow_the_rule_written_out(steps, restore):
    torch.manual_seed(0)
    net = ToyRestorer()
    sizes = [(32, 40), (24, 32), (48, 26), (24, 28), (32, 40)]  # large, large by width, large by height, small, large
    frames = [torch.rand(2, 3, *size) for size in sizes]
    adapter = SiamCTTA(
        net,
        select=ADAPTED,
        semantic=Semantic(lambda restored: F.adaptive_avg_pool2d(restored, 2).flatten(1), argument="context"),
        lr=1e-2,
        restore=restore,
        steps=steps,
        region=CenterCrop(24, min_size=(40, 28)),
        guards=Guards(max_loss_ratio=None, max_drift=None),
    )
    # Masks of one number for all scalars: the rule asks for independent ones, but not which.
    drawn = iter([[0.1, 0.5, 0.2, 0.9, 0.25, 0.6, 0.7][i % 7] for i in range(1000)])
    replayed = iter([[0.1, 0.5, 0.2, 0.9, 0.25, 0.6, 0.7][i % 7] for i in range(1000)])

    def stochastic_restore(probability):
        for name, tensor in adapter.student.items():
            if next(drawn) < probability:
                with torch.no_grad():
                    tensor.copy_(adapter.source[name])

    adapter.stochastic_restore = stochastic_restore
    expected, student = published(
        net, frames, lr=1e-2, restore=restore, steps=steps, crop=24, above=(40, 28),
        masks=lambda tensor: torch.full_like(tensor, next(replayed)),
    )  # fmt: skip
    for x, output in zip(frames, expected, strict=True):
        torch.testing.assert_close(adapter(x), output, atol=1e-6, rtol=0)
    for name, tensor in student.items():
        torch.testing.assert_close(adapter.student[name], tensor, atol=2e-6, rtol=0)
