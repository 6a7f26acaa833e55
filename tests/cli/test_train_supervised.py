"""`tta-restore train supervised`: configuration files from end to end, and what it says to wrong ones."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from tta_restore.cli import main
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train import supervised
from tta_restore.models import create_model

GENERATED = """
[model]
name = "ifan"
base_channels = 2
num_steps = 2
num_res_blocks = 1

[data]
pictures = "bundled"
size = 32

[validation]
pictures = "bundled"
size = 32
count = 1

[settings]
lr = 1e-3

[run]
steps = 2
batch_size = 1
log_every = 1
draw_every = 0
progress = false
"""


def train(tmp_path, text, *arguments):
    (tmp_path / "config.toml").write_text(text)
    return main(["train", "supervised", "--config", str(tmp_path / "config.toml"),
                 "--out", str(tmp_path / "out"), *arguments])  # fmt: skip


@pytest.mark.slow  # reads all the bundled photographs
def test_generated_pairs_from_end_to_end(tmp_path):
    assert train(tmp_path, GENERATED) == 0
    assert train(tmp_path, GENERATED, "--steps", "3") == 0  # continued
    lines = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [0, 1, 2]
    assert set(lines[0]) >= {"image", "disparity", "reblur"}
    assert "validation/psnr" in lines[-1]
    assert create_model("ifan", checkpoint=tmp_path / "out/restorer.safetensors").spec.in_channels == 3
    assert (tmp_path / "out/best/restorer.safetensors").is_file()


def test_a_data_set_in_its_folders(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for folder in ("c/source", "c/target", "r/source", "l/source"):
            picture = Image(torch.rand(3, 45, 53, generator=generator))
            write_image(tmp_path / "DPDD" / f"{split}_{folder}" / "1.png", picture, bit_depth=16)
    root = tmp_path / "DPDD"
    text = re.sub(
        r'pictures = "bundled"\nsize = 32', f'layout = "dpdd"\nroot = "{root}"\nsize = 32', GENERATED, count=1
    )
    text = text.replace(
        'pictures = "bundled"\nsize = 32\ncount = 1', f'layout = "dpdd"\nroot = "{root}"\nbit_depth = 8'
    )
    text += "num_workers = 1\n[augmentation]\nnoise_prob = 1.0\nscale_prob = 1.0\n"
    assert train(tmp_path, text) == 0
    assert "reblur" in json.loads((tmp_path / "out/log.jsonl").read_text().splitlines()[0])
    assert "validation/psnr" in (tmp_path / "out/log.jsonl").read_text()


def test_ones_own_model(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_restorer.py").write_text(
        "import torch\ndef build(k):\n    return torch.nn.Conv2d(3, 3, k, padding=k // 2)\n"
    )
    write_image(tmp_path / "pictures/one.png", Image(torch.rand(3, 120, 200, generator=torch.Generator())))
    text = GENERATED.replace('name = "ifan"\nbase_channels = 2\nnum_steps = 2\nnum_res_blocks = 1',
                             'name = "own_restorer:build"\nk = 3')  # fmt: skip
    text = text.replace('pictures = "bundled"\nsize = 32\n\n', f'pictures = "{tmp_path}/pictures"\nsize = 32\n')
    text = text.replace('[validation]\npictures = "bundled"\nsize = 32\ncount = 1\n', "")
    assert train(tmp_path, text) == 0
    assert set(load_file(tmp_path / "out/restorer.safetensors")) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[modle]\n", "expected the sections model, reblur, data, .* got modle"),
        ("[settings]\nleaning_rate = 3\n", r"\[settings\] has no leaning_rate; there are: loss, disparity_weight"),
        ("[model]\nname = 'unet'\n", "no restorer 'unet'; there are: "),
        ("[data]\nlayout = 'gopro'\nroot = 'x'\n", "expected root and layout, one of sdd, dpdd"),
        (
            "[data]\nlayout = 'dpdd'\nroot = 'nowhere'\n",
            "expected train_c/source and train_c/target and train_r/sour",
        ),
        ("[data]\nradius = 3\n", r"\[data\] expected layout and root, or pictures"),
        ("[augmentation]\nnoise_prob = 3\n", "noise_prob to be a number in"),
        ("[validation]\nsize = 3\n", r"\[validation\] expected layout and root, or pictures"),
        ("[reblur]\nwidth = 3\n", r"\[reblur\] has no width; there is: checkpoint"),
        ("[run]\nsteps = 0\n", "steps to be an integer >= 1"),
    ],
)
def test_wrong_files(tmp_path, capsys, text, message):
    if "[model]" not in text:
        text += "[model]\nbase_channels = 2\nnum_steps = 1\n"
    assert train(tmp_path, text) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.thorough
def test_photos_that_nobody_named_are_told(tmp_path, capsys, monkeypatch):
    def stop(*arguments, **options):
        raise UsageError("that is enough")

    monkeypatch.setattr(supervised, "train_supervised", stop)
    told = "note: [data] names no layout and no pictures: training on the "
    for words, expected in (([], True), (["-q"], False), (["--data.pictures", "bundled"], False)):
        small = ["--model.base_channels", "2", "--model.num_steps", "1", "--run.out", str(tmp_path / "out")]
        assert main(["train", "supervised", *small, *words]) == 2
        error = capsys.readouterr().err
        assert (told in error) is expected
        assert "that is enough" in error
    assert main(["train", "supervised", "--data.size", "0", "--run.out", str(tmp_path / "out")]) == 2
    assert told not in capsys.readouterr().err  # nothing is trained
