"""The training of the estimator of noise and blur: targets are what was applied, and seeds decide."""

import pytest
import torch
from safetensors.torch import load_file

from tta_restore.degradations.statistics import NUM_STATISTICS, StatisticsNet
from tta_restore.engine.train import degradation_estimator
from tta_restore.engine.train.degradation_estimator import PairSampler, collect, fit_statistics_net
from tta_restore.models import create_model


def sampler(seed):
    return PairSampler(torch.Generator().manual_seed(seed), count=2, pupils=1)


@pytest.mark.slow
def test_samples_are_seeded_and_the_statistics_can_be_learned():
    net = StatisticsNet()
    first, second = (collect(sampler(3), net, 32, batch_size=16) for _ in range(2))
    assert first[0].shape == (32, NUM_STATISTICS)
    assert first[0].isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    radius, noise = first[1].exp().unbind(1)
    assert 0.25 <= radius.min() < 0.6 < radius.max() <= 5
    assert noise.min() < 2 / 255 < 20 / 255 < noise.max()
    records = fit_statistics_net(net, *first, torch.Generator().manual_seed(0), steps=60)
    assert records[-1]["loss"] < records[0]["loss"]


def test_window_layers_are_those_of_the_lens_estimator(tmp_path, monkeypatch):
    monkeypatch.setattr(degradation_estimator, "PairSampler", lambda generator: None)
    monkeypatch.setattr(degradation_estimator, "collect", lambda *arguments, **options: (torch.zeros(2, 3), None))
    monkeypatch.setattr(degradation_estimator, "fit_statistics_net", lambda *arguments: [])
    degradation_estimator.main(["--samples", "2", "--out", str(tmp_path / "net.safetensors")])
    written = load_file(tmp_path / "net.safetensors")
    for name, value in create_model("lens_estimator", checkpoint="lens_estimator").window_net.state_dict().items():
        assert torch.equal(written[f"window_net.{name}"], value)
