"""The demo: frames and rows for three restorers."""

import multiprocessing

import pytest
import torch

from tta_restore import adapters
from tta_restore._core.progress import ProgressBar
from tta_restore.engine.demo.demo import BASELINE, SHOWN, comparison, demo_streams, run_demo
from tta_restore.engine.evaluate.lenses import compare
from tta_restore.engine.run.usage import UsageError


def test_every_camera_has_its_stream_and_rows():
    streams = demo_streams(1, seed=0)
    assert [len(frames) for frames in streams.values()] == [2, 2, 1, 2]
    rows = {contender.name: contender for contender in comparison().contenders}
    assert set(rows) == {"input", "source", BASELINE, SHOWN}
    for stream, frames in streams.items():
        frame = frames[0]
        assert frame.sharp.shape == (3, 144, 144)
        for name in ("input", "source", BASELINE):
            assert rows[name].build(stream)(frame.blurry[None])[0].shape == frame.sharp.shape
        assert isinstance(rows[SHOWN].build(stream), adapters.DegradationPairs)
    assert torch.equal(demo_streams(1, seed=0)[1][0].blurry, streams[1][0].blurry)
    assert not torch.equal(demo_streams(1, seed=1)[1][0].blurry, streams[1][0].blurry)


def test_a_number_of_frames_below_one_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--frames: expected at least 1, got 0"):
        run_demo(out=tmp_path / "demo", frames=0)
    with pytest.raises(UsageError, match="--processes: expected at least 1, got 0"):
        run_demo(out=tmp_path / "demo", processes=0)


@pytest.mark.thorough
def test_processes_measure_the_same_and_end_with_an_error(tmp_path, monkeypatch):
    bars: list[ProgressBar] = []

    class Bar(ProgressBar):
        def __init__(self, **options):
            super().__init__(**options)
            bars.append(self)

    monkeypatch.setattr("tta_restore.engine.evaluate.lenses.ProgressBar", Bar)
    quick = comparison().only(["input", "source", BASELINE])
    streams = {seed: frames for seed, frames in demo_streams(1, seed=0).items() if seed > 1}
    results = [
        compare(quick, streams, tmp_path / str(count), processes=count, say=lambda text: None) for count in (1, 2)
    ]
    values = [[(r.method, r.stream, r.family, r.psnr, r.ssim) for r in result.records] for result in results]
    assert values[0] == values[1]
    assert [bar.total for bar in bars] == [9, 9]  # one bar over all streams
    assert (bars[0].n, bars[0].seconds_left) == (9, 0)
    assert bars[1].n > 0  # the last ones may be counted after the work has ended
    with pytest.raises(IndexError):
        compare(quick, {9: streams[2], 2: streams[2]}, tmp_path, processes=2, progress=False)
    assert not multiprocessing.active_children()
