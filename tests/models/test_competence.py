"""competence: a denoiser, a deblurrer, an upscaler and a restorer without effect are told apart."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tta_restore.models import Competence, RestorerSpec, as_restorer, competence, create_model, probe
from tta_restore.models.competence import multiply_adds


class Smooth(nn.Module):
    """A bilateral mean: removes noise, keeps edges."""

    def __init__(self) -> None:
        super().__init__()
        self.std = nn.Parameter(torch.tensor(0.2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shifts = [x.roll((i, j), (-2, -1)) for i in range(-2, 3) for j in range(-2, 3)]
        stack = torch.stack(shifts)
        weight = torch.exp(-((stack - x).square().mean(2, keepdim=True)) / self.std**2)
        return (weight * stack).sum(0) / weight.sum(0)


class Identity(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=2, mode="bicubic")


def test_a_denoiser_is_recognized():
    found = competence(Smooth())
    assert found.task == "denoise"
    assert "noise" in found.removes
    assert not found.sharpens
    assert found.gains["noise"][30.0] > 2
    assert found.gains["none"][0.0] < 0


@pytest.mark.thorough
def test_a_lens_deblurrer_is_recognized_and_spoils_sharp_images():
    found = competence(create_model("lens_unet", checkpoint="specialist").eval())
    assert found.task == "defocus"
    assert found.sharpens
    assert found.gains["defocus"][2.0] > 1 > found.gains["noise"][15.0]
    assert found.spoils > 5


def test_what_changes_nothing_gains_nothing():
    found = competence(Identity())
    assert found.task == "any"
    assert not found.removes
    assert found.spoils == 0
    assert all(gain == 0 for levels in found.gains.values() for gain in levels.values())
    assert "no gain at any level: the weights are of another network" in str(found)


@pytest.mark.thorough
def test_an_upscaler_is_compared_with_bicubic_interpolation():
    found = competence(Twice())
    assert (found.task, found.scale, found.sharpens) == ("sr", 2, True)
    assert abs(found.gains["none"][0.0]) < 0.1


@pytest.mark.skipif("task" not in RestorerSpec.__dataclass_fields__, reason="comes with the core")
def test_a_declared_task_is_kept():
    found = competence(Identity(), RestorerSpec(task="jpeg"))
    assert found.task == "jpeg"
    assert not found.sharpens
    assert "jpeg (declared)" in str(found)


def test_the_table_has_a_row_for_each_kind():
    text = str(Competence({"noise": {5.0: 1.25, 15.0: -0.5}, "none": {0.0: -3.0}}))
    assert "no gain" not in text
    assert "noise" in text
    assert "+1.25" in text
    assert "-3.00" in text


def test_nothing_is_changed_and_the_result_repeats():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    first, second = competence(model), competence(model)
    assert first == second
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gray_restorers_and_half_precision_are_served():
    assert competence(Identity(), RestorerSpec(in_channels=1)).gains["jpeg"][10.0] == 0
    assert competence(nn.Conv2d(1, 1, 1)).scale == 1
    assert competence(nn.Conv2d(3, 3, 1).to(torch.bfloat16)).scale == 1


def test_clips_are_refused():
    with pytest.raises(ValueError, match="competence: expected a restorer of single frames"):
        competence(Identity(), RestorerSpec(frames=5))


@pytest.mark.parametrize(("per_pixel", "layers", "count", "side", "levels"), [
    (3.4e5, 0, 2, 96, 15), (4e5, 0, 2, 48, 15), (1.4e6, 0, 2, 48, 15), (1.5e6, 0, 1, 48, 15), (2.8e6, 0, 1, 48, 15),
    (3e6, 0, 1, 48, 6),
    (3.4e5, 12, 2, 48, 15), (1e6, 12, 1, 48, 6), (3e6, 12, 1, 32, 6),  # 24 pixels at each side are computed as well
])  # fmt: skip
def test_heavy_models_get_fewer_and_smaller_images(per_pixel, layers, count, side, levels, monkeypatch):
    file = importlib.import_module("tta_restore.models.competence")
    monkeypatch.setattr(file, "multiply_adds", lambda restorer, frame: per_pixel * (32 + 4 * layers) ** 2)
    shapes = []
    net = nn.Sequential(*[nn.Conv2d(3, 3, 5) for _ in range(layers)], nn.Identity())
    net.register_forward_hook(lambda net, inputs, output: shapes.append(tuple(output.shape)))
    competence(net, RestorerSpec(border=2 * layers))
    assert shapes.count((count, 3, side, side)) == levels


def test_probe_reports_it_when_asked():
    assert probe(Smooth()).competence is None
    report = probe(Smooth(), competence=True)
    assert report.competence.task == "denoise"
    assert "gain over the input" in str(report)


def test_multiply_adds_are_those_of_the_layers():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    assert multiply_adds(as_restorer(net), torch.rand(1, 3, 10, 10)) == 2 * 3 * 8 * 9 * 100


def test_weights_that_a_module_passes_on_are_counted():
    class Passing(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(3, 3, 3, 3))
            self.inner = Convolve()

        def forward(self, x):
            return self.inner(x, self.weight)

    class Convolve(nn.Module):
        def forward(self, x, weight):
            return F.conv2d(x, weight, padding=1)

    assert multiply_adds(as_restorer(Passing()), torch.rand(1, 3, 10, 10)) == 3 * 3 * 9 * 100


def test_fused_layers_of_transformers_are_counted():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 3)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)

        def forward(self, x):
            y = self.layer(self.first(x.flatten(2).mT))
            return self.last(y).mT.reshape(x.shape)

    per_pixel = 2 * 3 * 8 + 4 * 8 * 8 + 2 * 8 * 16
    assert multiply_adds(as_restorer(Tokens().eval()), torch.rand(1, 3, 10, 10)) == per_pixel * 100
