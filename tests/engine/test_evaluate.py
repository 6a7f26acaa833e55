"""Records, means, intervals and tables on a stream whose answers are known beforehand."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tta_restore.engine.evaluate.results import FrameRecord, StreamResult, bootstrap_mean
from tta_restore.engine.evaluate.stream import evaluate_stream, identity, scalars
from tta_restore.engine.report.table import text_table


@dataclass
class Frame:
    blurry: Tensor
    sharp: Tensor
    family: str
    photo: str
    position: int


@pytest.fixture
def frames() -> list[Frame]:
    generator = torch.Generator().manual_seed(5)
    stream = []
    for family, noise in (("disk", 0.02), ("ring", 0.1)):
        for position in range(3):
            sharp = torch.rand(3, 24, 20, generator=generator)
            blurry = (sharp + noise * torch.randn(sharp.shape, generator=generator)).clamp(0, 1)
            stream.append(Frame(blurry, sharp, family, f"photo{position}", position))
    return stream


@dataclass
class Report:
    loss: Tensor
    updated: bool
    skipped_because: str | None
    tensors: dict


class Learner:
    """Gets better from frame to frame by looking at nothing: output = input + error that halves."""

    def __init__(self) -> None:
        self.count = 0
        self.report: Report | None = None

    def __call__(self, x: Tensor) -> Tensor:
        self.count += 1
        self.report = Report(torch.tensor(0.5**self.count), True, None, {"tensors": torch.ones(2)})
        return x + 0.2 * 0.5**self.count


def test_every_method_sees_every_frame_from_its_construction_on(frames):
    built = []

    def learner() -> Learner:
        built.append(Learner())
        return built[-1]

    result = evaluate_stream(frames, {"input": lambda: identity, "a": learner, "b": learner}, progress=False)
    assert [m.count for m in built] == [6, 6]
    assert result.methods == ["input", "a", "b"]
    assert result.families == ["disk", "ring"]
    assert [r.psnr for r in result.of("a")] == [r.psnr for r in result.of("b")]
    assert [(r.index, r.position, r.photo) for r in result.of("a")][3] == (3, 0, "photo0")
    assert result.of("a")[1].report == {"loss": 0.25, "updated": True, "skipped_because": None}
    assert result.of("input")[0].report == {}
    noise = (frames[0].blurry - frames[0].sharp).square().mean()
    assert result.of("input")[0].psnr == pytest.approx(float(-10 * noise.log10()), abs=1e-3)
    assert all(r.wall_seconds > 0 for r in result.records)


def test_on_frame_receives_the_output_and_the_method(frames):
    seen = []

    def look(record: FrameRecord, output: Tensor, method: Learner) -> None:
        seen.append((record.index, output.shape, method.count))

    evaluate_stream(frames, {"a": Learner}, progress=False, on_frame=look)
    assert seen == [(i, (1, 3, 24, 20), i + 1) for i in range(6)]


def test_wrong_shapes_and_empty_streams_are_named(frames):
    with pytest.raises(ValueError, match=r"crop returned \(1, 3, 24, 19\) for frame 0, expected \(1, 3, 24, 20\)"):
        evaluate_stream(frames, {"crop": lambda: lambda x: x[..., 1:]}, progress=False)
    with pytest.raises(ValueError, match="expected frames and methods, got 0 and 1"):
        evaluate_stream([], {"a": Learner}, progress=False)


def record(method: str, psnr: float, **changes) -> FrameRecord:
    base = FrameRecord(method, 0, 0, "disk", "p", 0, psnr, psnr / 100, wall_seconds=2.0, cpu_seconds=3.0)
    return replace(base, **changes)


@pytest.fixture
def known() -> StreamResult:
    records = []
    for stream in (0, 1):
        for index, (family, position) in enumerate([("disk", 0), ("disk", 1), ("ring", 0), ("ring", 1)]):
            where = {"stream": stream, "index": index, "family": family, "position": position}
            records.append(record("base", 20 + index, **where))
            gain = {"disk": 1.0, "ring": -0.5}[family] + position
            records.append(record("ours", 20 + index + gain, **where))
    return StreamResult(tuple(records), {"seed": 0})


def test_means_gains_and_shares(known):
    assert known.value("base").mean == pytest.approx(21.5)
    assert known.value("base", "ssim", "ring").mean == pytest.approx(0.225)
    assert known.gain("ours", "base").mean == pytest.approx(0.75)
    assert known.gain("ours", "base", family="ring").mean == pytest.approx(0.0)
    assert [(p, g.mean) for p, g in known.gain_by_position("ours", "base")] == [
        (0, pytest.approx(0.25)),
        (1, pytest.approx(1.25)),
    ]
    assert known.share_above("ours", "base") == 0.75
    worst, gain = known.worst("ours", "base")
    assert (worst.family, worst.position, gain) == ("ring", 0, pytest.approx(-0.5))
    assert known.cost("ours") == {"cpu_seconds": 3.0, "wall_seconds": 2.0, "longest_wall_seconds": 2.0}
    assert known.gain("base", "base").low == 0 == known.gain("base", "base").high


def test_blocks_are_streams_times_families(known):
    frames, blocks = (known.gain("ours", "base", over=over) for over in ("frames", "blocks"))
    assert (frames.count, frames.over) == (8, "frames")
    assert (blocks.count, blocks.over) == (4, "blocks of stream x family")
    assert blocks.mean == frames.mean


def test_unknown_names_list_what_there_is(known):
    with pytest.raises(ValueError, match=r"no records of 'theirs'; methods are \['base', 'ours'\]"):
        known.value("theirs")
    with pytest.raises(ValueError, match="on 'hex'"):
        known.value("base", family="hex")


def test_merging_streams(known):
    first = StreamResult(tuple(r for r in known.records if r.stream == 0), known.settings)
    second = StreamResult(tuple(r for r in known.records if r.stream == 1), known.settings)
    assert StreamResult.merge([first, second]).gain("ours", "base") == known.gain("ours", "base")
    with pytest.raises(ValueError, match="occur twice"):
        StreamResult.merge([first, first])


def test_bootstrap_interval_covers_like_the_normal_theory():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1)).double()
    interval = bootstrap_mean(values.tolist())
    expected = 1.96 * float(values.std()) / 20
    assert interval.half_width == pytest.approx(expected, rel=0.1)
    assert interval.low < float(values.mean()) < interval.high
    assert interval == bootstrap_mean(values.tolist())
    # Blocks of equal values carry the information of one value each: the interval widens by the root of their size.
    repeated = values[:100].repeat_interleave(4)
    wide = bootstrap_mean(repeated.tolist(), blocks=[i // 4 for i in range(400)])
    narrow = bootstrap_mean(repeated.tolist())
    assert wide.half_width / narrow.half_width == pytest.approx(2, rel=0.15)


def test_blocks_of_different_sizes_weigh_by_their_values():
    interval = bootstrap_mean([0.0] + [1.0] * 9, blocks=["small"] + ["large"] * 9)
    assert (interval.mean, interval.low, interval.high) == (0.9, 0.0, 1.0)


def test_one_block_has_no_interval():
    interval = bootstrap_mean([1.0, 3.0], blocks=["a", "a"])
    assert interval.mean == 2
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match="one block per value"):
        bootstrap_mean([1.0], blocks=[])


def test_files_hold_the_records_and_the_summary(known, tmp_path):
    known = StreamResult((*known.records[:-1], replace(known.records[-1], report={"loss": 0.5})), known.settings)
    known.to_csv(tmp_path / "r.csv")
    with open(tmp_path / "r.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    assert [float(row["psnr"]) for row in rows] == [r.psnr for r in known.records]
    assert rows[-1]["report.loss"] == "0.5"
    assert rows[0]["report.loss"] == ""
    known.to_json(tmp_path / "r.json", "base")
    content = json.loads((tmp_path / "r.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    summary = content["summary"]["methods"]["ours"]
    assert summary["psnr_gain"]["all"]["mean"] == pytest.approx(0.75)
    assert summary["psnr_gain"]["all, over blocks"]["count"] == 4
    assert summary["share_of_frames_above_baseline"] == 0.75
    assert len(content["records"]) == 16
    assert content["settings"] == {"seed": 0}


def test_results_that_are_not_finite_are_counted(known):
    broken = replace(known.records[-1], psnr=float("nan"))
    text = text_table(StreamResult((*known.records[:-1], broken)), "base")
    count = len(known.of(broken.method))
    assert text.endswith(f"{broken.method}: 1 of {count} results are NaN or infinite.")
    assert "NaN" not in text_table(known, "base")


def test_text_table_shows_each_number_once(known):
    text = text_table(known, "base")
    gains = next(part for part in text.split("\n\n") if part.startswith("PSNR gain over base"))
    row = next(line for line in gains.splitlines() if line.startswith("ours"))
    assert row.split()[1] == "+1.50"
    assert "+0.75" in row
    assert row.endswith("75%")
    assert "base" not in [line.split()[0] for line in gains.splitlines()[4:]]
    assert "Seconds per frame" in text
    assert max(len(line) for line in text.splitlines()) < 120


def test_scalars_of_reports():
    assert scalars(None) == {}
    assert scalars({"a": 1, "b": torch.ones(2), "c": float("nan"), "d": "x"}) == {"a": 1, "c": "nan", "d": "x"}
    assert scalars({"loss": 1.0, "extra": {"resets": 2, "loss": 9.0}}) == {"loss": 1.0, "resets": 2}
