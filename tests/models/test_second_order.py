"""Second derivatives: wrong ones are measured, LayerNorms that cause them are exchanged, and put back."""

import copy

import pytest
import torch
from _second_derivatives import Squares, TheirLayerNorm2d
from torch import nn

from tta_restore import models
from tta_restore.models.restorer import second_order
from tta_restore.models.restorer.second_order import examine_second_order, plain_layer_norms

EXAMPLE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(norm):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm, nn.GELU(), nn.Conv2d(8, 3, 3, padding=1))


class Rounds(nn.Module):
    """A quantizer: what comes before it is cut from the graph through .data."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        y = self.conv(x)
        return y * y.data


def test_torch_is_right_and_the_saved_intermediates_are_wrong():
    right = examine_second_order(network(nn.GroupNorm(1, 8)), EXAMPLE)
    assert right.right
    assert right.error < 1e-6
    assert right.functions == ()
    wrong = examine_second_order(network(TheirLayerNorm2d(8)), EXAMPLE)
    assert not wrong.right
    assert wrong.error > 1e-3
    assert "SavesIntermediates" in str(wrong)
    assert examine_second_order(Rounds(), EXAMPLE).error > 1e-2


def test_our_own_functions_are_right():
    """Differentiable backwards, so a Function in the graph is no proof of guilt."""
    from tta_restore.nn import IsotropicReblur

    class Reblurs(nn.Module):
        def __init__(self):
            super().__init__()
            self.seeds, self.weights = nn.Conv2d(3, 35, 1), nn.Conv2d(3, 8, 1)
            self.reblur = IsotropicReblur()

        def forward(self, x):
            return self.reblur(x, self.seeds(x).square() + 0.1, self.weights(x).softmax(1))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        report = examine_second_order(Reblurs(), EXAMPLE)
    assert report.functions
    assert report.error < 1e-6


class RefusingSquares(Squares):
    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise RuntimeError("no second backward")
        return 2 * grad * ctx.saved_tensors[0]


@pytest.mark.parametrize(("function", "error"), [(Squares, 1.0), (RefusingSquares, float("inf"))])
def test_functions_that_have_no_second_derivative(function, error):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return function.apply(self.conv(x))

    report = examine_second_order(Model(), EXAMPLE)
    assert report.error == pytest.approx(error, rel=0.5)
    assert not report.right
    assert function.__name__ in str(report)
    assert ("no second backward" in str(report)) == (function is RefusingSquares)


def test_layer_norms_are_exchanged_and_put_back():
    model = network(TheirLayerNorm2d(8))
    with torch.no_grad():
        model[1].weight.normal_()
        model[1].bias.normal_()
    before, state = model(EXAMPLE), copy.deepcopy(model.state_dict())
    with plain_layer_norms(model) as names:
        assert names == ("1",)
        torch.testing.assert_close(model(EXAMPLE), before, atol=1e-5, rtol=1e-5)
        assert examine_second_order(model, EXAMPLE).error < 1e-6
    assert "forward" not in vars(model[1])
    assert torch.equal(model(EXAMPLE), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    with plain_layer_norms(network(nn.GroupNorm(1, 8))) as names:
        assert names == ()


def test_layers_that_only_look_alike_stay():
    class Doubled(TheirLayerNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    with plain_layer_norms(network(Doubled(8))) as names:
        assert names == ()


def test_nafnet():
    nafnet = pytest.importorskip("spandrel.architectures.NAFNet")
    model = nafnet.NAFNet(width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])
    example = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("beta", "gamma")):  # zero at birth, which hides everything
                parameter.fill_(0.5)
    assert not examine_second_order(model, example).right
    with plain_layer_norms(model) as names:
        assert len(names) == 6
        assert examine_second_order(model, example).error < second_order.TOLERANCE


def test_without_weights():
    with pytest.raises(ValueError, match="expected a model with weights"):
        examine_second_order(nn.Identity(), EXAMPLE)


@pytest.mark.parametrize("seed", [0, 1])
def test_kinks_do_not_make_a_right_second_derivative_wrong(seed):
    torch.manual_seed(seed)
    example = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    net = models.create_model("ifan", base_channels=4, num_steps=3)
    assert examine_second_order(models.as_restorer(net), example).right
    assert not examine_second_order(models.as_restorer(net), example, steps=(1e-6,)).right  # the one step of before
