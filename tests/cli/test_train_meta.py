"""`tta-restore train reblur` and `train meta`: one after the other, from configuration files."""

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file

from tta_restore.cli import main
from tta_restore.engine.run.methods import load_discriminator, load_reblurrer
from tta_restore.engine.run.models import load_restorer

NETWORKS = """
[model]
name = "lens_unet"
widths = [2, 2, 2]
blocks = 1

[reblur]
num_layers = 1
base_channels = 2
fusion = "channels"
{reblur}

[discriminator]
base_channels = 2

[data]
pictures = "bundled"
frames = 5
size = 40
length = 2
num_subframes = 3
shakes = [{{ pan = 4.0, direction = 0.0 }}]

[windows]
patch_size = 32
num_patches = 1
query_frames = 2

[run]
steps = 2
batch_size = 1
log_every = 1
draw_every = 0
progress = false
"""


@pytest.mark.thorough
def test_from_end_to_end(tmp_path, capsys):
    (tmp_path / "reblur.toml").write_text(NETWORKS.format(reblur=""))
    first = tmp_path / "first"
    assert main(["train", "reblur", "--config", str(tmp_path / "reblur.toml"), "--out", str(first)]) == 0
    assert {path.stem for path in first.glob("*.safetensors")} == {"reblur", "restorer", "discriminator"}
    text = NETWORKS.format(reblur=f'checkpoint = "{first}/reblur.safetensors"')
    (tmp_path / "meta.toml").write_text(text + '\n[inner]\noptimizer = "sgd"\n[settings]\nsecond_order = true\n')
    second = tmp_path / "second"
    arguments = ["train", "meta", "--config", str(tmp_path / "meta.toml"), "--out", str(second)]
    assert main(arguments) == 0
    assert main([*arguments, "--steps", "3"]) == 0  # goes on
    lines = [json.loads(line) for line in (second / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    capsys.readouterr()
    for change in ("windows.distance=torch.nn.functional:mse_loss", "windows.num_patches=2", "data.frames=6"):
        assert main([*arguments, f"--{change}", "--run.steps=4"]) == 2  # not of this run
        assert f"{change.partition('=')[0].split('.')[1]}" in capsys.readouterr().err
    for kind in ("meta", "reblur"):
        words = ["train", kind, "--config", str(tmp_path / f"{kind}.toml"), "--out", str(tmp_path / "third")]
        assert main([*words, "--run.engine", "fabric", "--run.accumulate", "2"]) == 2
        assert "accumulate" in capsys.readouterr().err
    assert load_file(second / "reblur.safetensors").keys() == load_file(first / "reblur.safetensors").keys()


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (
            "meta",
            "[modle]\n",
            "expected the sections model, reblur, discriminator, data, windows, inner, settings, run, got modle",
        ),
        ("meta", "[reblur]\nbase_channels = 2\n", r"meta-training needs a section \[model\]"),
        (
            "meta",
            "[model]\n[reblur]\nbase_channels = 2\n[inner]\nvariant = 'third'\n",
            r"\[inner\] variant: expected",
        ),
        ("reblur", "[reblur]\nbase_channels = 2\n[settings]\nrate = 3\n", r"\[settings\] has no rate"),
        ("reblur", "[reblur]\nbase_channels = 2\n[data]\nlayout = 'gopro'\n", "expected root and layout, one of gopro"),
        ("reblur", "[reblur]\nbase_channels = 2\n[data]\nlayout = 'dvd'\nroot = 'none'\n", "none: no such folder"),
        ("reblur", "[reblur]\nbase_channels = 2\n[data]\npictures = 'none'\n", "there is no folder none"),
        ("reblur", "[reblur]\nbase_channels = 2\n[data]\nframe = 3\n", r"\[data\] has no frame; did you mean frames"),
        ("reblur", "[reblur]\nchannels = 2\n", "'video_reblur' has no channels; did you mean base_channels"),
    ],
)
def test_wrong_files(tmp_path, capsys, kind, text, message):
    (tmp_path / "config.toml").write_text(text)
    assert main(["train", kind, "--config", str(tmp_path / "config.toml"), "--out", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.thorough
def test_a_least_squares_critic_meta_trains_and_every_result_loads_by_its_file(tmp_path):
    images = torch.rand(1, 3, 32, 32)
    for kind, more in (
        ("reblur", ""),
        ("meta", '\n[settings]\nadversarial_kind = "least_squares"\ndiscriminator_clip = false\n'),
    ):
        (tmp_path / "c.toml").write_text(NETWORKS.format(reblur="") + more)
        out = tmp_path / kind
        assert main(["train", kind, "--config", str(tmp_path / "c.toml"), "--out", str(out)]) == 0
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        if kind == "meta":
            assert all(math.isfinite(line["inner_adversarial_loss"]) for line in lines)
        for file in ("restorer.safetensors", "state.pt"):
            assert load_restorer(str(out / file))(images).shape == images.shape
        for file in ("reblur.safetensors", "state.pt"):
            reblurred = load_reblurrer(out / file)(images[:, None].expand(-1, 5, -1, -1, -1))
            assert reblurred.shape == images.shape
    for file in ("discriminator.safetensors", "state.pt"):
        assert load_discriminator(tmp_path / "reblur" / file)(images).ndim == 4
    state = str(tmp_path / "reblur/state.pt")  # every network of it is trained on by its name
    words = ["train", "meta", "--data.pictures", "bundled", "--data.frames", "5", "--data.size", "40", "-q"]
    words += ["--data.length", "2", "--data.num_subframes", "3", "--windows.patch_size", "32", "--run.steps", "1"]
    words += ["--windows.num_patches", "1", "--windows.query_frames", "1", "--run.out", str(tmp_path / "on")]
    words += ["--model.name", state, "--reblur.name", state, "--discriminator.name", state, "--run.batch_size", "1"]
    assert main(words) == 0
    assert load_restorer(str(tmp_path / "on/restorer.safetensors"))(images).shape == images.shape


@pytest.mark.parametrize("kind", ["reblur", "meta"])
def test_the_loss_of_the_restorer_is_named(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_loss.py").write_text("def scaled(a, b, factor):\n    return factor * (a - b).abs().mean()\n")
    (tmp_path / "c.toml").write_text(NETWORKS.format(reblur=""))
    words = ["train", kind, "--config", "c.toml", "--run.steps", "1", "-q"]
    words += ["--inner.lr", "0", "--inner.reblur_lr", "0"] if kind == "meta" else []
    part, losses = {"reblur": "cycle", "meta": "deblur"}[kind], []
    for number, distance in enumerate((None, '{"name": "own_loss:scaled", "factor": 3.0}')):
        named = [] if distance is None else ["--windows.distance", distance]
        assert main([*words, *named, "--run.out", str(number)]) == 0
        losses.append(json.loads((tmp_path / f"{number}/log.jsonl").read_text().splitlines()[0])[part])
    assert losses[1] == pytest.approx(3 * losses[0], rel=1e-5)
