"""The demo: frames and rows for three restorers."""

import pytest
import torch

from tta_restore import adapters
from tta_restore.engine.demo.demo import BASELINE, SHOWN, comparison, demo_streams, run_demo
from tta_restore.engine.run.usage import UsageError


def test_every_restorer_has_its_stream_and_rows():
    streams = demo_streams(1, seed=0)
    assert [len(frames) for frames in streams.values()] == [3, 2, 2]
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
