"""Videos of data sets measured by their own protocols."""

import csv

import pytest
import torch
from _meta_networks import Deblur
from safetensors.torch import load_file
from torch import nn

from tta_restore import metrics
from tta_restore._core.progress import ProgressBar
from tta_restore.cli import main
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.data.synthetic import photos
from tta_restore.data.synthetic.camera_shake import simulate_shake
from tta_restore.degradations.motion import CameraShake
from tta_restore.engine.evaluate.clips import evaluate_clips, summarize
from tta_restore.engine.evaluate.results import FrameRecord
from tta_restore.engine.evaluate.runner import Unit, run_units
from tta_restore.engine.run.methods import create_clip_method
from tta_restore.engine.run.models import load_restorer
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train.files import write_weights
from tta_restore.engine.train.loop import Processes
from tta_restore.models import RestorerSpec, as_restorer, create_model


def clip(frames=2):
    picture = photos.load("grace_hopper")[:, 100:260, 100:260]
    return simulate_shake(
        picture, CameraShake(), torch.Generator().manual_seed(0), frames=frames, size=48, num_subframes=5
    )


@pytest.mark.thorough
def test_the_protocols():
    """DVD, REDS and GoPro: 8 bits and luma; RealBlur: aligned, so that a darker and moved result costs nothing."""
    material = clip()
    (first, _) = evaluate_clips(iter, [material], progress=False)
    for_psnr, for_ssim = metrics.protocols["meta-transferring"]
    pair = material.blurry[:1], material.sharp[:1]
    assert first.psnr == first.metrics["input_psnr"] == pytest.approx(metrics.psnr(*pair, protocol=for_psnr).item())
    assert first.ssim == pytest.approx(metrics.ssim(*pair, protocol=for_ssim).item())

    def darker_and_moved(_):
        yield from 0.7 * material.sharp.roll(1, 3)

    plain = evaluate_clips(darker_and_moved, [material], progress=False)
    aligned = evaluate_clips(darker_and_moved, [material], align=True, progress=False)
    assert aligned[0].metrics["aligned"]
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
    assert [row["family"] for row in rows] == ["one", "two"]
    assert float(rows[0]["psnr"]) == float(rows[0]["input_psnr"])
    assert (float(rows[0]["aligned"]) == 1) == (layout == "realblur")
    assert main([*arguments, "--split", "train"]) == 2
    assert "expected videos in train/<video>/blur" in capsys.readouterr().err


def test_means_over_frames_and_over_clips():
    own = {"input_psnr": 20.0, "input_ssim": 0.5, "aligned": 1.0}
    rows = [
        FrameRecord("m", 0, 0, clip, clip, 0, psnr, 0.9, 0.1, 0.1, metrics=own)
        for clip, psnr in (("a", 30.0), ("a", 30.0), ("b", 24.0))
    ]
    assert "restored  PSNR 28 (27) dB" in summarize(rows)


def test_units_of_an_earlier_run_and_of_other_processes_are_no_measure_of_time(tmp_path, monkeypatch):
    counted: list[str] = []
    monkeypatch.setattr(ProgressBar, "skip", lambda bar: counted.append("skipped"))
    monkeypatch.setattr(ProgressBar, "update", lambda bar: counted.append("measured"))

    class Second(Processes):
        def wait(self) -> None:
            """The first process has written its share by now."""
            (tmp_path / "2.jsonl").touch()

    (tmp_path / "0.jsonl").touch()
    (tmp_path / "1.jsonl").touch()
    run_units([Unit(str(n), list) for n in range(4)], tmp_path, processes=Second(1, 2))
    assert counted == ["skipped", "skipped", "skipped", "measured"]


def test_units_are_run_once_and_shared_by_processes(tmp_path):
    ran: list[int] = []

    def unit(number: int, *, broken: bool = False) -> Unit:
        def run() -> list[FrameRecord]:
            if broken:
                raise KeyboardInterrupt
            ran.append(number)
            return [FrameRecord("m", 0, number, "f", "p", 0, 20.0 + number, 0.9, 0.1, 0.1, metrics={"more": 1.5})]

        return Unit(str(number), run)

    with pytest.raises(KeyboardInterrupt):
        run_units([unit(0), unit(1), unit(2, broken=True), unit(3)], tmp_path, progress=False)
    assert ran == [0, 1]
    whole = run_units([unit(n) for n in range(4)], tmp_path, progress=False)
    assert ran == [0, 1, 2, 3]
    assert [record.psnr for record in whole] == [20.0, 21.0, 22.0, 23.0]
    assert whole[3].metrics == {"more": 1.5}
    ran.clear()

    class Second(Processes):
        def wait(self) -> None:
            """The first process has written its share by now."""
            for n in (0, 2):
                (shared / f"{n}.jsonl").write_text((tmp_path / f"{n}.jsonl").read_text())

    shared = tmp_path / "shared"
    shared.mkdir()
    found = run_units([unit(n) for n in range(4)], shared, progress=False, processes=Second(1, 2))
    assert ran == [1, 3]
    assert found == whole

    class Told(Processes):
        def wait(self) -> None:
            """The first process has failed by now, or has not."""
            (failed / "failed.0.txt").write_text("0: damaged")

    failed = tmp_path / "failed"
    failed.mkdir()
    with pytest.raises(UsageError, match="^0: damaged$"):
        run_units([unit(n) for n in range(2)], failed, progress=False, processes=Told(1, 2))

    def absent() -> list[FrameRecord]:
        raise OSError("1: no such file")

    with pytest.raises(OSError, match="1: no such file"):  # its own one, and the others are told
        run_units([unit(0), Unit("2", absent)], failed, progress=False, processes=Told(1, 2))
    assert (failed / "failed.1.txt").read_text() == "1: no such file"


@pytest.mark.thorough
def test_the_weights_of_every_clip_are_kept(tmp_path, capsys):
    for number, video in enumerate(("one", "two")):
        material = clip(8)
        for name, frames in (("blur", material.blurry), ("sharp", material.sharp)):
            for time, frame in enumerate(frames * (1 - 0.3 * number)):
                write_image(tmp_path / "data/test" / video / name / f"{time}.png", Image(frame))
    model = ["--model", "_meta_networks:Deblur", "--method", "meta-transfer", "--method.num_patches", "2"]
    model += ["--method.patch_size", "32", "--method.min_sharpness_gain", "0", "--method.skip_sharp_frames", "false"]
    model += ["--method.min_blur_rms", "0", "--method.distance", "tta_restore.losses:charbonnier_edge_loss"]
    arguments = ["evaluate-clips", str(tmp_path / "data"), "--layout", "reds", *model, "--method.lr", "0.01"]
    assert main([*arguments, "--checkpoints", str(tmp_path / "kept")]) == 0, capsys.readouterr().err
    one, two = (load_file(tmp_path / f"kept/{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == Deblur().state_dict().keys()
    assert not torch.equal(one["last.weight"], two["last.weight"])
    with pytest.raises(
        ValueError, match="holds weights of _meta_networks:Deblur; .*: give --model _meta_networks:Deblur"
    ):
        load_restorer(str(tmp_path / "kept/one.safetensors"))
    assert main([*arguments, "--method.distance", "math:nothing"]) == 2
    assert "math:nothing: math has no nothing" in capsys.readouterr().err
    assert main([*arguments, "--method.distance", "3"]) == 2


@pytest.mark.thorough
def test_the_weights_of_a_clip_load_by_their_file_and_clips_left_as_they_are_are_told(tmp_path, capsys):
    material = clip(3)
    for name, frames in (("blur", material.blurry), ("sharp", material.sharp)):
        for time, frame in enumerate(frames):
            write_image(tmp_path / "data/test/one" / name / f"{time}.png", Image(frame))
    reblur = {"fusion": "channels", "base_channels": 2, "num_layers": 1}
    networks = {"restorer": create_model("jdrl_unet", width=2), "reblur": create_model("video_reblur", **reblur)}
    write_weights(tmp_path, networks, {"restorer": ("jdrl_unet", {"width": 2}), "reblur": ("video_reblur", reblur)})
    words = ["evaluate-clips", str(tmp_path / "data"), "--layout", "reds", "--method", "meta-transfer", "--model"]
    words += [str(tmp_path / "restorer.safetensors"), "--reblur", str(tmp_path / "reblur.safetensors")]
    words += ["--method.num_patches", "1", "--method.patch_size", "32", "--method.lr", "0.01"]
    kept = [*words, "--method.min_sharpness_gain", "0", "--checkpoints", str(tmp_path / "kept")]
    assert main(kept) == 0, capsys.readouterr().err
    assert "not adapted to" not in capsys.readouterr().out
    adapted = load_restorer(str(tmp_path / "kept/one.safetensors")).module.state_dict()
    original = networks["restorer"].state_dict()
    assert adapted.keys() == original.keys()
    assert not all(torch.equal(adapted[name], original[name]) for name in original)
    assert main([*words, "--method.min_sharpness_gain", "60"]) == 0
    assert "not adapted to, in part or at all: one (no location of the clip" in capsys.readouterr().out


class Averaged(nn.Module):
    """Mean over the frames that it is given, for the middle frame or for each frame."""

    def __init__(self, frames):
        super().__init__()
        self.spec = RestorerSpec(frames=frames)

    def forward(self, x):
        mean = x.mean(1)
        return mean if self.spec.frames else mean[:, None].expand_as(x)


@pytest.mark.parametrize("frames", [3, None])
def test_the_source_of_a_model_of_clips_gets_windows_or_the_clip(frames):
    clip = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = torch.stack(list(create_clip_method("source", as_restorer(Averaged(frames)))(clip)))
    if frames is None:
        expected = clip.mean(0, keepdim=True).expand_as(clip)
    else:
        padded = clip[[0, 0, 1, 2, 3, 3]]
        expected = torch.stack([padded[t : t + 3].mean(0) for t in range(4)])
    torch.testing.assert_close(found, expected)
