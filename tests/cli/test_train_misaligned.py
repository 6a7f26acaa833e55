"""`tta-restore train misaligned`: a configuration file from end to end, and what it says to a wrong one."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tta_restore.cli import main
from tta_restore.data.io.image import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.models import create_model

CONFIG = """
[model]
name = "jdrl_unet"
width = 2
blur_map = {blur_map}

[data]
pictures = "{pictures}"
size = 48
shift = 1.0
zoom = 0.005
rotation = 0.005
local = 0.2

[flow]
name = "lucas_kanade"
levels = 1
iterations = 1
window = 11

[reblur]
width = 2

[settings]
warm_up = 1

[run]
steps = 3
batch_size = 1
log_every = 1
draw_every = 0
progress = false
"""


@pytest.mark.parametrize("blur_map", ["true", "false"])
def test_from_end_to_end(tmp_path, blur_map):
    generator = torch.Generator().manual_seed(0)
    write_image(tmp_path / "pictures/one.png", Image(torch.rand(3, 150, 300, generator=generator)))
    (tmp_path / "config.toml").write_text(CONFIG.format(blur_map=blur_map, pictures=tmp_path / "pictures"))
    out = tmp_path / "out"
    assert main(["train", "misaligned", "--config", str(tmp_path / "config.toml"), "--out", str(out)]) == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [set(line) & {"pair", "reblur", "blur_map"} for line in lines] == [
        {"pair"},
        *[{"pair", "reblur", *(["blur_map"] if blur_map == "true" else [])}] * 2,
    ]
    if blur_map == "false":
        create_model("jdrl_unet", width=2, checkpoint=out / "restorer.safetensors")
    else:
        assert "estimator.conv_first.weight" in load_file(out / "restorer.safetensors")
    # continued: one step more, the log goes on
    assert (
        main(["train", "misaligned", "--config", str(tmp_path / "config.toml"), "--out", str(out), "--steps", "4"]) == 0
    )
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["step"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[modle]\n", "expected the sections model, data, flow, .* got modle"),
        ("[model\n", "config.toml: "),
        ("[settings]\nwarmup = 3\n", r"\[settings\] has no warmup; there are: reblur_first, warm_up"),
        ("[model]\nname = 'unet'\n", "no restorer 'unet'; there are: "),
        ("[model]\nwidth = 2\n[data]\nlayout = 'sdd'\nroot = 'nowhere'\n", "nowhere: expected train_patches/blur"),
        ("[model]\nwidth = 2\n[data]\nlayout = 'gopro'\n", "expected root and layout, one of sdd, dpdd"),
        ("[model]\nwidth = 2\n[flow]\nname = 'pwc'\n", "pass checkpoint"),
    ],
)
def test_wrong_files(tmp_path, capsys, text, message):
    import re

    (tmp_path / "config.toml").write_text(text)
    assert main(["train", "misaligned", "--config", str(tmp_path / "config.toml"), "--out", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_bundled_photographs_need_no_folder():
    from tta_restore.engine.train.misaligned import _source

    pair = _source({"size": 32, "shift": 1.0})(2, torch.Generator().manual_seed(0))
    assert pair.blurry.shape == (2, 3, 32, 32)


def test_missing_file(tmp_path, capsys):
    assert main(["train", "misaligned", "--config", str(tmp_path / "none.toml")]) == 2
    assert "no such file" in capsys.readouterr().err
