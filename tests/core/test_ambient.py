"""Public functions under another default dtype and another default device: nothing changes."""

from functools import cache

import numpy as np
import pytest
import torch
from _samples import default_float64, default_meta
from torch import Tensor, nn

from tta_restore import metrics, models
from tta_restore._core.ambient import usual_defaults
from tta_restore.adapters import CauSiam, DegradationPairs, SelfDenoise, Semantic, recommended
from tta_restore.degradations import Estimator
from tta_restore.models.restorer.second_order import examine_second_order


@cache
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 3, 3, padding=1)).eval()


@cache
def images() -> Tensor:
    return torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(0))


@cache
def estimator() -> Estimator:
    return Estimator()


@cache
def lens() -> nn.Module:
    return models.create_model("lens_estimator", checkpoint="lens_estimator")


def adapted(make):
    adapter = make(network())
    return [adapter(x) for x in images().split(1)] + list(adapter.student.values())


def pairs(net):
    sharp = images().repeat_interleave(2, 2).repeat_interleave(2, 3)
    return DegradationPairs(
        net, estimator(), steps=1, batch_size=1, patch_size=16, task="denoise", sharp_images=sharp, lr=1e-2
    )


CALLS = {
    "psnr": lambda: [metrics.psnr(images(), images().flip(0))],
    "ssim": lambda: [metrics.ssim(images(), images().flip(0))],
    "uniform ssim": lambda: [metrics.ssim(images(), images() / 2, protocol=metrics.Protocol(window="uniform"))],
    "mae": lambda: [metrics.mae(images(), images().flip(0))],
    "aligned_scores": lambda: [metrics.aligned_scores(images()[:1], images()[:1] / 2).homography],
    "Estimator.read": lambda: list(estimator().read(images()).tensors().values()),
    "Estimator": lambda: list(Estimator().read(images()[:1]).tensors().values()),
    "Reading.distance": lambda: [estimator().read(images()[:1]).distance(estimator().read(images()[1:]))],
    "lens estimator": lambda: list(vars(lens()(images())).values()),
    "competence": lambda: [str(models.competence(network()))],
    "probe": lambda: [str(models.probe(network()))],
    "examine_second_order": lambda: [str(examine_second_order(network(), images()[:1, :, :16, :16]))],
    "recommended": lambda: [type(recommended(network(), task="denoise")).__name__],
    "DegradationPairs": lambda: adapted(pairs),
    "SelfDenoise": lambda: adapted(lambda net: SelfDenoise(net, select="all", lr=1e-2)),
    "CauSiam": lambda: adapted(
        lambda net: CauSiam(net, semantic=Semantic(lambda restored: restored.mean((2, 3)), at="0", num_heads=2))
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_defaults_change_nothing(name):
    expected = CALLS[name]()
    for around in (default_float64, default_meta):
        with around():
            found = CALLS[name]()
        for got, want in zip(found, expected, strict=True):
            if isinstance(want, str):
                assert got == want
            else:
                torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_factories_inside_follow_neither_default():
    with default_float64(), default_meta(), usual_defaults():
        made = [torch.zeros(2), torch.full((2,), 1.5), torch.arange(3.0), torch.tensor(0.5), nn.Linear(2, 2).weight]
    assert all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in made)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with usual_defaults():
            assert torch.tensor(0.1).item() == torch.full((), 0.1).item() == np.float32(0.1)
    finally:
        torch.set_default_dtype(torch.float32)
    with default_float64(), usual_defaults(torch.zeros(1, dtype=torch.float64)):
        assert torch.zeros(2).dtype == torch.float64
    with usual_defaults():
        assert torch.zeros(2, dtype=torch.float16).dtype == torch.float16
