"""The demo's machinery on stand-ins: rows, seeds, pictures chosen by rule, files written, nothing invented."""

from __future__ import annotations

import csv
import json
import sys

import pytest
import torch
from torch import Tensor

from tta_restore.adapters import Adapter
from tta_restore.data.synthetic.defocus import DefocusFrame
from tta_restore.engine.evaluate.lenses import Comparison, Contender, compare
from tta_restore.engine.run.usage import UsageError


def stream(seed: int) -> list[DefocusFrame]:
    generator = torch.Generator().manual_seed(seed)
    frames = []
    for family in ("disk", "cat_eye"):
        for position in range(3):
            sharp = torch.rand(3, 24, 24, generator=generator)
            blurry = (sharp + 0.1 * torch.randn(sharp.shape, generator=generator)).clamp(0, 1)
            kernels = torch.zeros(2, 2, 5, 5)
            kernels[..., 2, 2] = 1
            frames.append(DefocusFrame(blurry, sharp, torch.ones(24, 24), kernels, family, "photo", position))
    return frames


class Fading(Adapter):
    """Blends towards gray; worse on every frame than the one before."""

    def __init__(self, seed: int) -> None:
        super().__init__(torch.nn.Conv2d(3, 3, 1), select="all", seed=seed)
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x.lerp(torch.full_like(x, 0.5), 0.05 * self.count)


@pytest.fixture
def seeds() -> list[int]:
    return []


@pytest.fixture
def rows(seeds) -> Comparison:
    def build(seed: int) -> Fading:
        seeds.append(seed)
        return Fading(seed)

    return Comparison(
        title="Stand-ins",
        contenders=[
            Contender("input", lambda seed: lambda x: x, "As it came."),
            Contender("gray", build, "Goes gray."),
            Contender("mean", lambda seed: lambda x: 0.9 * x + 0.05, "Less contrast."),
        ],
        baseline="input",
        contrasts=[("gray", "input"), ("mean", "input")],
        curves=["input", "gray"],
        shown="gray",
        before="input",
        estimate=lambda blurry, true: true.roll(1, -1),
        limits=["Noise is no lens."],
    )


def test_files_tables_and_choices(rows, seeds, tmp_path):
    said: list[str] = []
    streams = {4: stream(4), 9: stream(9)}
    result = compare(rows, streams, tmp_path, progress=False, say=said.append)
    assert seeds == [4, 9]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["frames.csv", "report.html", "results.json"]
    with open(tmp_path / "frames.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * 12
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["settings"]["seeds"] == "4, 9"
    assert content["summary"]["methods"]["gray"]["psnr_gain"]["all"]["mean"] == result.gain("gray", "input").mean
    assert "PSNR gain over input" in said[0]
    assert str(tmp_path / "report.html") in said[1]
    page = (tmp_path / "report.html").read_text()
    worst, gain = result.worst("gray", "input")
    assert f"frame {worst.position + 1} after the lens changed" in page
    assert f"Here: {gain:+.2f} dB." in page
    assert "Fading: " in page  # its plan
    assert page.count("what it adapts") == 1
    assert "0 % of the light falls where it does in truth." in page
    assert "Noise is no lens." in page
    medians = [sorted(g for _, g in result.gains("gray", "input", family=f))[2] for f in ("disk", "cat_eye")]
    for median in medians:
        assert f"median gain over input: {median:+.2f} dB." in page


def test_chosen_rows_keep_the_baseline(rows, tmp_path):
    some = rows.only(["mean"])
    assert [c.name for c in some.contenders] == ["input", "mean"]
    assert some.contrasts == [("mean", "input")]
    result = compare(some, {0: stream(0)}, tmp_path, progress=False, say=lambda line: None)
    assert result.methods == ["input", "mean"]
    with pytest.raises(UsageError, match="no row 'nothing'; there are: input, gray, mean"):
        rows.only(["nothing"])


def test_missing_packages_are_told_before_the_work(rows, seeds, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'tta-restore\[report\]'"):
        compare(rows, {0: stream(0)}, tmp_path, progress=False)
    assert seeds == []
