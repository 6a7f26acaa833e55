"""The page of a calibration opens on the photo that changed most, and states one gain with its baseline."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from tta_restore.adapters import CalibrationReport
from tta_restore.engine.report.calibration import (
    CALIBRATED,
    ORIGINAL,
    PHOTO,
    CalibrationPage,
    compare_photos,
    write_calibration,
)
from tta_restore.models import RestorerSpec, as_restorer


class Offset(nn.Module):
    """Adds a value to the right half of an image, enlarged by an integer."""

    def __init__(self, value, scale=1):
        super().__init__()
        self.value, self.scale = nn.Parameter(torch.tensor(value)), scale

    def forward(self, x):
        mask = (torch.arange(x.shape[-1]) >= x.shape[-1] // 2).to(x)
        y = x + self.value * mask
        return y.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)


def report(gain, *, trust=0.9, **changes):
    known = {
        "model": Offset(0.1),
        "frames": 2,
        "steps": 48,
        "seconds": 12.3,
        "task": "denoise",
        "degradation": {"noise": 24.93, "blur": 0.3, "jpeg_quality": 100.0},
        "gain": gain,
        "trust": trust,
        "learning_rate": 0.001,
        "gains": (0.2, gain),
        "messages": ("frame 1: a <remark>",),
    }
    return CalibrationReport(**known | changes)


def written(tmp_path, page):
    write_calibration(tmp_path / "camera.html", page)
    html = (tmp_path / "camera.html").read_text()
    assert list(tmp_path.iterdir()) == [tmp_path / "camera.html"]
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)  # it asks for nothing
    words = re.sub(r"<(style|script)>.*?</\1>|<[^>]+>", " ", html, flags=re.DOTALL)
    return " ".join(words.split())


@pytest.mark.parametrize("scale", [1, 2])
def test_parts_where_the_models_differ(scale):
    """The photo that changes more comes first, and its part is where the change is, aligned in all images."""
    original = as_restorer(Offset(0.0, scale), RestorerSpec(scale=scale))
    generator = torch.Generator().manual_seed(0)
    small, wide = (torch.rand(3, *size, generator=generator) * 0.5 for size in ((40, 50), (60, 900)))
    samples = compare_photos([("wide", wide), ("small", small)], original, Offset(0.25, scale))
    assert [sample.title for sample in samples] == ["wide", "small"]  # all of the part changed; half of the whole photo
    assert [sample.before for sample in samples] == [ORIGINAL, ORIGINAL]
    for sample, side in zip(samples, ((60, 320), (40, 50)), strict=True):
        assert sample.pictures[PHOTO].shape == (3, *side)
        assert sample.pictures[CALIBRATED].shape == (3, scale * side[0], scale * side[1])
        repeated = sample.pictures[PHOTO].repeat_interleave(scale, -1).repeat_interleave(scale, -2)
        assert torch.equal(sample.pictures[ORIGINAL], repeated)
    change = samples[0].pictures[CALIBRATED] - samples[0].pictures[ORIGINAL]
    assert torch.allclose(change, torch.tensor(0.25))


def test_without_a_gain_the_photo_is_compared_with_the_original_model():
    photo = torch.full((3, 40, 50), 0.5)
    (sample,) = compare_photos([("photo", photo)], as_restorer(Offset(0.2), RestorerSpec()), None)
    assert (sample.before, sample.after) == (PHOTO, ORIGINAL)
    assert set(sample.pictures) == {PHOTO, ORIGINAL}


def test_a_gain(tmp_path):
    samples = compare_photos([("b.png", torch.rand(3, 40, 50))], as_restorer(Offset(0.0), RestorerSpec()), Offset(0.2))
    facts = {"model": "net.pth"}
    page = CalibrationPage("A <title>", report(0.63), samples, ["a.png", "b.png"], ["c.png: empty file"], facts)
    text = written(tmp_path, page)
    assert "A &lt;title&gt;" in text
    assert "+0.63 dB PSNR adapted weights over the original ones, on held-out pairs" in text
    assert "checkpoint adapted weights trust 0.90 photos used 2 optimizer steps 48 time 12 s" in text
    assert "Worth using: +0.63 dB on held-out pairs, trust 0.90." in text
    assert "24.9 / 255" in text
    assert "JPEG quality none found" in text
    assert "filter that correlates it" not in text
    found = {"noise": 20.0, "noise_filter": 0.66}
    (tmp_path / "camera.html").unlink()
    filtered = written(tmp_path, CalibrationPage("title", report(0.63, degradation=found)))
    assert "filter that correlates it, standard deviation 0.66 pixels" in filtered
    assert "1. a.png +0.20 2. b.png +0.63" in text
    assert "frame 1: a &lt;remark&gt; c.png: empty file" in text
    assert "model net.pth" in text
    assert "holds the original weights" not in text


def test_no_gain(tmp_path):
    text = written(tmp_path, CalibrationPage("title", report(0.02), photos=["a", "b"]))
    assert "No gain: keep the original (+0.02 dB on held-out pairs, trust 0.90)." in text
    assert "checkpoint original weights" in text
    assert "Nothing was gained, so the checkpoint holds the original weights." in text


def test_a_gain_that_the_photos_do_not_confirm(tmp_path):
    """A table of gains above a verdict of none needs the reason; equal remarks are one line."""
    refused = "the student was not trusted"
    messages = (f"frame 1: {refused}", "frame 2: learning rate", f"frame 2: {refused}", "ended by the budget")
    found = report(0.0, trust=0.0, gains=(0.2, 0.94), messages=messages)
    why = "up to +0.94 dB on held-out pairs, which tests on the frames did not confirm: trust 0.00"
    assert found.verdict == f"no gain: keep the original ({why})"
    assert found.grouped_messages == (f"frames 1, 2: {refused}", "frame 2: learning rate", "ended by the budget")
    assert str(found).count(refused) == 1
    text = written(tmp_path, CalibrationPage("title", found, photos=["a", "b"]))
    assert f"frames 1, 2: {refused} frame 2: learning rate ended by the budget" in text
    assert "it is not used where a test on the photos does not confirm" in text


def test_not_measured(tmp_path):
    page = CalibrationPage("title", report(math.nan, gains=(), degradation={}, messages=()), photos=["a", "b"])
    text = written(tmp_path, page)
    assert "not measured checkpoint adapted weights photos used 2" in text
    assert "nan" not in text.lower().split()
    assert "Estimated degradation" not in text
    assert "Gain after each photo" not in text
