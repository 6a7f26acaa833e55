"""`tta-restore evaluate --degradations`, rows with settings, and `calibrate` and `export`, on networks of a user."""

from __future__ import annotations

import csv
import json
import re

import pytest
import torch
from safetensors.torch import load_file

from tta_restore.adapters import SiamCTTA
from tta_restore.cli import main
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.degradations import Compose
from tta_restore.engine.evaluate.degradations import degraded_stream
from tta_restore.engine.evaluate.rows import row_of
from tta_restore.engine.run import calibrate
from tta_restore.engine.run.extensions import parse_degradation
from tta_restore.engine.run.usage import UsageError

CODE = """
import torch
from torch import nn
from tta_restore.adapters import Adapter
from tta_restore.degradations import Noise

def net():
    made = nn.Conv2d(3, 3, 3, padding=1)
    nn.init.dirac_(made.weight)
    nn.init.zeros_(made.bias)
    with torch.no_grad():
        made.weight[:, :, 1, 2] += 0.01  # no symmetry: views of a frame differ
    return made

def double():
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))

def loud():
    return Noise(read_std=0.3)

class Darker(Adapter):
    def forward(self, x):
        return super().forward(x) * 0.5
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "degnets.py").write_text(CODE)
    generator = torch.Generator().manual_seed(0)
    for i in range(2):
        write_image(tmp_path / "photos" / f"{i}.png", Image(torch.rand(3, 140, 150, generator=generator)))
    return tmp_path


def test_a_stream_shows_each_degradation_and_is_reproducible():
    photo = [("flat", torch.full((3, 40, 40), 0.5))]
    options = {"frames": 2, "size": 32, "scale": 1, "seed": 4}
    first, again = (degraded_stream(["noise:51", "blur:2"], photo, **options) for _ in range(2))
    assert [(f.family, f.position) for f in first] == [("noise:51", 0), ("noise:51", 1), ("blur:2", 0), ("blur:2", 1)]
    assert all(torch.equal(a.blurry, b.blurry) for a, b in zip(first, again, strict=True))
    assert (first[0].blurry - 0.5).std().item() == pytest.approx(0.2, rel=0.1)  # 51/255
    assert (first[2].blurry - 0.5).abs().max() < 0.01  # a flat photo cannot be blurred
    half = degraded_stream(["noise:1"], photo, **options | {"scale": 2})[0]
    assert (half.blurry.shape[-1], half.sharp.shape[-1]) == (16, 32)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noise:x", "expected a number, got 'x'"),
        ("fog:3", "no degradation 'fog:3'; there are: noise"),
        ("lens:heart", "lens to be one of"),
        ("jpeg:0", "quality"),
        ("torch:nn", "torch:nn"),
    ],
)
def test_what_is_no_degradation_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        parse_degradation(text)


def test_degradations_are_composed_in_order():
    both = parse_degradation("noise:10+jpeg:50")
    assert isinstance(both, Compose)
    assert "jpeg" in str(both.to_dict()).lower()


def test_rows_take_settings():
    row = row_of("tent[variant=official,lr=1e-3,betas=[0.9,0.99]]")
    assert row.method.name == "tent"
    assert row.method.settings == {"variant": "official", "lr": 1e-3, "betas": [0.9, 0.99]}
    assert row.file == "tent_variant_official_lr_1e-3_betas_0.9_0.99"
    with pytest.raises(UsageError, match="KEY=VALUE"):
        row_of("tent[official]")


def test_own_model_method_and_degradation_in_one_command(folder, capsys):
    command = ["evaluate", "--model", "degnets:net", "--degradations", "noise:10", "degnets:loud", "--photos", "photos"]
    command += ["--methods", "degnets:Darker", "--seeds", "1", "--frames", "1", "--out", "out", "-q"]
    assert main(command) == 0, capsys.readouterr().err
    rows = list(csv.DictReader((folder / "out" / "frames.csv").read_text().splitlines()))
    assert {row["family"] for row in rows} == {"noise:10", "degnets:loud"}
    psnr = {(row["method"], row["family"]): float(row["psnr"]) for row in rows}
    assert psnr["source", "noise:10"] == pytest.approx(28.1, abs=1.0)
    assert psnr["degnets:Darker", "noise:10"] < 15
    assert psnr["source", "degnets:loud"] < 14
    assert (folder / "out" / "report.html").is_file()


def test_a_method_that_does_not_suit_is_refused_before_the_first_frame(folder, capsys):
    command = ["evaluate", "--model", "degnets:double", "--degradations", "noise:10", "--methods", "reblur-pairs"]
    assert main([*command, "--out", "out"]) == 2
    assert "scale 1" in capsys.readouterr().err
    assert not (folder / "out").exists()


@pytest.mark.thorough
def test_calibrate_writes_a_checkpoint_with_the_models_own_keys(folder, capsys):
    (folder / "photos" / "0.png").write_bytes(b"no image")
    command = ["calibrate", "photos", "--model", "degnets:net", "--method.steps", "2", "--limit", "3", "--crop", "64"]
    assert main([*command, "-o", "mine.safetensors"]) == 1  # one photo could not be read
    told = capsys.readouterr()
    assert "verdict" in told.out
    assert "error: photos/0.png" in told.err
    assert set(load_file(folder / "mine.safetensors")) == {"weight", "bias"}
    report = json.loads((folder / "mine.json").read_text())
    assert report["frames"] == 1
    assert report["verdict"] in told.out
    page = (folder / "mine.html").read_text()
    assert "1. 1.png" in page  # the photo that was used
    assert "photos/0.png: " in page
    assert page.count("data:image/png") == 2  # the photo, and what the original model makes of it
    assert main(["restore", "photos/1.png", "-o", "r.png", "--method", "source", "--model", "degnets:net",
                 "--checkpoint", "mine.safetensors"]) == 0  # fmt: skip


@pytest.mark.thorough
def test_calibrate_names_what_it_did_not_use(folder, capsys):
    """Two photos are taken until the model is steady: the others are read for damage, or counted."""
    for name in ("8.png", "9.png"):
        (folder / "photos" / name).write_bytes((folder / "photos" / "1.png").read_bytes())
    (folder / "photos" / "10.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    (folder / "photos" / "11.png").write_bytes(b"not opened")
    (folder / "photos" / "notes.txt").write_text("no photo")
    for number in range(2, 8):
        (folder / "photos" / f"{number}.png").unlink(missing_ok=True)
    command = ["calibrate", "photos", "--model", "degnets:net", "--method.steps", "2", "--crop", "64"]
    command += ["--method.calibration_frames", "1", "--limit"]
    count = len(list((folder / "photos").glob("*.png")))
    assert main([*command, str(count - 1), "-o", "mine.safetensors"]) == 1
    err = capsys.readouterr().err
    assert "error: photos/10.png: truncated or damaged PNG" in err
    assert f"1 photo could not be read, {count - 3} photos not used, 1 photo beyond --limit not opened" in err
    assert "left out: 1 .txt" in err
    report = json.loads((folder / "mine.json").read_text())
    assert (report["frames"], report["unused"], report["unopened"]) == (1, count - 3, 1)
    assert f"<li>{count - 3} photos not used</li>" in (folder / "mine.html").read_text()


@pytest.fixture
def quick(monkeypatch):
    """An adapter of two steps per photo in the place of the recommended one, which examines the model first."""

    def made(restorer, *, seed=0, lr=0.05):
        return SiamCTTA(restorer, select="all", steps=2, lr=lr, seed=seed, views="rot4")

    monkeypatch.setattr(calibrate.adapters, "recommended", made)


@pytest.mark.usefixtures("quick")
def test_an_interrupted_calibration_goes_on_and_ends_with_the_same_bits(folder, capsys, monkeypatch):
    (folder / "photos" / "00.png").write_bytes(b"no image")
    (folder / "photos" / "2.png").write_bytes((folder / "photos" / "1.png").read_bytes())
    command = ["calibrate", "photos", "--model", "degnets:net", "--crop", "64", "-o"]
    assert main([*command, "whole.safetensors"]) == 1
    whole = json.loads((folder / "whole.json").read_text())
    assert whole["frames"] == 3
    left = iter([True, True, True])  # a photo, the damaged one and another photo
    read_image = calibrate.read_image

    def interrupted(path):
        if not next(left, False):
            raise KeyboardInterrupt
        return read_image(path)

    monkeypatch.setattr(calibrate, "read_image", interrupted)
    assert main([*command, "parts.safetensors"]) == 130
    assert not (folder / "parts.safetensors").exists()
    assert (folder / ".parts.safetensors.state").exists()
    monkeypatch.setattr(calibrate, "read_image", read_image)
    capsys.readouterr()
    assert main([*command, "parts.safetensors"]) == 1
    told = capsys.readouterr()
    assert "continued behind the first 3 photos" in told.out
    assert "error: photos/00.png" in told.err
    parts = json.loads((folder / "parts.json").read_text())
    assert {name for name in whole if str(whole[name]) != str(parts[name])} == {"seconds"}
    pages = [re.sub("[0-9.]+ s<", "<", (folder / f"{name}.html").read_text()) for name in ("whole", "parts")]
    assert pages[0] == pages[1]
    one, two = (load_file(folder / f"{name}.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["bias"].abs().max() > 0  # it learned
    assert not list(folder.glob(".*state*"))


@pytest.mark.usefixtures("quick")
def test_the_state_of_another_calibration_is_not_continued(folder, capsys, monkeypatch):
    command = ["calibrate", "photos", "--model", "degnets:net", "--crop", "64", "-o", "mine.safetensors"]
    write_checkpoint = calibrate.write_checkpoint
    monkeypatch.setattr(calibrate, "write_checkpoint", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main([*command, "--method.lr", "0.01"]) == 130
    assert (folder / ".mine.safetensors.state").exists()
    monkeypatch.setattr(calibrate, "write_checkpoint", write_checkpoint)
    assert main([*command, "--method.lr", "0.02"]) == 0
    assert "continued" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos", "-o", "mine.pth"], "ends in .safetensors"),
        (["absent", "-o", "a.safetensors"], "absent: no such file"),
        (["photos", "-o", "photos"], "expected a file, got a folder"),
        (["photos", "-o", "a.safetensors", "--budget", "soon"], "expected budget"),
        (["photos", "-o", "a.safetensors", "--model", "degnets:nothing"], "has no nothing"),
    ],
)
def test_calibrate_refuses_before_the_work(folder, capsys, arguments, message):
    assert main(["calibrate", *arguments, *([] if "--model" in arguments else ["--model", "degnets:net"])]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "a.safetensors").exists()


def test_a_state_is_exported_as_a_checkpoint(folder, capsys):
    common = ["--model", "degnets:net", "--method", "siam-ctta", "--method.lr", "0.01", "--state", "s.safetensors"]
    assert main(["restore", "photos", "-o", "out", *common, "-q"]) == 0
    assert main(["export", *common, "-o", "new.safetensors", "--role", "student"]) == 0
    weights = load_file(folder / "new.safetensors")
    assert set(weights) == {"weight", "bias"}
    assert weights["bias"].abs().max() > 0  # it is not the source
    assert main(["export", *common[:4], "--state", "photos/0.png", "-o", "x.safetensors"]) == 2
    assert "--state photos/0.png" in capsys.readouterr().err
