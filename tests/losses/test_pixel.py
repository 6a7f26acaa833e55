"""Losses between an image and its target: recorded values, and by hand."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from _base import Bad, LossTests, Sample, random
from safetensors.torch import load_file

from tta_restore import losses
from tta_restore.losses.pixel import _laplacian

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def recorded():
    return load_file(GOLDEN / "meta/losses.safetensors")


class TestCharbonnierLoss(LossTests):
    op = losses.charbonnier_loss
    module = losses.CharbonnierLoss
    jvp = "right"

    def samples(self, generator):
        pair = [random(2, 3, 4, 5, generator=generator) for _ in range(2)]
        return [Sample(tuple(pair)), Sample(tuple(pair), {"eps": 0.1})]

    def bad(self):
        image = torch.zeros(1, 3, 4, 4)
        return [
            Bad((image, image[..., 1:]), ValueError, r"expected target of shape .*\(1, 3, 4, 4\), got \(1, 3, 4, 3\)"),
            Bad((image, image.byte()), TypeError, "expected target with a floating dtype"),
            Bad((image, 0.5), TypeError, "got float"),
            Bad((image, image), ValueError, "eps to be a number > 0, got 0", {"eps": 0}),
        ]

    def equal(self, generator):
        image = random(1, 3, 4, 4, generator=generator)
        return Sample((image, image.clone()))


class TestEdgeLoss(LossTests):
    op = losses.edge_loss
    module = losses.EdgeLoss
    jvp = "right"

    def samples(self, generator):
        small, pair = (
            tuple(random(*shape, generator=generator) for _ in "ab") for shape in ((1, 1, 2, 3), (2, 3, 5, 4))
        )
        return [Sample(small), Sample(pair, {"eps": 0.1})]  # few details are as equal as the default eps

    def bad(self):
        image = torch.zeros(1, 3, 4, 4)
        return [
            Bad((image[0], image[0]), ValueError, r"restored of shape \(B, C, H, W\), got \(3, 4, 4\)"),
            Bad((image, image[..., 1:]), ValueError, r"expected target of shape .*\(1, 3, 4, 4\), got \(1, 3, 4, 3\)"),
            Bad((image, image.byte()), TypeError, "expected target with a floating dtype"),
            Bad((image, image), ValueError, "eps to be a number > 0, got 0", {"eps": 0}),
        ]

    def equal(self, generator):
        image = random(1, 3, 4, 4, generator=generator)
        return Sample((image, image.clone()))


class Pair(LossTests):
    def samples(self, generator):
        pair = random(1, 1, 3, 4, generator=generator), random(1, 1, 3, 4, generator=generator)
        return [Sample(pair, options) for options in self.settings]

    def bad(self):
        image = torch.zeros(1, 3, 4, 4)
        return [
            Bad((image, image[..., 1:]), ValueError, "expected target of shape"),
            Bad((image[0], image[0]), ValueError, r"expected restored of shape \(B, C, H, W\)"),
            Bad((image, image.byte()), TypeError, "floating dtype"),
        ]


class TestCharbonnierEdgeLoss(Pair):
    op = losses.charbonnier_edge_loss
    module = losses.CharbonnierEdgeLoss
    jvp = "right"
    settings = ({"eps": 0.1}, {"edge_weight": 0.5})

    def bad(self):
        image = torch.zeros(1, 3, 4, 4)
        return [*super().bad(), Bad((image, image), ValueError, "eps to be a number > 0, got -1", {"eps": -1})]

    def equal(self, generator):
        image = random(1, 3, 5, 4, generator=generator)
        return Sample((image, image.clone()))


@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex operators")
class TestL1FourierLoss(Pair):
    op = losses.l1_fourier_loss
    module = losses.L1FourierLoss
    jvp = "right"
    per_pixel = False
    settings = ({}, {"axes": "width", "fourier_weight": 0.5})

    def bad(self):
        image = torch.zeros(1, 3, 4, 4)
        return [*super().bad(), Bad((image, image), ValueError, "axes to be one of 'width', 'both'", {"axes": 1})]

    def equal(self, generator):
        image = random(1, 3, 5, 4, generator=generator)
        return Sample((image, image.clone()))


def test_known_values():
    target = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    restored = torch.tensor([3e-3, -0.4], dtype=torch.float64).view(1, 1, 1, 2)
    expected = ((9e-6 + 16e-6) ** 0.5 + (0.16 + 16e-6) ** 0.5) / 2
    assert losses.charbonnier_loss(restored, target, eps=4e-3).item() == pytest.approx(expected, rel=1e-12)
    assert losses.charbonnier_loss(target, target).item() == pytest.approx(1e-3)
    assert repr(losses.CharbonnierLoss(eps=0.5)) == "CharbonnierLoss(eps=0.5, reduction='mean')"


@pytest.mark.parametrize("case", ["equal", "odd", "rand", "small"])
def test_recorded_charbonnier(case):
    recorded = load_file(GOLDEN / "jdrl/f_losses.safetensors")
    x = recorded[f"{case}.x"].requires_grad_()
    loss = losses.charbonnier_loss(x, recorded[f"{case}.y"])
    torch.testing.assert_close(loss, recorded[f"{case}.charbonnier"], atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], recorded[f"{case}.grad_x"], atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("case", ["equal", "odd", "rand", "small"])
def test_recorded_edge(case):
    recorded = load_file(GOLDEN / "jdrl/f_losses.safetensors")
    x = recorded[f"{case}.x"].requires_grad_()
    loss = losses.edge_loss(x, recorded[f"{case}.y"])
    torch.testing.assert_close(loss, recorded[f"{case}.edge"], atol=1e-7, rtol=2e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], recorded[f"{case}.edge_grad_x"], atol=1e-6, rtol=1e-4)


def test_smooth_differences_have_no_edge():
    image, ramp = torch.rand(1, 3, 24, 24, dtype=torch.float64), torch.linspace(0, 0.2, 24, dtype=torch.float64)
    detail = _laplacian(image + ramp) - _laplacian(image)
    assert detail[..., 6:-6, 6:-6].abs().max() < 1e-12
    assert _laplacian(image).abs().mean() > 0.1


def test_recorded_losses_of_the_deblurrers(recorded):
    a, b = recorded["a"].requires_grad_(), recorded["b"]
    released = {"axes": "width"}
    for name, value in (
        ("charbonnier_eps1e-3", losses.charbonnier_loss(a, b)),
        ("charbonnier_eps1e-1", losses.charbonnier_loss(a, b, eps=0.1)),
        ("edge_only", losses.edge_loss(a, b)),
        ("mprnet_charb_plus_edge", losses.charbonnier_edge_loss(a, b)),
        ("reblur_loss", losses.charbonnier_edge_loss(a, b)),
        ("mimo_single_scale", losses.l1_fourier_loss(a, b, **released)),
        ("mimo_fft_l1", 10 * (losses.l1_fourier_loss(a, b, **released) - recorded["l1"])),
        ("deblur_mprnet_3stages", over(["a", "mpr_out1", "mpr_out2"], recorded, losses.charbonnier_edge_loss)),
        (
            "deblur_mimo_3scales",
            over(["mimo_out0", "mimo_out1", "mimo_out2"], recorded, losses.L1FourierLoss(**released)),
        ),
        ("deblur_restormer", losses.multi_output_loss([a], b)),
        ("deblur_mtrnn", losses.multi_output_loss([a], b)),
    ):
        assert value.item() == pytest.approx(recorded[name].item(), abs=1e-6, rel=1e-6), name
    gradients = {
        "grad_mprnet_single_wrt_a": losses.charbonnier_edge_loss(a, b),
        "grad_mimo_single_wrt_a": losses.l1_fourier_loss(a, b, **released),
    }
    for name, value in gradients.items():
        torch.testing.assert_close(torch.autograd.grad(value, a)[0], recorded[name], atol=1e-6, rtol=1e-5)


def over(names, recorded, distance):
    return losses.multi_output_loss([recorded[name] for name in names], recorded["b"], distance=distance)


def test_the_laplacian_is_the_recorded_one(recorded):
    torch.testing.assert_close(_laplacian(recorded["a"]), recorded["mprnet_laplacian_of_a"], atol=1e-6, rtol=0)


def test_targets_of_scales_are_the_recorded_ones(recorded):
    seen = []
    losses.multi_output_loss(
        [recorded[f"mimo_out{i}"] for i in range(3)],
        recorded["b"],
        distance=lambda output, target: seen.append(target) or F.l1_loss(output, target),
    )
    for got, name in zip(seen, ("mimo_label0", "mimo_label1", "b"), strict=True):
        torch.testing.assert_close(got, recorded[name], atol=1e-6, rtol=0)


def test_outputs_that_are_no_pictures_are_named():
    with pytest.raises(ValueError, match="at least one output"):
        losses.multi_output_loss([], torch.zeros(1, 3, 4, 4))
    with pytest.raises(
        ValueError, match=r"multi_output_loss: expected outputs\[1\] of shape \(B, C, H, W\), got \(3,\)"
    ):
        losses.multi_output_loss([torch.zeros(1, 3, 4, 4), torch.zeros(3)], torch.zeros(1, 3, 4, 4))


def test_a_sum_over_outputs_is_what_the_module_gives():
    outputs, target = [torch.rand(1, 3, 4, 4), torch.rand(1, 3, 2, 2)], torch.rand(1, 3, 4, 4)
    total = losses.MultiOutputLoss(distance=losses.charbonnier_loss, reduction="sum")(outputs, target)
    small = F.interpolate(target, size=(2, 2), mode="bilinear")
    expected = losses.charbonnier_loss(outputs[0], target, reduction="sum")
    torch.testing.assert_close(total, expected + losses.charbonnier_loss(outputs[1], small, reduction="sum"))
    with pytest.raises(
        ValueError, match="multi_output_loss: expected reduction to be one of 'mean', 'sum', got 'none'"
    ):
        losses.multi_output_loss(outputs, target, reduction="none")
