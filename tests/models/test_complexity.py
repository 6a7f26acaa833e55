"""Counting multiplications: fused ops, biases, activations, and what the papers say of IFAN."""

import pytest
import torch
from _fresh import run_program
from torch.utils.flop_counter import FlopCounterMode

from tta_restore import models, ops
from tta_restore.models.complexity import extrapolate_macs

FRAME = torch.empty(1, 3, 720, 1280, device="meta")
APPLICATION = 128 * 90 * 160 * 17 * 2 * 3  # of filters to features, which the published count leaves out


@pytest.mark.thorough
@pytest.mark.parametrize(("steps", "published"), [(8, 347.9), (17, 362.9), (26, 377.9), (35, 392.9), (44, 407.8)])
def test_ifan_takes_what_its_paper_says(steps, published):
    macs = models.count_macs(models.create_model("ifan", num_steps=steps, device="meta"), FRAME)
    assert (macs.with_additions - APPLICATION * steps / 17) / 1e9 == pytest.approx(published, abs=0.05)


@pytest.mark.thorough
def test_parts_of_ifan():
    macs = models.count_macs(models.create_model("ifan", device="meta").eval(), FRAME)
    convolutions, adaptive = (macs.by_operator[n] for n in ("aten.convolution", "tta_restore.iac_from_features"))
    assert adaptive == 15232 * 128 * 90 * 160 + APPLICATION
    assert (convolutions + adaptive - APPLICATION) / 1e9 == pytest.approx(361.51, abs=0.005)
    assert macs.biases / 1e9 == pytest.approx(0.869, abs=5e-4)
    assert macs.activations / 1e9 == pytest.approx(0.519, abs=5e-4)
    # the released checkpoints' mode never predicts the taps that it does not read
    quirk = models.count_macs(models.create_model("ifan", device="meta", horizontal="vertical"), FRAME)
    assert (macs.total - quirk.total) / 1e9 == pytest.approx(12.03, abs=0.005)
    dual = models.count_macs(models.create_model("ifan_dual", device="meta"), FRAME, FRAME, FRAME)
    assert (dual.with_additions - APPLICATION) / 1e9 == pytest.approx(363.7, abs=0.05)
    assert "multiply-adds" in str(macs)


@pytest.mark.thorough
def test_nothing_of_the_model_is_touched():
    model = models.create_model("ifan", base_channels=4, num_steps=2).train()
    x = torch.rand(1, 3, 16, 16)
    before = model(x)
    assert models.count_macs(model, x).total > 0
    assert torch.equal(model(x), before)
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match="multiples of 8"):
        models.count_macs(model, torch.rand(1, 3, 15, 16))
    assert not any(m._forward_hooks for m in model.modules())


def test_what_a_model_keeps_of_a_pass_is_no_fake():
    class Caching(torch.nn.Module):
        weight = None

        def forward(self, x):
            if self.weight is None:
                self.weight = torch.ones(x.shape[-1])
            return x * self.weight

    model = Caching()
    models.count_macs(model, torch.rand(1, 3, 8, 8))
    assert model.weight is None
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(model(x), x)


def test_inference_mode_counts_the_same():
    model = torch.nn.Linear(5, 7)
    with torch.inference_mode():
        assert models.count_macs(model, torch.empty(2, 3, 5)).total == 210


class Pooled(torch.nn.Module):
    """Convolutions, and a product of all pixels with all others if asked for."""

    def __init__(self, attention):
        super().__init__()
        self.conv, self.gate = torch.nn.Conv2d(3, 3, 3, stride=2, padding=1), torch.nn.Conv2d(3, 3, 1)
        self.act, self.attention = torch.nn.ReLU(), attention

    def forward(self, x):
        half = self.act(self.conv(x))
        half = half * self.gate(half.mean((2, 3), keepdim=True))
        if self.attention:
            half = (half.flatten(2).mT @ half.flatten(2) @ half.flatten(2).mT).mT.reshape(half.shape)
        return x + torch.nn.functional.interpolate(half, scale_factor=2)


def squares(*sides):
    return [torch.rand(1, 3, side, side) for side in sides], sides


def test_counts_of_convolutions_without_padding():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 3))
    assert extrapolate_macs(model, *squares(8, 9, 12, 20), (720, 1280)) == models.count_macs(model, FRAME)


class Padded(torch.nn.Conv2d):
    def __init__(self, multiple):
        super().__init__(3, 3, 3, padding=1)
        self.multiple = multiple

    def forward(self, x):
        height, width = x.shape[-2:]
        padded = torch.nn.functional.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        return super().forward(padded)[..., :height, :width]


@pytest.mark.parametrize(("multiple", "exact"), [(8, True), (16, True), (32, False), (64, False), (128, False)])
def test_counts_of_models_that_pad_frames(multiple, exact):
    model = Padded(multiple)
    found = extrapolate_macs(model, *squares(16, 32, 48, 64), (720, 1280))
    assert found == (models.count_macs(model, FRAME) if exact else None)


@pytest.mark.parametrize("attention", [False, True])
def test_counts_of_small_frames_give_that_of_a_large_one(attention):
    model = Pooled(attention)
    found = extrapolate_macs(model, *squares(24, 26, 28, 32), (720, 1280))
    assert found == (None if attention else models.count_macs(model, FRAME))
    assert not any(m._forward_hooks for m in model.modules())


def test_counting_within_passes_does_not_import_the_compiler():
    program = """
import sys, torch
from tta_restore.models.complexity import Operators
with Operators() as operators:
    torch.nn.Conv2d(3, 8, 3, padding=1)(torch.rand(1, 3, 10, 10))
print(operators.macs, operators.biases, "torch._dynamo" in sys.modules)
"""
    assert run_program(program).stdout == "{'aten.convolution': 21600} 800 False\n"


def test_only_modules_are_counted():
    with pytest.raises(TypeError, match="count_macs: expected model to be a torch.nn.Module, got function"):
        models.count_macs(lambda x: x, torch.rand(1, 3, 8, 8))


def test_linear_layers_and_activations():
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU())
    macs = models.count_macs(model, torch.empty(2, 5))
    assert (macs.total, macs.biases, macs.activations) == (70, 14, 14)


class TestFormulas:
    """Operations of the registered ops, as torch's own counter sees them, forward and backward."""

    def count(self, call, *tensors):
        with FlopCounterMode(display=False) as forward:
            out = call(*tensors)
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        return forward.get_total_flops(), backward.get_total_flops()

    def rand(self, *shape):
        return torch.rand(shape, requires_grad=True)

    def test_sac_and_iac(self):
        x, taps, filters = self.rand(2, 3, 4, 5), self.rand(2, 9, 4, 5), self.rand(2, 42, 4, 5)
        size = 2 * 3 * 4 * 5
        assert self.count(ops.sac, x, taps, taps) == (size * 12, size * 24)
        assert self.count(lambda *a: ops.iac(*a, num_steps=2), x, filters) == (size * 24, size * 48)
        assert self.count(lambda *a: ops.iac(*a, num_steps=2), x, filters.detach()) == (size * 24, size * 24)

    @pytest.mark.parametrize(("horizontal", "rows"), [("own", 42), ("vertical", 24)])
    def test_iac_from_features(self, horizontal, rows):
        tensors = self.rand(2, 3, 4, 5), self.rand(2, 6, 4, 5), self.rand(42, 6), self.rand(42)

        def call(*tensors):
            return ops.iac_from_features(*tensors, num_steps=2, horizontal=horizontal)

        use, prediction = 2 * 3 * 4 * 5 * 24, 2 * 2 * 6 * 4 * 5 * rows
        assert self.count(call, *tensors) == (use + prediction, 2 * (use + prediction))
        assert self.count(call, *tensors[:2], *(t.detach() for t in tensors[2:])) == (
            use + prediction,
            2 * use + prediction,
        )


def test_ops_run_on_meta_tensors():
    x, features = (torch.empty(1, c, 4, 5, device="meta") for c in (3, 6))
    out = ops.iac_from_features(x, features, *(torch.empty(s, device="meta") for s in ((42, 6), (42,))), num_steps=2)
    assert (out.shape, out.device.type) == ((1, 3, 4, 5), "meta")
    seeds, weights = (torch.empty(1, c, 4, 5, device="meta") for c in (2, 2))
    assert ops.isotropic_reblur(x, seeds, weights, kernel_sizes=(3,)).shape == x.shape


def test_modules_that_pass_their_weights_to_others():
    """DPDNet's upsampling gives its weights to a function with a gradient of its own; torch's counter refused them."""
    network = models.create_model("dpdnet_s", width=2)
    assert next(network.parameters()).requires_grad
    assert models.count_macs(network, torch.empty(1, 3, 64, 64, device="meta")).total > 0
