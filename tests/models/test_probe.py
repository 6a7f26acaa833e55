"""The probe says of spandrel's restorers what was found by hand (shared/conformance/spandrel_matrix.csv)."""

import importlib.util
import random
import re
import sys

import numpy as np
import pytest
import torch
from _fresh import run_program
from adapters.styles import OneSize
from adapters.styles import build as build_style
from torch import nn

from tta_restore.engine.run import info
from tta_restore.models import as_restorer, probe
from tta_restore.models.restorer import probing

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("spandrel") is None, reason="spandrel is not installed"),
    # what these restorers do, not what this package does
    pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid"),
]

# architecture folder, module, class, small configuration, what the conformance study found
SPANDREL = {
    "Compact": ("Compact.__arch.SRVGG", "SRVGGNetCompact", {"num_feat": 16, "num_conv": 2, "upscale": 1}, {}),
    "NAFNet": (
        "NAFNet.__arch.NAFNet_arch", "NAFNet",
        {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
        {"autograd_functions": ("LayerNormFunction",), "normalization": {"LayerNorm2d": 10}},
    ),
    "SwinIR/x2": (
        "SwinIR.__arch.SwinIR", "SwinIR",
        {"img_size": 64, "window_size": 8, "embed_dim": 24, "depths": [2], "num_heads": [2], "upscale": 2,
         "upsampler": "pixelshuffle"},
        {"scale": 2, "normalization": {"LayerNorm": 6}},
    ),
    "FBCNN": (
        "FBCNN.__arch.FBCNN", "FBCNN", {"nb": 1}, {"image_at": (0,)},
    ),
    "DRUNet": (
        "DRUNet.__arch.network_unet", "DRUNet",
        {"in_nc": 4, "out_nc": 3, "nc": [16, 32, 48, 64], "nb": 1}, {"in_channels": 4, "multiple_of": 8},
    ),
    "PLKSR": ("PLKSR.__arch.PLKSR", "PLKSR", {"dim": 16, "n_blocks": 2, "upscaling_factor": 1}, {"in_place": True}),
    "SPAN": (
        "SPAN.__arch.span", "SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 16, "upscale": 1},
        {"unreached": 160},
    ),
    "RCAN": (
        "RCAN.__arch.rcan_arch", "RCAN",
        {"scale": 1, "n_resgroups": 1, "n_resblocks": 1, "n_feats": 16, "reduction": 4},
        {"writes_input": True},
    ),
    "Uformer": (
        "Uformer.__arch.Uformer", "Uformer",
        {"img_size": 128, "embed_dim": 8, "depths": [1] * 9, "num_heads": [1, 1, 1, 1, 1, 1, 1, 1, 1]},
        {"multiple_of": 128, "square": True},
    ),
}  # fmt: skip


def build(name):
    path, cls, config, _ = SPANDREL[name]
    torch.manual_seed(0)
    return getattr(importlib.import_module(f"spandrel.architectures.{path}"), cls)(**config)


HEAVY = ("FBCNN", "Uformer")  # 20 M weights, and 128-pixel windows


@pytest.mark.thorough
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in HEAVY)) for n in SPANDREL])
def test_spandrel_restorers_are_described_as_they_are(name):
    net, expected = build(name), dict(SPANDREL[name][3])
    before = {key: value.clone() for key, value in net.state_dict().items()}
    report = probe(net)
    found = {
        "scale": report.spec.scale,
        "in_channels": report.spec.in_channels,
        "multiple_of": report.spec.size.multiple_of,
        "square": report.spec.size.square,
        "image_at": report.image_at,
        "writes_input": report.writes_input,
        "unreached": len(report.without_gradient),
        "autograd_functions": report.autograd_functions,
        "in_place": "inplace operation" in (report.backward_in_eval or ""),
    }
    usual = {
        "scale": 1, "in_channels": 3, "multiple_of": 1, "square": False, "image_at": (), "writes_input": False,
        "unreached": 0, "autograd_functions": (), "in_place": False,
    }  # fmt: skip
    norms = expected.pop("normalization", None)
    assert found == usual | expected
    assert norms is None or report.normalization == norms
    assert report.backward_in_train is None
    assert report.repeatable
    assert report.batch
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(part.training for part in net.modules())


@pytest.mark.parametrize("name", ["Compact", "NAFNet", "SwinIR/x2"])
def test_a_descriptor_is_unwrapped_and_its_requirements_kept(name):
    from spandrel import ModelLoader

    descriptor = ModelLoader().load_from_state_dict(build(name).state_dict()).eval()
    restorer = as_restorer(descriptor)
    assert restorer.module is descriptor.model
    assert restorer.spec.in_channels == descriptor.input_channels
    x = torch.rand(1, 3, 61, 67, requires_grad=True)
    image = restorer(x)  # the descriptor's own call runs in inference mode and clamps in place
    image.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(image.detach().clamp(0, 1), descriptor(x.detach()).clone(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "mode", "trap"),
    [
        ("PLKSR", "train", "no backward in eval mode"),
        ("SPAN", "train", "160 tensors without gradient in eval mode"),
        ("RCAN", "eval", "writes into its input"),
        ("DRUNet", "eval", "takes 4 channels"),
        ("NAFNet", "eval", "own autograd functions (LayerNormFunction)"),
    ],
)
def test_traps_are_named_and_the_advice_avoids_them(name, mode, trap):
    report = probe(build(name))
    assert trap in report.traps
    assert report.advice["mode"] == mode
    assert report.advice["spec"] == report.spec
    unreached = report.without_gradient if mode == "eval" else report.without_gradient_in_train
    expected = ["all", *(f"!{weight}" for weight in unreached)] if unreached else "all"
    assert report.advice["select"] == expected
    assert len(unreached) < 160


def test_the_report_reads_as_a_table():
    text = " ".join(str(probe(build("NAFNet"))).split())
    assert "size multiple of 1, at least 1" in text
    assert "LayerNorm2d x10" in text
    assert "backward in eval works" in text


def test_randomness_and_refusals_are_seen():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 3, 1))
    state = torch.get_rng_state()
    report = probe(net)
    assert report.random_in_train
    assert report.repeatable
    assert report.normalization == {"BatchNorm2d": 1}
    assert torch.equal(torch.get_rng_state(), state)
    fixed = nn.Linear(10, 10)  # takes images 10 pixels wide, and only those
    with pytest.raises(ValueError, match="no frame suits Linear; declare channels and sizes in a RestorerSpec"):
        probe(fixed)
    assert probe(fixed, torch.rand(1, 3, 10, 10)).spec.in_channels == 3
    with pytest.raises(TypeError, match="got function"):
        probe(lambda x: x)


def test_further_inputs_are_named():
    class NonBlind(nn.Conv2d):
        def forward(self, x, sigma, *, gain, bias=0.0):
            return super().forward(x) * sigma * gain + bias

    net, x = NonBlind(3, 3, 1), torch.rand(1, 3, 8, 8)
    with pytest.raises(
        ValueError,
        match="no frame suits NonBlind; it also takes sigma and gain; wrap it in a module that passes them on",
    ):
        probe(net)
    with pytest.raises(ValueError, match="missing 1 required .*; pass gain with each frame, by keyword"):
        as_restorer(net)(x, sigma=0.1)
    assert as_restorer(net)(x, sigma=0.1, gain=1.0).shape == x.shape


def test_models_that_take_long_get_smaller_frames(monkeypatch):
    class Noted(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.sides = nn.Conv2d(3, 3, 3, padding=1), []

        def forward(self, x):
            sides.append(x.shape[-1])
            return self.conv(x)

    sides: list[int] = []
    report = probe(Noted(), competence=True)
    assert sides[-1] == 96
    light = len(sides)
    monkeypatch.setattr(probing, "_MAX_MACS", 0)
    monkeypatch.setattr(sys.modules["tta_restore.models.competence"], "_MAX_MACS", 0)
    sides.clear()
    found = probe(Noted(), competence=True)
    assert sides[-1] == 48
    assert sides.count(32) > 10
    assert len(sides) <= light + 1
    assert str(found).splitlines()[:10] == str(report).splitlines()[:10]


def test_a_heavy_model_without_padding_is_given_small_frames(monkeypatch):
    sides: list[int] = []
    net = nn.Sequential(*[nn.Conv2d(3, 3, 5) for _ in range(17)])
    net.register_forward_pre_hook(lambda net, inputs: sides.append(inputs[0].shape[-1]))
    monkeypatch.setattr(probing, "_MAX_MACS", 0)
    monkeypatch.setattr(sys.modules["tta_restore.models.competence"], "_MAX_MACS", 0)
    report = probe(net, competence=True)
    assert (report.spec.border, report.spec.size.minimum) == (34, 69)
    assert max(sides) == 32 + 2 * 34
    assert sum(side**2 for side in sides) < 15 * (64 + 2 * 34) ** 2
    assert not report.random_in_train


def test_random_numbers_of_numpy_and_python_go_on_as_if_nothing_was_drawn():
    class Draws(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + (random.random() + np.random.rand()) * self.training  # noqa: NPY002

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    assert probe(Draws(3, 3, 3, padding=1)).random_in_train
    assert (random.random(), np.random.rand()) == expected  # noqa: NPY002


@pytest.mark.parametrize("style", ["activation checkpointing", "reentrant checkpointing", "reversible", "recurrent"])
def test_weights_of_passes_that_are_run_again_are_found(style):
    net = build_style(style)
    net.a.weight.grad = torch.ones_like(net.a.weight)
    report = probe(net)
    assert report.backward_in_eval is None
    assert not report.without_gradient
    assert all(parameter.grad is None for name, parameter in net.named_parameters() if name != "a.weight")
    assert torch.equal(net.a.weight.grad, torch.ones_like(net.a.weight))


def test_a_model_of_one_channel_is_told():
    report = probe(nn.Conv2d(1, 1, 3, padding=1))
    assert report.spec.in_channels == 1
    assert "1 (color frames are restored channel by channel)" in str(report)


@pytest.mark.thorough
def test_the_cost_is_that_of_a_large_frame_without_importing_the_compiler():
    program = """
import sys, torch
from tta_restore.engine.run import info
from tta_restore.models import as_restorer, probe
net = torch.nn.Conv2d(3, 3, 3, padding=1)
print(info._cost(as_restorer(net), probe(net)).splitlines()[1], "torch._dynamo" in sys.modules)
"""
    assert re.sub(" +", " ", run_program(program).stdout) == "multiply-adds 0.075 G False\n"


def test_the_cost_of_a_model_of_one_size_is_that_of_a_tile():
    net = OneSize(24, 32)
    counted = info._cost(as_restorer(net), probe(net))
    assert counted.startswith("at 32x24:")
    assert "not counted" not in counted
