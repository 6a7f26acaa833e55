"""`tta-restore train misaligned`: a configuration file from end to end, and what it says to a wrong one."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tta_restore.cli import main
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.engine.run.models import load_restorer
from tta_restore.engine.train.misaligned import train_misaligned_from_config
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


def data_set(root, count=3):
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        for folder in ("train_patches/blur", "train_patches/gt", "test/blur", "test/gt"):
            write_image(root / folder / f"{number}.png", Image(torch.rand(3, 50, 52, generator=generator)))


PRESET = """
[model]
name = "jdrl_unet"
width = 2
blur_map = {blur_map}
[data]
layout = "sdd"
root = "{root}"
size = 48
[flow]
name = "lucas_kanade"
levels = 1
iterations = 1
window = 11
[reblur]
width = 2
[settings]
preset = "{preset}"
reblur_weight = 0.25
[validation]
layout = "sdd"
root = "{root}"
limit = 2
[run]
steps = 2
batch_size = 2
log_every = 1
draw_every = 0
validate_every = 1
progress = false
"""


@pytest.mark.parametrize(
    ("preset", "blur_map", "lr", "halve"),
    [("conference", "false", 2e-5, 60), ("journal", "true", 1e-5, 70), ("released", "true", 1e-5, 70)],
)
def test_presets_count_epochs_of_the_data_and_the_best_weights_are_kept(tmp_path, preset, blur_map, lr, halve):
    data_set(tmp_path / "SDD")
    (tmp_path / "c.toml").write_text(PRESET.format(preset=preset, root=tmp_path / "SDD", blur_map=blur_map))
    objective = train_misaligned_from_config(tmp_path / "c.toml", out=tmp_path / "out")
    settings = objective.settings
    assert (settings.lr, settings.halve_every, settings.warm_up) == (lr, 2 * halve, 2 * 15)  # 3 pairs, batches of 2
    assert (settings.align_corners, settings.border, settings.reblur_weight) == (False, 0, 0.25)
    score = json.loads((tmp_path / "out/best/score.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    validated = [line["validation/psnr"] for line in lines if "validation/psnr" in line]
    assert len(validated) == 2
    assert score["psnr"] == max(validated)
    assert {"validation/psnr", "validation/plain_psnr"} <= {name for line in lines for name in line}
    # the result loads by its file alone, and so does the best one and the state of the run
    images = torch.rand(1, 3, 32, 32)
    for file in ("restorer.safetensors", "best/restorer.safetensors", "state.pt"):
        restorer = load_restorer(str(tmp_path / "out" / file))
        assert restorer(images).shape == images.shape


def test_presets_need_epochs_and_validation_needs_pairs(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    write_image(tmp_path / "pictures/one.png", Image(torch.rand(3, 150, 300)))
    text = CONFIG.format(blur_map="false", pictures=tmp_path / "pictures")
    for change, message in (
        (("warm_up = 1", 'preset = "journal"'), "[settings] preset 'journal' counts epochs: give steps_per_epoch"),
        (("warm_up = 1", 'preset = "mine"'), "[settings] preset: expected one of"),
        (("[settings]", '[validation]\nlayout = "sdd"\n[settings]'), "[validation] expected root and layout, one of"),
    ):
        (tmp_path / "c.toml").write_text(text.replace(*change))
        assert main(["train", "misaligned", "--config", str(tmp_path / "c.toml"), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.thorough
def test_the_recorded_configuration_trains_as_the_preset(tmp_path):
    words = ["train", "misaligned", "--model.width", "2", "--data.pictures", "bundled", "--data.size", "32", "-q"]
    words += ["--reblur.width", "2", "--flow.name", "lucas_kanade", "--run.steps", "1", "--run.batch_size", "1"]
    preset = ["--settings.preset", "journal", "--settings.steps_per_epoch", "3", "--settings.map_weight", "0.25"]
    assert main([*words, *preset, "--run.out", str(tmp_path / "first")]) == 0
    recorded = tmp_path / "first/tta-restore.yaml"
    assert main(["train", "misaligned", "--config", str(recorded), "--run.out", str(tmp_path / "again"), "-q"]) == 0
    first, again = (torch.load(tmp_path / name / "state.pt")["identity"] for name in ("first", "again"))
    assert first == again
    assert (first["lr"], first["warm_up"], first["map_weight"]) == (1e-5, 45, 0.25)


@pytest.mark.thorough
@pytest.mark.parametrize("file", ["restorer.safetensors", "state.pt"])
@pytest.mark.parametrize("entry", ["name", "checkpoint"])
def test_a_result_is_trained_on_by_its_file_alone(tmp_path, file, entry):
    words = ["train", "misaligned", "--data.pictures", "bundled", "--data.size", "32", "-q", "--reblur.width", "2"]
    words += ["--flow.name", "lucas_kanade", "--run.steps", "1", "--run.batch_size", "1", "--run.draw_every", "0"]
    first = ["--model.width", "2", "--model.blur_map", "true", "--run.out", str(tmp_path / "first")]
    assert main([*words, *first]) == 0
    start = [f"--model.{entry}", str(tmp_path / "first" / file), "--settings.lr", "1e-9"]
    assert main([*words, *start, "--run.out", str(tmp_path / "on")]) == 0
    before = load_file(tmp_path / "first/restorer.safetensors")
    for result in ("restorer.safetensors", "state.pt"):  # each of its files says what it was built from
        after = load_restorer(str(tmp_path / "on" / result)).module.state_dict()
        torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-5)
