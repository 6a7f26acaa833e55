"""Videos of data sets measured by their own protocols."""

import csv

import pytest
import torch

from tta_restore import metrics
from tta_restore.cli import main
from tta_restore.data.io.image import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.data.synthetic import photos
from tta_restore.data.synthetic.camera_shake import simulate_shake
from tta_restore.degradations.motion import CameraShake
from tta_restore.engine.evaluate.clips import evaluate_clips, summarize


def clip(frames=2):
    picture = photos.load("grace_hopper")[:, 100:260, 100:260]
    return simulate_shake(
        picture, CameraShake(), torch.Generator().manual_seed(0), frames=frames, size=48, num_subframes=5
    )


def test_the_protocols():
    """DVD, REDS and GoPro: 8 bits and luma; RealBlur: aligned, so that a darker and moved result costs nothing."""
    material = clip()
    (first, _) = evaluate_clips(iter, [material], progress=False)
    for_psnr, for_ssim = metrics.protocols["meta-transferring"]
    pair = material.blurry[:1], material.sharp[:1]
    assert first.psnr == first.input_psnr == pytest.approx(metrics.psnr(*pair, protocol=for_psnr).item())
    assert first.ssim == pytest.approx(metrics.ssim(*pair, protocol=for_ssim).item())

    def darker_and_moved(_):
        yield from 0.7 * material.sharp.roll(1, 3)

    plain = evaluate_clips(darker_and_moved, [material], progress=False)
    aligned = evaluate_clips(darker_and_moved, [material], align=True, progress=False)
    assert aligned[0].aligned
    assert aligned[0].psnr > plain[0].psnr + 8


def test_wrong_material():
    with pytest.raises(ValueError, match="at least one clip"):
        evaluate_clips(iter, [])
    with pytest.raises(ValueError, match="expected frames of"):
        evaluate_clips(lambda frames: iter(frames[..., 1:]), [clip()], progress=False)


@pytest.mark.parametrize(("layout", "names"), [("reds", ("blur", "sharp")), ("realblur", ("blur", "gt"))])
def test_from_end_to_end(tmp_path, capsys, layout, names):
    for video in ("one", "two"):
        material = clip()
        for name, frames in zip(names, (material.blurry, material.sharp), strict=True):
            for number, frame in enumerate(frames):
                write_image(tmp_path / "data/test" / video / name / f"{name}_{number}.png", Image(frame))
    arguments = ["evaluate-clips", str(tmp_path / "data"), "--layout", layout, "--model", "torch.nn:Identity"]
    assert main([*arguments, "--out", str(tmp_path / "out.csv"), "--limit", "1"]) == 0
    said = capsys.readouterr().out
    assert "2 frames of 2 clips" in said
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["clip"] for row in rows] == ["one", "two"]
    assert float(rows[0]["psnr"]) == float(rows[0]["input_psnr"])
    assert (rows[0]["aligned"] == "True") == (layout == "realblur")
    assert main([*arguments, "--split", "train"]) == 2
    assert "expected videos in train/<video>/blur" in capsys.readouterr().err


def test_means_over_frames_and_over_clips():
    from tta_restore.engine.evaluate.clips import ClipFrameRecord

    rows = [ClipFrameRecord(c, 0, 20.0, 0.5, p, 0.9, True) for c, p in (("a", 30.0), ("a", 30.0), ("b", 24.0))]
    assert "restored  PSNR 28 (27) dB" in summarize(rows)
