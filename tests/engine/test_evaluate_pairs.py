"""Pairs of files measured as they are and aligned."""

import csv

import pytest
import torch
import torch.nn.functional as F

from tta_restore.cli import main
from tta_restore.data.datasets.layouts import find_pairs
from tta_restore.data.io.image import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.data.synthetic import photos
from tta_restore.engine.evaluate.pairs import evaluate_pairs
from tta_restore.models import as_restorer
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
