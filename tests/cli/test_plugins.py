"""Models, methods and degradations of a plug-in package, named on the command line."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tta_restore.data.io.image import read_image, write_image
from tta_restore.data.io.pixels import Image

PACKAGE = Path(__file__).parents[1] / "plugin_package"
PROGRAM = """
import sys
from tta_restore.cli import main
for words in (
    ["restore", "photo.png", "-o", "by_name.png", "--model", "example-brighter", "--method", "example-halving"],
    ["restore", "photo.png", "-o", "by_module.png", "--model", "tta_example:Brighter", "--model.gain", "1.5",
     "--method", "tta_example:Halving"],
    ["evaluate", "--model", "example-brighter", "--degradations", "example-haze", "tta_example:Haze", "--photos", ".",
     "--methods", "example-halving", "tta_example:Halving", "--seeds", "1", "--frames", "1", "--out", "out", "-q"],
    ["info", "example-brighter"],
    ["evaluate-pairs", "pairs", "--layout", "folders", "--model", "example-brighter", "--flow", "lucas_kanade",
     "--out", "pairs.csv"],
):
    code = main(words)
    if code:
        sys.exit(f"{words[0]}: exit {code}")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    photo = Image(0.5 * torch.rand(3, 140, 150, generator=torch.Generator().manual_seed(0)))
    for path in ("photo.png", "pairs/blurry/a.png", "pairs/sharp/a.png"):
        write_image(folder / path, photo)
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Brighter" in done.stdout
    return folder


def test_restore_takes_names_and_modules_of_the_plug_in(folder):
    photo = read_image(folder / "photo.png").pixels
    assert (read_image(folder / "by_name.png").pixels - 0.625 * photo).abs().max() <= 1 / 255
    assert (read_image(folder / "by_module.png").pixels - 0.75 * photo).abs().max() <= 1 / 255


def test_evaluate_takes_them_next_to_the_built_in_ones(folder):
    rows = list(csv.DictReader((folder / "out" / "frames.csv").read_text().splitlines()))
    assert {row["family"] for row in rows} == {"example-haze", "tta_example:Haze"}
    assert {row["method"] for row in rows} == {"source", "self-ensemble", "example-halving", "tta_example:Halving"}
    psnr = {(row["method"], row["family"]): float(row["psnr"]) for row in rows}
    assert psnr["example-halving", "example-haze"] == pytest.approx(
        psnr["tta_example:Halving", "tta_example:Haze"], abs=2
    )


def test_evaluate_pairs_takes_them(folder):
    (row,) = csv.DictReader((folder / "pairs.csv").read_text().splitlines())
    assert float(row["input_psnr"]) == 100.0
    assert 15 < float(row["psnr"]) < 40
