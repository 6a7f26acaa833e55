"""Adversarial, cycle and detail losses: against recorded values, and by hand."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from _base import Bad, LossTests, Sample, random
from safetensors.torch import load_file

from tta_restore import losses

GOLDEN = Path(__file__).parents[1] / "golden/meta"


@pytest.fixture(scope="module")
def recorded():
    return load_file(GOLDEN / "losses.safetensors")


class TestAdversarial(LossTests):
    op = losses.adversarial
    module = losses.Adversarial
    jvp = "right"

    def samples(self, generator):
        scores = random(2, 1, 3, 4, generator=generator, low=0.2)
        return [Sample((scores,), {"kind": kind}) for kind in ("least_squares", "wasserstein")]

    def bad(self):
        return [
            Bad(
                (torch.zeros(2, 1),), ValueError, "kind to be one of 'wasserstein', 'least_squares'", {"kind": "hinge"}
            ),
            Bad((0.5,), TypeError, "got float"),
        ]

    def equal(self, generator):
        return Sample((torch.ones(2, 1, dtype=torch.float64),), {"kind": "least_squares"})


class TestCritic(LossTests):
    op = losses.critic
    module = losses.Critic
    jvp = "right"

    def samples(self, generator):
        scores = random(2, 1, 3, 4, generator=generator, low=2, high=3), random(1, 1, 5, generator=generator, low=0.1)
        return [Sample(scores, {"kind": kind}) for kind in ("least_squares", "wasserstein")]

    def bad(self):
        return [
            Bad((torch.zeros(2, 1), torch.zeros(2, 1)), ValueError, "kind to be one of", {"kind": "hinge"}),
            Bad((torch.zeros(2, 1), None), TypeError, "expected real to be a torch.Tensor"),
        ]


def brightened(x):
    return 2 * x  # above every target, away from the kink of the L1 distance; exact in half types


class TestCycle(LossTests):
    op = losses.cycle
    module = losses.Cycle
    jvp = "right"

    def samples(self, generator):
        blurred = random(2, 3, 4, 5, generator=generator, low=0.1, high=0.9)  # none is cut
        pair = (blurred, random(2, 3, 4, 5, generator=generator, high=0.15))
        return [
            Sample(pair, {"restore": brightened}),
            Sample(pair, {"restore": brightened, "distance": losses.charbonnier}),
        ]

    def bad(self):
        image = torch.zeros(1, 3, 4, 4)
        return [
            Bad((image, image[..., 1:]), ValueError, "expected sharp of shape", {"restore": brightened}),
            Bad((image, image.byte()), TypeError, "floating dtype", {"restore": brightened}),
        ]


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


class TestCharbonnierEdge(Pair):
    op = losses.charbonnier_edge
    module = losses.CharbonnierEdge
    jvp = "right"
    settings = ({"eps": 0.1}, {"edge_weight": 0.5})

    def bad(self):
        image = torch.zeros(1, 3, 4, 4)
        return [*super().bad(), Bad((image, image), ValueError, "eps to be a number > 0, got -1", {"eps": -1})]

    def equal(self, generator):
        image = random(1, 3, 5, 4, generator=generator)
        return Sample((image, image.clone()))


@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex operators")
class TestL1Fourier(Pair):
    op = losses.l1_fourier
    module = losses.L1Fourier
    jvp = "right"
    settings = ({}, {"axes": "width", "fourier_weight": 0.5})

    def bad(self):
        image = torch.zeros(1, 3, 4, 4)
        return [*super().bad(), Bad((image, image), ValueError, "axes to be one of 'width', 'both'", {"axes": 1})]

    def equal(self, generator):
        image = random(1, 3, 5, 4, generator=generator)
        return Sample((image, image.clone()))


def test_recorded_losses_of_the_deblurrers(recorded):
    a, b = recorded["a"].requires_grad_(), recorded["b"]
    released = {"axes": "width"}
    for name, value in (
        ("charbonnier_eps1e-3", losses.charbonnier(a, b)),
        ("charbonnier_eps1e-1", losses.charbonnier(a, b, eps=0.1)),
        ("edge_only", losses.edge(a, b)),
        ("mprnet_charb_plus_edge", losses.charbonnier_edge(a, b)),
        ("reblur_loss", losses.charbonnier_edge(a, b)),
        ("mimo_single_scale", losses.l1_fourier(a, b, **released)),
        ("mimo_fft_l1", 10 * (losses.l1_fourier(a, b, **released) - recorded["l1"])),
        ("deblur_mprnet_3stages", over(["a", "mpr_out1", "mpr_out2"], recorded, losses.charbonnier_edge)),
        ("deblur_mimo_3scales", over(["mimo_out0", "mimo_out1", "mimo_out2"], recorded, losses.L1Fourier(**released))),
        ("deblur_restormer", losses.over_outputs([a], b)),
        ("deblur_mtrnn", losses.over_outputs([a], b)),
    ):
        assert value.item() == pytest.approx(recorded[name].item(), abs=1e-6, rel=1e-6), name
    gradients = {
        "grad_mprnet_single_wrt_a": losses.charbonnier_edge(a, b),
        "grad_mimo_single_wrt_a": losses.l1_fourier(a, b, **released),
    }
    for name, value in gradients.items():
        torch.testing.assert_close(torch.autograd.grad(value, a)[0], recorded[name], atol=1e-6, rtol=1e-5)


def over(names, recorded, distance):
    return losses.over_outputs([recorded[name] for name in names], recorded["b"], distance=distance)


def test_the_laplacian_is_the_recorded_one(recorded):
    torch.testing.assert_close(losses.detail(recorded["a"]), recorded["mprnet_laplacian_of_a"], atol=1e-6, rtol=0)


def test_targets_of_scales_are_the_recorded_ones(recorded):
    seen = []
    losses.over_outputs(
        [recorded[f"mimo_out{i}"] for i in range(3)],
        recorded["b"],
        distance=lambda output, target: seen.append(target) or F.l1_loss(output, target),
    )
    for got, name in zip(seen, ("mimo_label0", "mimo_label1", "b"), strict=True):
        torch.testing.assert_close(got, recorded[name], atol=1e-6, rtol=0)


def test_outputs_that_are_no_pictures_are_named():
    with pytest.raises(ValueError, match="at least one output"):
        losses.over_outputs([], torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"over_outputs: expected outputs\[1\] of shape \(B, C, H, W\), got \(3,\)"):
        losses.over_outputs([torch.zeros(1, 3, 4, 4), torch.zeros(3)], torch.zeros(1, 3, 4, 4))


def test_values_by_hand():
    fake, real = torch.tensor([0.5, 1.5]), torch.tensor([2.0])
    assert losses.adversarial(fake) == -1
    assert losses.adversarial(fake, kind="least_squares") == 0.25
    assert losses.critic(fake, real) == -1
    assert losses.critic(fake, real, kind="least_squares") == 1.25 + 1
    blurred = torch.tensor([[[[2.0, -1.0]]]])
    assert losses.cycle(blurred, torch.zeros(1, 1, 1, 2), restore=lambda x: 2 * x) == 1
