"""Pairs of files measured as they are and aligned."""

import csv

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tta_restore.cli import main
from tta_restore.data.datasets.layouts import find_pairs
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.data.synthetic import photos
from tta_restore.engine.evaluate.pairs import evaluate_pairs
from tta_restore.models import as_restorer, create_model
from tta_restore.models.optical_flow import LucasKanade


@pytest.fixture
def data(tmp_path):
    """Pairs whose sharp image is the input two pixels further left: an identity that is right but not aligned."""
    picture = F.avg_pool2d(photos.load("motorcycle_left")[None, :, 100:400, 100:400], 2)[0]
    for i in range(2):
        crop = picture[:, 10 * i : 10 * i + 100]
        for folder, pixels in (("blurry", crop[..., 2:102]), ("sharp", crop[..., :100])):
            path = tmp_path / "data" / folder / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, Image(pixels))
    return tmp_path


def test_alignment_is_what_the_columns_differ_by(data):
    restorer = as_restorer(torch.nn.Identity())
    records = evaluate_pairs(restorer, find_pairs(data / "data", "folders"), flow=LucasKanade(), progress=False)
    assert [record.photo for record in records] == ["0", "1"]
    for record in records:
        assert record.psnr == pytest.approx(record.metrics["input_psnr"])
        assert record.metrics["aligned_psnr"] > record.psnr + 5
        assert record.metrics["aligned_ssim"] > record.ssim + 0.05
    with pytest.raises(ValueError, match="at least one pair"):
        evaluate_pairs(restorer, [], flow=LucasKanade())


def test_on_the_command_line(data, capsys, monkeypatch):
    monkeypatch.chdir(data)
    (data / "plain.py").write_text("import torch\nModel = torch.nn.Identity\n")
    arguments = ["evaluate-pairs", "data", "--layout", "folders", "--model", "plain:Model", "--flow", "lucas_kanade"]
    assert main([*arguments, "--out", "pairs.csv"]) == 0
    assert "2 pairs: input " in capsys.readouterr().out
    rows = list(csv.DictReader((data / "pairs.csv").read_text().splitlines()))
    assert [row["photo"] for row in rows] == ["0", "1"]
    assert not (data / "pairs.csv.run").exists()
    assert float(rows[0]["aligned_psnr"]) > float(rows[0]["psnr"])
    assert main(["evaluate-pairs", "data", "--layout", "sdd", "--model", "plain:Model"]) == 2
    assert "expected test/blur and test/gt in it for sdd" in capsys.readouterr().err


def test_blur_maps_kernels_and_masks_are_written(data, capsys):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, reblur = create_model("jdrl_journal", width=2, map_width=4), create_model("jdrl_reblur", width=2)
    torch.save(model.state_dict(), data / "model.pth")
    torch.save(reblur.state_dict(), data / "reblur.pth")
    arguments = ["evaluate-pairs", str(data / "data"), "--layout", "folders", "--model", "jdrl_journal"]
    arguments += ["--checkpoint", str(data / "model.pth"), "--reblur", str(data / "reblur.pth"), "--multiple", "16"]
    assert main([*arguments, "--flow", "lucas_kanade", "--maps", str(data / "maps")]) == 0
    tensors = load_file(data / "maps/0000_0.safetensors")
    shapes = {"blur_map": 35, "seeds": 35, "weights": 8, "flow": 2, "mask": 1, "blur_radius": 1}
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {n: (1, c, 96, 96) for n, c in shapes.items()}
    blurry = read_image(data / "data/blurry/0.png").as_rgb()[None, :, :96, :96]
    with torch.no_grad():
        torch.testing.assert_close(tensors["blur_map"], model.estimator(blurry))
        seeds, weights = reblur.predict(model.eval()(blurry), blurry)
    torch.testing.assert_close(tensors["seeds"], seeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tensors["weights"], weights, atol=1e-5, rtol=1e-4)
    mask = read_image(data / "maps/0000_0.mask.png").as_rgb()
    assert torch.equal(mask[:1], tensors["mask"][0])
    drawn = read_image(data / "maps/0000_0.blur_map.png").as_rgb()
    strength = tensors["blur_map"][0].square().mean(0).sqrt()
    strength = (strength - strength.min()) / (strength.max() - strength.min())
    assert (drawn - strength).abs().max() <= 0.5 / 255 + 1e-6
    ends = (".safetensors", ".png", ".mask.png", ".blur_radius.png", ".blur_map.png")
    assert {path.name for path in (data / "maps").iterdir()} == {f"000{i}_{i}{end}" for i in range(2) for end in ends}
