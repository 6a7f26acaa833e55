"""Adversarial and cycle losses, by hand."""

import torch
from _base import Bad, LossTests, Sample, random

from tta_restore import losses


class TestAdversarialLoss(LossTests):
    op = losses.adversarial_loss
    module = losses.AdversarialLoss
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


class TestDiscriminatorLoss(LossTests):
    op = losses.discriminator_loss
    module = losses.DiscriminatorLoss
    jvp = "right"
    per_pixel = False

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


class TestCycleLoss(LossTests):
    op = losses.cycle_loss
    module = losses.CycleLoss
    jvp = "right"

    def samples(self, generator):
        blurred = random(2, 3, 4, 5, generator=generator, low=0.1, high=0.9)  # none is cut
        pair = (blurred, random(2, 3, 4, 5, generator=generator, high=0.15))
        return [
            Sample(pair, {"restore": brightened}),
            Sample(pair, {"restore": brightened, "distance": losses.charbonnier_loss}),
        ]

    def bad(self):
        image = torch.zeros(1, 3, 4, 4)
        return [
            Bad((image, image[..., 1:]), ValueError, "expected sharp of shape", {"restore": brightened}),
            Bad((image, image.byte()), TypeError, "floating dtype", {"restore": brightened}),
        ]


def test_values_by_hand():
    fake, real = torch.tensor([0.5, 1.5]), torch.tensor([2.0])
    assert losses.adversarial_loss(fake) == -1
    assert losses.adversarial_loss(fake, kind="least_squares") == 0.25
    assert losses.discriminator_loss(fake, real) == -1
    assert losses.discriminator_loss(fake, real, kind="least_squares") == 1.25 + 1
    blurred = torch.tensor([[[[2.0, -1.0]]]])
    assert losses.cycle_loss(blurred, torch.zeros(1, 1, 1, 2), restore=lambda x: 2 * x) == 1
