"""Benchmarks of adaptation: what they compute of frames, and what a run leaves that is cut."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from benchmarks import any_restorer, steady_camera
from tta_restore.models import RestorerSpec


def test_costs_are_counted_in_self_ensembles():
    adapted = {"gain": 1.0, "steps": 96, "cpu_seconds": 10.0, "cpu_seconds_self_ensemble": 0.1}
    steady = {"gain": 2.0, "steps": 0, "cpu_seconds": 0.2, "cpu_seconds_self_ensemble": 0.1}
    read = steady | {"gain": -0.5, "cpu_seconds": 1.2}
    summary = steady_camera.summarize([adapted] * 6 + [steady, steady, read])
    assert summary["adapted_frames"] == 6
    assert summary["gain_early"] == 1
    assert summary["gain_late"] == pytest.approx(3.5 / 3)
    assert summary["worst"] == -0.5
    assert summary["cost_adapted"] == pytest.approx(100)
    assert summary["cost_steady"] == pytest.approx(16 / 3)
    assert summary["cost_steady_median"] == pytest.approx(2)


def test_a_run_that_is_cut_keeps_its_frames(tmp_path, monkeypatch):
    def measure(case, condition, names, count, seed, scenes, first, stream):
        for index in range(first, count):
            if index == 2 and not first:
                raise KeyboardInterrupt
            yield {"input": 20.0, "self_ensemble": 25.0, "adapted": 26.0 + index, "cpu_seconds": 1.0, "images": 0}

    case = any_restorer.Case(lambda: (nn.Identity(), RestorerSpec()), {"own": (None, "photo")})
    monkeypatch.setattr(any_restorer, "cases", lambda real: {"nothing": case})
    monkeypatch.setattr(any_restorer, "measure", measure)
    output = tmp_path / "rows.json"
    with pytest.raises(KeyboardInterrupt):
        any_restorer.main(["run", "--frames", "3", "--output", str(output)])
    (row,) = json.loads(output.read_text())["rows"]
    assert row["summary"]["frames"] == len(row["each"]) == 2
    assert row["summary"]["mean"] == 1.5
    any_restorer.main(["run", "--frames", "3", "--resume", "--output", str(output), "--worst", str(tmp_path)])
    (row,) = json.loads(output.read_text())["rows"]
    assert [one["adapted"] for one in row["each"]] == [26, 27, 28]


def test_a_run_that_goes_on_sees_the_frames_that_a_whole_run_sees(monkeypatch):
    monkeypatch.setattr(any_restorer.adapters, "recommended", any_restorer.adapters.SelfEnsemble)
    case = any_restorer.cases(None)["denoiser"]
    case = dataclasses.replace(case, load=lambda: (nn.Identity(), RestorerSpec()), size=32)
    whole, rest = (list(any_restorer.measure(case, "near", ("gravel",), 3, 5, first=first)) for first in (0, 2))
    assert len(rest) == 1
    assert torch.equal(rest[0]["images"][0], whole[2]["images"][0])


def test_extreme_scenes_are_the_extremes_of_their_photograph():
    names = ("gravel", "grace_hopper")

    def scene(index):
        return any_restorer.scene("extreme", index, names, 64, torch.Generator().manual_seed(0))

    def detail(image):
        return float(image.diff(dim=-1).abs().mean())

    bright, dark, smooth, detailed, overexposed = (scene(index) for index in range(5, 10))  # of the second photograph
    assert dark.mean() < smooth.mean() < bright.mean() < overexposed.mean()
    assert detail(smooth) < detail(bright) < detail(detailed)
    assert overexposed.max() == 1
