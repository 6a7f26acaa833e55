"""CauSiam on an untouched network equals the released rule on one with the attention built in."""

import copy

import pytest
import torch
import torch.nn.functional as F
from _tiny_clip import save_tiny_clip
from adapters.recipes import look
from adapters.test_siam_ctta_golden import published
from torch import nn

from tta_restore import models
from tta_restore.adapters import CauSiam, CenterCrop, Guards, Semantic
from tta_restore.models import RestorerSpec
from tta_restore.nn import OpenClipEncoder


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.mid = nn.Sequential(nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.up, self.out = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def middle(self, f, context):
        return f

    def forward(self, x, context=None):
        e = F.relu(self.enc(x))
        f = self.middle(self.mid(self.down(e)), context)
        return torch.sigmoid(self.out(F.relu(self.up(F.interpolate(f, scale_factor=2))) + e))


class BuiltIn(Plain):
    """The released form: the attention is part of the network."""

    def __init__(self, plain, layer):
        super().__init__()
        self.load_state_dict(plain.state_dict())
        self.attention = copy.deepcopy(layer).requires_grad_(True)

    def middle(self, f, context):
        return f if context is None else self.attention(f, context)


def make(net, encoder, **options):
    semantic = Semantic(encoder, "mid", num_heads=2, res_scale=0.5, zero_init=False)
    spec = RestorerSpec(size=models.SizeRequirements(multiple_of=2))
    return CauSiam(net, **{"semantic": semantic, "spec": spec, "lr": 1e-2} | options)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("encoder", [look, lambda restored: F.adaptive_avg_pool2d(restored, 2).flatten(1)])
def test_injected_it_equals_the_released_rule_with_the_attention_built_in(steps, encoder):
    torch.manual_seed(0)
    net = Plain()
    adapter = make(net, encoder, steps=steps, restore=0.0, region=CenterCrop(24, min_size=(40, 28)))
    frames = [torch.rand(2, 3, *size) for size in [(32, 40), (24, 32), (24, 28), (48, 26), (24, 28)]]
    builtin = BuiltIn(net, adapter.injection.layers[0])
    expected, student = published(
        builtin, frames, lr=1e-2, restore=0, steps=steps, crop=24, above=(40, 28), masks=torch.ones_like,
        encoder=encoder,
    )  # fmt: skip
    for x, output in zip(frames, expected, strict=True):
        torch.testing.assert_close(adapter(x), output, atol=1e-6, rtol=0)
    for name, tensor in student.items():
        mine = adapter.student[name.replace("attention.", "injected.mid.")]
        torch.testing.assert_close(mine, tensor, atol=2e-6, rtol=0)


@pytest.mark.thorough
def test_sixty_updates_with_the_released_schedule():
    torch.manual_seed(0)
    net = Plain()
    adapter = make(net, look, lr=1e-4, restore=0.0)
    frames = [torch.rand(1, 3, 24, 28) for _ in range(5)]
    builtin = BuiltIn(net, adapter.injection.layers[0])
    expected, student = published(
        builtin, frames * 12, lr=1e-4, restore=0, steps=1, masks=torch.ones_like, encoder=look
    )
    for x, output in zip(frames * 12, expected, strict=True):
        torch.testing.assert_close(adapter(x), output, atol=1e-6, rtol=0)
    for name, tensor in student.items():
        torch.testing.assert_close(
            adapter.student[name.replace("attention.", "injected.mid.")], tensor, atol=2e-7, rtol=0
        )


def test_restoring_everything_brings_the_student_back_and_leaves_the_teacher():
    torch.manual_seed(0)
    adapter = make(Plain(), look, restore=1.0)
    adapter(torch.rand(1, 3, 24, 28))
    source = adapter.source
    assert all(torch.equal(adapter.student[name], source[name]) for name in source)
    assert any(not torch.equal(adapter.teacher[name], source[name]) for name in source)


def test_the_schedule_dies_as_released_and_not_as_repaired():
    adapter = make(Plain(), look)
    assert adapter.learning_rate(126) == pytest.approx(1e-2 * 0.95**126)
    assert len(adapter.views) == 4
    assert adapter.guards == Guards(max_loss_ratio=None, max_drift=None)
    repaired = make(Plain(), look, variant="ours")
    assert repaired.learning_rate(5) == adapter.learning_rate(5)
    assert repaired.learning_rate(1000) == pytest.approx(1e-3)
    assert len(repaired.views) == 5
    assert repaired.guards.max_loss_ratio is not None


@pytest.mark.parametrize(
    ("height", "width", "seen"),
    [
        (1120, 1680, (1120, 1120)),
        (1680, 1120, (1680, 1120)),
        (1088, 1920, (1088, 1120)),
        (1080, 1920, (1072, 1120)),
        (720, 1280, (720, 1120)),
        (640, 1200, (640, 1120)),
        (2160, 3840, (1120, 1120)),
    ],
)
def test_the_released_rule_on_large_frames_without_strips(height, width, seen):
    net = models.create_model("dpdnet_s", width=2)
    adapter = CauSiam(net, semantic=Semantic(look, "conv6"))
    region = adapter.region(torch.empty(1, 3, height, width), net.spec.size)
    assert region.shape[-2:] == seen
    repaired = CauSiam(net, variant="ours", semantic=Semantic(look, "conv6"))
    assert max(repaired.region(torch.empty(1, 3, height, width), net.spec.size).shape[-2:]) <= 1120


def test_on_dpdnet_one_vector_moves_values_and_output_only():
    torch.manual_seed(0)
    net = models.create_model("dpdnet_s", width=4)
    adapter = CauSiam(net, semantic=Semantic(lambda restored: restored.mean((2, 3)), at="auto"), restore=0.0)
    assert adapter.plan().sites == ("conv6",)
    assert adapter.plan().roles == ("student", "teacher")
    x = torch.rand(1, 3, 40, 50)
    for _ in range(3):
        assert adapter(x).shape == x.shape
    moved = {
        name.split(".")[-2] for name, tensor in adapter.student.items() if not torch.equal(tensor, adapter.source[name])
    }
    assert moved == {"to_v", "to_out"}


@pytest.mark.parametrize("output", ["pooled", "patches"])
@pytest.mark.parametrize("variant", ["official", "ours"])
def test_it_reads_frames_with_a_clip_whose_weights_lie_in_a_file(output, variant, tmp_path):
    path, clip = save_tiny_clip(tmp_path)
    torch.manual_seed(0)
    encoder = OpenClipEncoder("tiny-test", path, output=output, variant=variant)
    adapter = make(Plain(), encoder)
    frames = torch.rand(3, 1, 3, 32, 40)
    first = adapter.predict(frames[0])
    for x in frames:
        adapter(x)
    assert adapter.report.updated
    assert not torch.equal(adapter.predict(frames[0]), first)
    assert not any("transformer" in name for name in adapter.state_dict()["tensors"])  # its weights stay where they are
    context = encoder(frames[0])
    assert context.shape == ((1, 1, 24) if output == "pooled" else (1, 16, 64))
    if output == "pooled" and variant == "official":
        with torch.no_grad():
            expected = clip.encode_image(F.interpolate(frames[0], (32, 32), mode="bilinear"))
        torch.testing.assert_close(context[:, 0], expected)
