"""Arguments, exit codes, and the restore command from end to end on small files."""

from __future__ import annotations

import csv
import errno
import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

import tta_restore
from tta_restore import adapters
from tta_restore.cli import main
from tta_restore.cli.commands import COMMANDS, Command
from tta_restore.cli.parsing import build_parser
from tta_restore.data.io.atomic import exclusive_lock
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.data.synthetic import defocus
from tta_restore.engine.demo import demo
from tta_restore.engine.demo import train as train_demo
from tta_restore.engine.evaluate import unseen_lenses
from tta_restore.engine.run import methods, names
from tta_restore.engine.run.restore import Summary
from tta_restore.models import create_model, list_models

MODEL = """
import torch
class Brighten(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Conv2d(3, 3, 3, padding=1)
        with torch.no_grad():
            self.mix.weight.zero_()
            self.mix.bias.fill_(0.01)
            for c in range(3):
                self.mix.weight[c, c, 1, 1] = 0.88
                self.mix.weight[c, c, 1, 2] = 0.02  # no symmetry: views of a frame differ
    def forward(self, x):
        return [self.mix(x), {"nothing": 1}]
def wide(width: int, rate: float | None = None):
    return torch.nn.Conv2d(3, 3, 2 * width + 1, padding=width)
def gray():
    net = torch.nn.Conv2d(1, 1, 3, padding=1, bias=False)
    torch.nn.init.constant_(net.weight, 1 / 9)
    return net
def four():
    return torch.nn.Conv2d(4, 4, 1)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "brightening.py").write_text(MODEL)
    generator = torch.Generator().manual_seed(0)
    for name, size in (("a.png", (33, 47)), ("deep/b.tif", (40, 31)), ("c.jpg", (24, 24))):
        write_image(tmp_path / "in" / name, Image(torch.rand(3, *size, generator=generator)))
    return tmp_path


def restore(*arguments: str) -> int:
    chosen = [] if "--method" in arguments else ["--method", "self-ensemble"]
    return main(
        ["restore", "in", "-o", "out", "--model", "brightening:Brighten", "--device", "cpu", *chosen, *arguments]
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["recommended", "reblur-pairs", "reblur-consistency"])
def test_restore_and_learn(method, folder, capsys):
    few = ["--method.steps", "4"] if method == "recommended" else []
    assert restore("--method", method, "--state", "camera.safetensors", *few) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "3 restored; written to out"  # after lines of progress
    before, after = read_image(folder / "in" / "a.png").pixels, read_image(folder / "out" / "a.png").pixels
    if method == "reblur-pairs":  # the others return the source's restoration where that is better
        assert (after - (0.9 * before + 0.01)).abs().max() > 0.02 + 1 / 255  # it moved
    with safe_open(folder / "camera.safetensors", framework="pt") as file:
        classes = {"recommended": "DegradationPairs", "reblur-pairs": "ReblurPairs"}
        assert classes.get(method, "ReblurConsistency") in str(file.metadata())


@pytest.mark.parametrize("method", ["self-ensemble", "siam-ctta", "source"])
def test_restore_with_each_method(method, folder, capsys):
    assert restore("--method", method) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "3 restored; written to out"  # after lines of progress
    before, after = read_image(folder / "in" / "a.png").pixels, read_image(folder / "out" / "a.png").pixels
    assert (after - (0.9 * before + 0.01)).abs().max() < 0.02 + 1 / 255  # the shifted part, and rounding
    assert (folder / "out" / "deep" / "b.tif").is_file()


def test_a_model_of_one_channel_restores_color_and_gray_images(folder, capsys):
    write_image(folder / "in" / "gray.png", Image(torch.rand(1, 20, 24)))
    assert main(["restore", "in", "-o", "out", "--model", "brightening:gray", "--method", "source"]) == 0
    for name in ("gray.png", "a.png"):
        before, after = (read_image(folder / place / name).as_rgb() for place in ("in", "out"))
        expected = torch.nn.functional.avg_pool2d(before[:, None], 3, stride=1)[:, 0]
        assert (after[:, 1:-1, 1:-1] - expected).abs().max() < 0.6 / 255
    assert read_image(folder / "out" / "gray.png").pixels.shape[0] == 1
    assert "4 restored" in capsys.readouterr().err


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_model_that_is_not_adapted_is_told_in_one_line(folder, capsys):
    command = ["restore", "in", "-o", "out", "--model", "brightening:four"]
    assert main(command) == 1
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == (
        "warning: recommended: the model takes frames of 4 channels, and pairs have 1 or 3: "
        "SelfEnsemble restores without adapting"
    )
    assert not any(line.startswith("warning") for line in rest)


@pytest.mark.thorough
def test_a_registered_model_with_its_own_weights(folder, capsys):
    network = create_model("lens_unet", checkpoint="specialist")
    save_file(network.state_dict(), folder / "mine.safetensors")
    shared = ["restore", "in/a.png", "--method", "source"]
    own = ["--model", "lens_unet", "--checkpoint", "mine.safetensors", "--set", "blocks=2"]
    assert main([*shared, "-o", "shipped.png", "--model", "specialist"]) == 0
    assert main([*shared, "-o", "own.png", *own]) == 0
    assert torch.equal(read_image(folder / "own.png").pixels, read_image(folder / "shipped.png").pixels)
    before_input = ["restore", *own, "--set", "widths=[32, 48, 72]", "in/a.png", "-o", "after.png"]
    assert main([*before_input, "--method", "source"]) == 0
    assert torch.equal(read_image(folder / "after.png").pixels, read_image(folder / "shipped.png").pixels)
    picture = read_image(folder / "in" / "a.png")
    for side in ("blur", "gt"):
        write_image(folder / "videos" / "test" / "scene" / side / f"{side}_1.png", picture)
    clip = ["restore", "videos/test/scene/blur", "--clips", "-o", "film", "--method", "source", *own]
    assert main(clip) == 0
    restored = read_image(folder / "film" / "blur" / "blur_1.png").pixels
    assert torch.equal(restored, read_image(folder / "shipped.png").pixels)
    assert main(["evaluate-clips", "videos", "--layout", "realblur", "--out", "film.csv", *own]) == 0
    row = next(csv.DictReader((folder / "film.csv").read_text().splitlines()))
    assert row["psnr"] != row["input_psnr"]  # those of the model, not of nothing
    for side in ("blurry", "sharp"):
        write_image(folder / "pairs" / side / "a.png", picture)
    assert main(["evaluate-pairs", "pairs", "--layout", "folders", "--flow", "lucas_kanade", *own]) == 0
    assert "1 pairs: " in capsys.readouterr().out
    assert main([*shared, "-o", "other.png", *own[:2]]) == 2
    assert "'lens_unet' needs weights: name its checkpoint" in capsys.readouterr().err
    assert main([*shared, "-o", "other.png", *own[:4], "--set", "depth=2"]) == 2
    assert "model 'lens_unet': " in (told := capsys.readouterr().err)
    assert "depth" in told


def test_bad_inputs_give_exit_code_1_and_a_line_each(folder, capsys):
    (folder / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "in" / "empty.tif").write_bytes(b"")
    assert (
        main(["restore", "in", "absent.png", "-o", "out", "--model", "brightening:Brighten", "--method", "source"]) == 1
    )
    lines = capsys.readouterr().err.splitlines()
    shown = [line.split(" (unpack")[0] for line in lines]
    assert shown == [
        "error: absent.png: no such file or directory",
        f"error: {Path('in/broken.png')}: truncated or damaged PNG: its header is incomplete",
        f"error: {Path('in/empty.tif')}: empty file",
        "3 restored, 3 failed; written to out",
    ]


def test_a_run_without_a_result_reports_that_nothing_was_written(folder, capsys):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(["restore", "broken.png", "-o", "out", "--model", "brightening:Brighten", "--method", "source"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "0 restored, 1 failed; nothing written to out"


def test_the_closing_line_names_the_output_where_one_was_given():
    closing_line = importlib.import_module("tta_restore.cli.main")._closing
    done, nothing = Summary(restored=1, failed=1), Summary(failed=1)
    assert closing_line(done, "out") == "1 restored, 1 failed; written to out"
    assert closing_line(done, "-") == "1 restored, 1 failed; written to standard output"
    assert closing_line(nothing, "a\nb") == "0 restored, 1 failed; nothing written to a b"
    assert closing_line("ifan-dpdd: 1 of 2 rows measured", None) == "ifan-dpdd: 1 of 2 rows measured"


def test_the_same_command_again_keeps_what_is_there(folder, capsys):
    restore("--method", "source")
    assert restore("--method", "source") == 0
    assert capsys.readouterr().err.endswith("0 restored, 3 kept from before; nothing written to out\n")
    assert restore("--method", "self-ensemble", "--quality", "80") == 0
    assert capsys.readouterr().err.splitlines() == [
        "note: 3 results were kept that were made with other settings (method, quality): --overwrite makes them again",
        "0 restored, 3 kept from before; nothing written to out",
    ]
    assert yaml.safe_load((folder / "out/tta-restore.yaml").read_text())["method"] == "source"  # theirs
    assert restore("--method", "source", "--quiet", "--overwrite") == 0
    assert capsys.readouterr().err == ""


def test_a_configuration_that_cannot_lie_next_to_the_results_is_told_before(folder, capsys):
    (folder / "out/tta-restore.yaml").mkdir(parents=True)
    (folder / "piped").mkdir()
    os.mkfifo(folder / "piped/tta-restore.yaml")
    for out, kind in (("out", "a folder"), ("piped", "a FIFO")):
        assert restore("--method", "source", "-o", out) == 2
        said = f"tta-restore restore: output {out}/tta-restore.yaml: expected a file, got {kind}\n"
        assert capsys.readouterr().err == said
        assert len(list((folder / out).iterdir())) == 1


def test_a_state_holds_adapter_and_inputs(folder):
    assert restore("--method", "siam-ctta", "--state", "camera.safetensors") == 0
    with safe_open(folder / "camera.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert all(name in metadata["restored_inputs"] for name in ("a.png", "b.tif", "c.jpg"))
    assert restore("--method", "siam-ctta", "--state", "camera.safetensors") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "magic"], "no method 'magic'; there are: recommended"),
        (["--model", "absent.pth"], "no model 'absent.pth'"),
        (["--model", "brightening:nothing"], "has no nothing"),
        (["-o", "in"], "originals would be overwritten"),
        (["--device", "quantum"], "quantum"),
        (["--device", "meta"], "--device meta: expected a device such as cpu or cuda:0"),
        (["--model", "brightening.py:Brighten"], "name the module, not its file: brightening:Brighten"),
        (["--format", "gif"], "no format 'gif'"),
        (["--model", "brightening:wide", "--model.width", "x"], "brightening:wide: width: expected int, got x"),
        (["--model", "brightening:wide", "--model.rate", "x"], "rate: expected float or none, got x"),
        (["--method", "siam-ctta", "--method.select", "3"], "select: expected str, type[Module], "),
        (["--budget", "5s"], "SelfEnsemble has no budget"),
        (["--method", "recommended", "--budget", "soon"], """expected budget such as "60s" or "10x" (times"""),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, message, folder, capsys):
    assert restore(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("tta-restore restore: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "out").exists()


def test_a_state_of_another_method_is_wrong_usage(folder, capsys):
    restore("--method", "siam-ctta", "--state", "camera.safetensors")
    assert restore("--method", "self-ensemble", "--state", "camera.safetensors", "--overwrite") == 2
    assert "--state camera.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a COMMAND is required"),
        (["restore"], "required: INPUT"),
        (["restore", "a.png"], "required: -o/--out"),
        (["dance"], "no command 'dance'; there are: info, restore"),
        (["train", "nothing"], "expected a KIND, one of supervised, misaligned, reblur, meta, got 'nothing'"),
        (["restore", "a.png", "-o", "b", "--nothing"], "unrecognized arguments: --nothing"),
        (["restore", "a.png", "-o", "b", "--max-pixels", "many"], "--max-pixels: expected int, got many"),
        (["train", "supervised", "--run.steps", "two"], "run.steps"),
        (["demo", "--frames", "0"], "expected a whole number >= 1, got 0"),
        (["demo", "--seed", "-1"], "expected a whole number >= 0, got -1"),
        (["evaluate", "--seeds", "1", "two"], "expected a whole number >= 0, got two"),
    ],
)
def test_arguments_that_do_not_parse_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("tta-restore")
    assert said.count("\n") == 1
    assert message in said


def test_the_version_is_said(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tta-restore {tta_restore.__version__}\n"


def test_info_lists_what_there_is(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for word in ("threads", "shipped weights", "lens_unet", "siam-ctta", "imagecodecs"):
        assert word in text


@pytest.mark.parametrize("words", [["--model.base_channels", "8"], ["--checkpoint", "a.pth"]])
def test_info_needs_the_model_that_settings_belong_to(words, capsys):
    assert main(["info", *words]) == 2
    assert "expected a model to go with its " in capsys.readouterr().err


def test_info_probes_a_model(folder, capsys):
    assert main(["info", "brightening:Brighten"]) == 0
    text = capsys.readouterr().out
    assert "Brighten" in text
    assert "84" in text  # its weights
    assert "at 1280x720:\nmultiply-adds" in text
    for flagged in (["--model", "brightening:Brighten"], ["--model=brightening:Brighten"]):
        assert main(["info", *flagged]) == 0
        assert capsys.readouterr().out == text
    assert main(["info", "nonsense"]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["info", "--model"])


def test_commands_pass_their_arguments_on(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    calls = []
    monkeypatch.setattr(demo, "run_demo", lambda **k: calls.append(k))
    monkeypatch.setattr(unseen_lenses, "evaluate_unseen_lenses", lambda *a, **k: calls.append(k))
    monkeypatch.setattr(train_demo, "train", lambda *a, **k: calls.append((a, k)))
    assert main(["demo", "--out", "x", "--quick", "--seed", "3"]) == 0
    assert calls.pop() == {"out": "x", "seed": 3, "quick": True, "processes": 1}
    assert main(["evaluate", "--seeds", "5", "6", "--split", "dev", "--methods", "generalist"]) == 0
    chosen = calls.pop()
    assert (chosen["seeds"], chosen["split"], chosen["methods"]) == ([5, 6], "dev", ["generalist"])
    assert main(["train-demo", "specialist", "--steps", "7", "--out", str(tmp_path), "--device", "cpu", "-q"]) == 0
    options = {"steps": 7, "seed": 0, "device": "cpu", "out": tmp_path, "progress": False}
    assert calls.pop() == (("specialist",), options)
    assert main(["train-demo"]) == 0
    assert [a for a, _ in calls] == [(name,) for name in train_demo.STEPS]


def commands() -> list[tuple[str, Command]]:
    found = []
    for name, command in COMMANDS.items():
        kinds = {name: command} if isinstance(command, Command) else {f"{name} {k}": c for k, c in command.items()}
        found += kinds.items()
    return found


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_option_has_help_that_stands_alone(name, command):
    parser = build_parser(name, command)
    assert all(action.help for action in parser._actions)
    text = parser.format_help()
    assert ":class:" not in text
    assert "``" not in text
    assert "examples:" in text


@pytest.mark.parametrize("words", [["--help"], ["restore", "--help"], ["train", "meta", "--help"], ["train", "--help"]])
def test_help_does_not_import_torch(words):
    program = "import sys; from tta_restore.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    program += "assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: tta-restore" in done.stdout


def test_settings_of_a_method_are_checked_by_name_and_type(folder, capsys):
    tune = ["--method", "siam-ctta", "--method.steps"]
    assert restore(*tune, "2", "--method-set", "lr=1e-5") == 0
    written = (folder / "out" / "tta-restore.yaml").read_text()
    assert "steps: 2" in written
    assert main(["restore", "--config", "out/tta-restore.yaml", "-o", "again", "-q"]) == 0
    assert torch.equal(read_image(folder / "again/a.png").pixels, read_image(folder / "out/a.png").pixels)
    capsys.readouterr()
    assert restore(*tune, "two", "-o", "wrong") == 2
    assert "method 'siam-ctta': steps: expected int, got two" in capsys.readouterr().err
    assert restore("--method", "siam-ctta", "--method.stepz", "2", "-o", "wrong") == 2
    assert "has no stepz; did you mean steps" in capsys.readouterr().err
    assert not (folder / "wrong").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "", "the file is empty"),
        ("a.toml", "[method", "a.toml: "),
        ("a.yaml", "method: [", "a.yaml: "),
        ("a.yaml", "colour: 3", "there is no option 'colour'; there are: inputs, out"),
        ("a.yaml", "help: true", "there is no option 'help'"),
        ("a.yaml", "strip: maybe", "a.yaml: strip: expected bool, got maybe"),
        ("a.yaml", "quality: high", "a.yaml: quality: expected int, got high"),
        ("a.yaml", "inputs: 3", "a.yaml: inputs: expected str, got 3"),
        ("a.yaml", "inputs: {a: in}", "a.yaml: inputs: expected str, got {'a': 'in'}"),
        ("a.yaml", "seed: 2024-01-01", "a.yaml: seed: expected a whole number >= 0, got 2024-01-01"),
        ("a.yaml", "jobs: 9999999", "a.yaml: jobs: expected a whole number <= 1024, got 9999999"),
        ("a.yaml", "seed: 1\nmethod: {steps: 2, steps: 3}", "a.yaml: 'steps' is there twice"),
        ("a.json", '{"seed": 1, "seed": 1, "seed": 2}', "a.json: 'seed' is there 3 times"),
        ("a.toml", "bit-depth = 8\nbit_depth = 16", "a.toml: 'bit_depth' is there twice"),
        ("a.txt", "method: source", "ends in .toml, .yaml, .yml or .json"),
        ("a.json", "[1]", "expected names and values, got list"),
        ("none.toml", None, "no such file"),
    ],
)
def test_a_configuration_file_that_means_nothing_is_refused(folder, capsys, name, text, message):
    if text is not None:
        (folder / name).write_text(text)
    assert restore("--config", name) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_what_a_yaml_file_merges_in_may_be_overridden(folder, capsys):
    (folder / "a.yaml").write_text("method: {<<: &shared {steps: 3, lr: 0.1}, name: siam-ctta, steps: 5}\n")
    with pytest.raises(SystemExit):
        main(["restore", "in", "-o", "out", "--config", "a.yaml", "--print-config"])
    assert yaml.safe_load(capsys.readouterr().out)["method"] == {"name": "siam-ctta", "steps": 5, "lr": 0.1}


def test_a_configuration_is_printed_and_read(folder, capsys):
    (folder / "a.toml").write_text('seed = 4\n[method]\nname = "siam-ctta"\nsteps = 3\n')
    with pytest.raises(SystemExit) as caught:
        main(["restore", "in", "-o", "out", "--config", "a.toml", "--method.lr", "0.1", "--print-config"])
    assert caught.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["method"] == {"name": "siam-ctta", "steps": 3, "lr": 0.1}
    assert (printed["seed"], printed["inputs"]) == (4, ["in"])


def test_a_configuration_may_be_written_as_flags_are(folder, monkeypatch):
    (folder / "A.YAML").write_text("inputs: in/a.png\nout: ~/made\nbit-depth: 16\nmethod: source\n")
    monkeypatch.setenv("HOME", str(folder / "home"))
    assert main(["restore", "--config", "A.YAML"]) == 0
    assert read_image(folder / "home/made/a.png").bit_depth == 16
    (folder / "a.toml").write_text("list = true\n")
    assert main(["reproduce", "--config", "a.toml"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "--model", "x"], "--config: expected one argument"),
        (["--method.steps", "--model", "x"], "--method.steps: expected one argument"),
        (["--device", "mps"], "--device mps: "),
    ],
)
def test_a_flag_is_no_value(arguments, message, folder, capsys):
    assert main(["restore", "in", "-o", "out", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "aten::" not in said


def test_a_tilde_that_the_shell_left_is_the_home_folder(folder, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(folder))
    assert main(["restore", "~/in/a.png", "-o=~/out/b.png", "--method", "source"]) == 0
    assert (folder / "out/b.png").is_file()
    assert main(["evaluate", "--data", "DPDD=~/absent"]) == 2
    assert f"there is no folder {folder / 'absent'}" in capsys.readouterr().err
    (folder / "a.toml").write_text('[run]\nout = "~/in/a.png"\n')
    assert main(["train", "supervised", "--config", "~/a.toml"]) == 2
    assert f"{folder / 'in/a.png'}: expected a folder, got a file" in capsys.readouterr().err
    (folder / "a.toml").write_text("[run]\nout = 3\n")
    assert main(["train", "supervised", "--config", "a.toml"]) == 2
    assert "[run] out: expected a folder, got 3" in capsys.readouterr().err


def test_names_in_help_are_those_that_exist():
    assert set(names.METHODS) == set(methods.METHODS)
    registered = {name.replace("_", "-") for name in adapters.list_adapters()}
    assert registered <= {*names.METHODS, *names.CLIP_METHODS}
    assert {*names.SHIPPED_MODELS.values()} <= set(list_models("restorer"))


def test_user_code_that_fails_is_one_line(folder, capsys):
    (folder / "bad.py").write_text(
        "import sys\nfrom torch import nn\n\ndef key():\n    return {}['weights']\n\ndef leave():\n    sys.exit(0)\n\n"
        "class Skipped(BaseException):\n    pass\n\ndef skip():\n    raise Skipped('no')\n\n"
        "class Leaves(nn.Conv2d):\n    def __init__(self):\n        super().__init__(3, 3, 3, padding=1)\n\n"
        "    def forward(self, x):\n        sys.exit(0)\n"
    )
    told = {
        "key": "bad:key raised KeyError",
        "leave": "bad:leave called sys.exit(0)",
        "skip": "bad:skip raised Skipped: no",
    }
    for name, message in told.items():
        for command in (["restore", "in", "-o", "out", "--model", f"bad:{name}"], ["info", f"bad:{name}"]):
            assert main(command) == 2
            assert message in capsys.readouterr().err
    assert main(["restore", "in", "-o", "out", "--method", "source", "--model", "bad:Leaves"]) in (1, 2)
    assert "called sys.exit(0)" in capsys.readouterr().err


def test_values_of_a_file_are_checked_like_arguments(folder, capsys):
    (folder / "a.json").write_text('{"seed": "x"}')
    assert main(["restore", "in", "-o", "out", "--config", "a.json"]) == 2
    assert "a.json: seed: expected a whole number >= 0, got x" in capsys.readouterr().err


def test_a_file_that_is_named_like_an_option_can_be_given(folder, capsys):
    (folder / "-x.png").write_bytes(next((folder / "in").glob("*.png")).read_bytes())
    with pytest.raises(SystemExit):
        main(["restore", "-x.png", "-o", "out", "--method", "source"])
    assert "unrecognized arguments: -x.png (a file with this name is given as ./-x.png)" in capsys.readouterr().err
    assert main(["restore", "./-x.png", "-o", "out", "--method", "source"]) == 0
    assert (folder / "out/-x.png").exists()


@pytest.mark.thorough
def test_evaluate_on_ones_own_photographs(folder, capsys, monkeypatch):
    monkeypatch.setattr(defocus, "TEST", defocus.TEST[:1])
    assert main(["evaluate", "--photos", "absent"]) == 2
    assert "there is no folder absent" in capsys.readouterr().err
    assert main(["evaluate", "--photos", "in", "--data", "X=in"]) == 2
    assert "--photos is for simulated lenses" in capsys.readouterr().err
    (folder / "empty").mkdir()
    assert main(["evaluate", "--photos", "empty"]) == 2
    assert "no PNG, JPEG or TIFF file in this folder" in capsys.readouterr().err
    assert main(["evaluate", "--photos", "in"]) == 2
    assert "is smaller than the crop" in capsys.readouterr().err
    write_image(folder / "mine" / "scene.png", Image(torch.rand(3, 300, 260, generator=torch.manual_seed(0))))
    arguments = ["evaluate", "--photos", "mine", "--seeds", "1", "--frames", "1", "--methods", "generalist"]
    assert main([*arguments, "--out", "report"]) == 0
    assert ",scene," in (folder / "report" / "frames.csv").read_text()
    for name in ("scene_10", "scene_2"):
        write_image(folder / "mine" / f"{name}.png", Image(torch.rand(3, 260, 260, generator=torch.manual_seed(1))))
    arguments = ["evaluate", "--photos", "mine", "--frames", "3", "--methods", "generalist", "--seeds", "1", "3"]
    assert main([*arguments, "--out", "three"]) == 0
    rows = list(csv.DictReader((folder / "three" / "frames.csv").read_text().splitlines()))
    for seed in ("1", "3"):  # an order of its own for each
        order = torch.randperm(3, generator=torch.Generator().manual_seed(int(seed))).tolist()
        first = {"method": "generalist", "stream": seed, "family": "gaussian"}
        shown = [row["photo"] for row in rows if first.items() <= row.items()]
        assert shown == [("scene", "scene_2", "scene_10")[i] for i in order]


def test_an_interrupt_is_a_line_and_130(monkeypatch, capsys):
    def interrupted(*arguments, **options) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_demo", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "tta-restore demo: interrupted\n"


def test_an_interrupted_run_that_can_continue_says_so(monkeypatch, capsys):
    def interrupted(*arguments, **options) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tta_restore.engine.run.restore.restore_files", interrupted)
    assert main(["restore", "a.png", "-o", "b.png"]) == 130
    assert capsys.readouterr().err == "tta-restore restore: interrupted; the same command continues\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end_a_run_are_an_interrupt(number, monkeypatch, capsys):
    monkeypatch.setattr(demo, "run_demo", lambda **options: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "tta-restore demo: interrupted\n"
    assert signal.getsignal(number) == before


def test_a_run_under_nohup_goes_on(monkeypatch):
    monkeypatch.setattr(demo, "run_demo", lambda **options: os.kill(os.getpid(), signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["demo"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "mine.pth"], "--model is for --data"),
        (["--save-pictures"], "--save-pictures is for --data"),
        (["--data", "a=.", "--seeds", "7"], "--seeds is for simulated lenses, without --data"),
        (["--data", "a=.", "--rounds", "2"], "--rounds is for --methods"),
        (["--data", "a=.", "--methods", "all", "--bits", "16"], "--bits is for the published protocol"),
    ],
)
def test_evaluate_refuses_what_it_would_not_heed(arguments, message, capsys):
    assert main(["evaluate", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "out"),
    [
        (["evaluate", "--out"], "runs/e"),
        (["calibrate", ".", "-o"], "m.safetensors"),
        (["demo", "--out"], "runs/d"),
        (["train-demo", "--out"], "runs/t"),
        (["evaluate-pairs", ".", "--layout", "sdd", "--model", "generalist", "--out"], "p.csv"),
        (["evaluate-clips", ".", "--layout", "gopro", "--model", "generalist", "--out"], "c.csv"),
    ],
)
def test_results_of_a_running_command_are_kept_from_another(tmp_path, monkeypatch, capsys, command, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with exclusive_lock(tmp_path / out):
        assert main([*command, out]) == 2
    err = capsys.readouterr().err
    assert f"--out {out}: another run is using it" in err
    assert err.count("\n") == 1
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("deep.json", b"[" * 100_000, "nested too deeply"),  # the limit of Python 3.13 is above 5000
        ("deep.toml", b"a = " + b"[" * 5000, "nested too deeply"),
        ("deep.yaml", b"[" * 1500, "nested too deeply"),
        ("list.json", b'{"run": [1, 2]}', "expected the sections .*, got run as list"),
        ("tables.toml", b"[[run]]\nsteps = 1\n", "expected the sections .*, got run as list"),
        ("mark.toml", b"\xef\xbb\xbf[nonsense]\na = 1\n", "expected the sections .*, got nonsense"),
        ("aliases.yaml", b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
            b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 9)
        ), "more than 100000 entries"),
        ("pipe.toml", None, "not a regular file: a FIFO"),
        ("twice.yaml", b"run: {steps: 1}\nrun: {steps: 2}\n", r"twice\.yaml: 'run' is there twice"),
        ("twice.json", b'{"run": {"steps": 1, "steps": 1}}', r"twice\.json: 'steps' is there twice"),
        ("twice.toml", b'"run.steps" = 1\n[run]\nsteps = 2\n', r"twice\.toml: 'run\.steps' is there twice"),
        ("number.yaml", b"1: 2\n", "expected the sections .*, got 1$"),
    ],
)  # fmt: skip
def test_configurations_that_mean_harm_are_one_line(name, content, message, tmp_path, capsys):
    if content is None:
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    assert main(["train", "supervised", "--config", str(tmp_path / name), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said)
    assert not (tmp_path / "run").exists()


def test_the_demo_without_its_photographs_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    said = capsys.readouterr()
    assert said.err == "tta-restore demo: needs skimage: pip install 'tta-restore[demo]'\n"
    assert said.out == ""
    assert not (tmp_path / "demo").exists()


def test_formats_are_named_by_suffix_or_in_capitals_too(folder, capsys):
    for name, suffix in (("jpg", ".jpg"), ("TIF", ".tif"), (".WebP", ".webp")):
        assert restore("--method", "source", "--format", name, "--bit-depth", "8", "-o", f"as{suffix[1:]}") == 0
        assert {path.suffix for path in (folder / f"as{suffix[1:]}").rglob("*.*")} >= {suffix}
        assert (folder / f"as{suffix[1:]}/a{suffix}").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate", "in", "--model", "brightening:Brighten", "-o", "c.safetensors", "--crop", "-5"], "--crop: "),
        (
            ["evaluate", "--data", "A=in", "--methods", "causiam", "--method.semantic.encoder", "a:b"],
            "--method.semantic.encoder: the command has no --method; settings are given with a name: --methods",
        ),
        (["export", "--model", "brightening:Brighten", "-o", "c.pth"], "--out c.pth: expected a file that ends in"),
        (["restore", "in", "-o", "x", "--set", 'a={"b": 1, "b": 2}'], "--set a: 'b' is there twice"),
        (["restore", "in", "-o", "x", "--method.a", "[" * 100_000], "--method.a: nested too deeply"),
        (["train", "supervised", "--config", ""], "--config: expected a value, got an empty argument"),
    ],
)
def test_values_are_checked_before_they_mean_something(arguments, message, folder, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_configuration_that_cannot_be_written_does_not_hide_the_results(folder, monkeypatch, capsys):
    """On a full disk the summary was missing, and the exit code was that of a wrong call."""
    from tta_restore.data.io import atomic

    written = atomic.atomic_file

    def full(path):
        if Path(path).name == "tta-restore.yaml":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(path)

    monkeypatch.setattr(atomic, "atomic_file", full)
    arguments = ["restore", "in", "-o", "out", "--method", "source", "--model", "torch.nn:Identity", "-q"]
    assert main(arguments) == 1
    assert capsys.readouterr().err == "error: out/tta-restore.yaml: cannot be written (No space left on device)\n"
    assert main([*arguments[:-1], "--overwrite"]) == 1
    assert "restored; written to out\n" in capsys.readouterr().err
