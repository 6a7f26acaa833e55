"""Models, methods and degradations of a plug-in package, named on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from _fresh import run_program

from tta_restore import adapters, degradations, models
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.engine.run import extensions, user_code
from tta_restore.engine.run.methods import find_method

PACKAGE = Path(__file__).parents[1] / "plugin_package"
PROGRAM = """
import sys
from tta_restore.cli import main
SHORT = ["--run.steps", "1", "--run.batch_size", "1", "--run.draw_every", "0"]
for words in (
    ["restore", "photo.png", "-o", "by_name.png", "--model", "example-brighter", "--method", "example-halving"],
    ["restore", "photo.png", "-o", "by_module.png", "--model", "tta_example:Brighter", "--model.gain", "1.5",
     "--method", "tta_example:Halving"],
    ["evaluate", "--model", "example-brighter", "--degradations", "example-haze", "tta_example:Haze", "--photos", ".",
     "--methods", "example-halving", "tta_example:Halving", "--seeds", "1", "--frames", "1", "--out", "out", "-q",
     "--metrics", "example-brightness", "tta_example:brightness"],
    ["info", "example-brighter"],
    ["evaluate-pairs", "pairs", "--layout", "folders", "--model", "example-brighter", "--flow", "lucas_kanade",
     "--out", "pairs.csv"],
    ["evaluate-pairs", "flat", "--layout", "example-flat", "--model", "example-brighter", "--flow", "lucas_kanade",
     "--metrics", "example-brightness", "--out", "flat.csv"],
    ["evaluate-clips", "flat", "--layout", "example-flat", "--model", "example-brighter", "--method", "example-halving",
     "--metrics", "tta_example:brightness", "--out", "clips.csv"],
    ["evaluate", "--data", "example-flat=flat", "--model", "example-brighter", "--methods", "source",
     "--metrics", "example-brightness", "--out", "sets", "-q"],
    ["train", "supervised", "--model.name", "example-brighter", "--data.layout", "example-flat", "--data.root", "flat",
     "--data.size", "32", "--settings.reblur_weight", "0", "--settings.disparity_weight", "0", "--run.steps", "2",
     "--run.batch_size", "1", "--run.draw_every", "0", "--run.out", "trained", "-q"],
    ["train", "supervised", "--model.name", "example-brighter", "--data.pictures", "photos",
     "--data.degradations", '["example-haze", "tta_example:Haze"]', "--data.size", "32",
     "--validation.pictures", "bundled", "--validation.degradations", "example-haze", "--validation.count", "1",
     "--validation.metrics", '["example-brightness", "tta_example:brightness"]', *SHORT, "--run.out", "hazy", "-q"],
    ["train", "misaligned", "--model.name", "example-brighter", "--data.degradations", "example-haze",
     "--data.size", "32", "--validation.pictures", "bundled", "--validation.size", "32", "--validation.count", "1",
     "--validation.metrics", "example-brightness", "--flow.name", "lucas_kanade", *SHORT,
     "--run.out", "misaligned", "-q"],
    ["train", "reblur", "--model.name", "example-brighter", "--data.degradations", "tta_example:Haze",
     "--data.size", "32", "--data.frames", "3", "--windows.patch_size", "16", *SHORT, "--run.out", "reblur", "-q"],
    *(["restore", "photo.png", "-o", f"{name}.png", "--model", "denoiser", "--method", "srtta", "--bit-depth", "16",
       "--method.degradations", name, "--method.steps", "1", "--method.lr", "0.001"]
      for name in ("example-haze", "blur_noise")),
    ["restore", "photo.png", "-o", "fogging.png", "--model", "example-brighter", "--method", "tta_example:Fogging",
     "--method.degradation", "tta_example:Haze"],
    ["restore", "photo.png", "-o", "trained.png", "--model", "trained/restorer.safetensors", "--method", "source"],
    ["reproduce", "tta_example:TABLE", "--data", "Flat=flat", "--out", "table", "-q"],
    ["reproduce", "tta_example:STREAM", "--data", "Flat=flat", "--out", "stream", "-q"],
):
    code = main(words)
    if code:
        sys.exit(f"{words[0]}: exit {code}")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    photo = Image(0.5 * torch.rand(3, 140, 150, generator=torch.Generator().manual_seed(0)))
    paths = [f"flat/{i}_{split}_{kind}.png" for i in "ab" for split in ("train", "test") for kind in ("low", "high")]
    for path in ("photo.png", "photos/photo.png", "pairs/blurry/a.png", "pairs/sharp/a.png", *paths):
        write_image(folder / path, photo)
    done = run_program(PROGRAM, folder=folder, PYTHONPATH=str(PACKAGE))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Brighter" in done.stdout
    return folder


@pytest.mark.thorough
def test_restore_takes_names_and_modules_of_the_plug_in(folder):
    photo = read_image(folder / "photo.png").pixels
    assert (read_image(folder / "by_name.png").pixels - 0.625 * photo).abs().max() <= 1 / 255
    assert (read_image(folder / "by_module.png").pixels - 0.75 * photo).abs().max() <= 1 / 255


@pytest.mark.thorough
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


def test_metrics_are_measured_beside_the_built_in_ones(folder):
    for row in csv.DictReader((folder / "out" / "frames.csv").read_text().splitlines()):
        assert float(row["example-brightness"]) == float(row["tta_example:brightness"])
    content = json.loads((folder / "out/results.json").read_text())
    assert content["summary"]["methods"]["source"]["example-brightness"]["all"]["mean"] > 1
    assert "example-brightness" in (folder / "out/report.html").read_text()
    rows = list(csv.DictReader((folder / "flat.csv").read_text().splitlines()))
    assert [float(row["example-brightness"]) for row in rows] == pytest.approx([1.25, 1.25], abs=0.01)
    rows = list(csv.DictReader((folder / "clips.csv").read_text().splitlines()))
    assert [row["family"] for row in rows] == ["flat", "flat"]
    assert float(rows[0]["tta_example:brightness"]) == pytest.approx(0.625, abs=0.01)
    rows = list(csv.DictReader((folder / "sets/frames.csv").read_text().splitlines()))
    assert {row["family"] for row in rows} == {"example-flat"}


def test_train_takes_model_and_layout_and_the_result_loads_by_its_file(folder):
    assert (folder / "trained.png").exists()
    assert (folder / "trained/restorer.safetensors").exists()


def test_train_takes_degradations_and_metrics_of_validation(folder):
    def last(name: str) -> dict[str, float]:
        lines = [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
        return next(line for line in lines if any(key.startswith("validation/") for key in line))

    hazy = last("hazy")
    assert hazy["validation/example-brightness"] == hazy["validation/tta_example:brightness"] > 1.25  # hazy, brightened
    assert last("misaligned")["validation/example-brightness"] > 1.1
    state = json.loads((folder / "hazy/best/score.json").read_text())
    assert set(state) == {"step", "psnr", "example-brightness", "tta_example:brightness"}
    assert (folder / "reblur/reblur.safetensors").exists()


def test_methods_of_restore_take_degradations(folder):
    photo = read_image(folder / "photo.png").pixels
    hazy, usual = (read_image(folder / f"{name}.png").pixels for name in ("example-haze", "blur_noise"))
    assert 0 < (hazy - usual).abs().mean() < 0.2
    assert (read_image(folder / "fogging.png").pixels - (0.8 * 1.25 * photo + 0.2)).abs().max() <= 2 / 255


def test_reproduce_takes_a_table_with_model_layout_and_metric(folder):
    values = json.loads((folder / "table/results.json").read_text())["values"]
    found = {(value["row"], value["quantity"]): value for value in values}
    assert found["brighter", "example-brightness"]["measured"] == pytest.approx(1.25, abs=0.01)
    assert found["input", "psnr"]["measured"] == 100.0
    assert found["brighter", "psnr"]["published"] == 20.0


def test_reproduce_takes_methods_degradations_and_a_layout_for_every_protocol(folder):
    values = json.loads((folder / "stream/results.json").read_text())["values"]
    found = {value["row"]: value["measured"] for value in values if value["quantity"] == "example-brightness"}
    hazy = found.pop("hazy, example-haze")
    assert found.pop("hazy, tta_example:Haze") == hazy == pytest.approx(0.8 * 1.25 + 0.2 / 0.25, abs=0.01)
    halved = pytest.approx(0.625, abs=0.01)
    assert found == {"brighter": pytest.approx(1.25, abs=0.01), "halved": halved, "halved by module": halved}


BROKEN = {
    "restorers": "bad-import = absent_module:Net\nbad-type = math:tau\nbad-exit = leaves:Net\nifan = torch.nn:Identity",
    "methods": "bad-import = absent_module:Method\nbad-class = torch.nn:Identity\ntent = torch.nn:Identity",
    "degradations": "bad-import = absent_module:Haze\nbad-class = torch.nn:Identity\nnoise = torch.nn:Identity",
    "metrics": "bad-import = absent_module:metric\nbad-type = math:tau\npsnr = math:dist",
    "layouts": "bad-import = absent_module:layout\nbad-type = math:tau\nfolders = math:dist",
}


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """An installed package whose entries cannot be used, or have the names of built-in ones."""
    package = tmp_path / "packages/tta_broken-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: tta-broken\nVersion: 1.0\n")
    groups = (f"[tta_restore.{group}]\n{entries}\n" for group, entries in BROKEN.items())
    (package / "entry_points.txt").write_text("\n".join(groups))
    (package.parent / "leaves.py").write_text("import sys\nsys.exit(1)\n")
    monkeypatch.syspath_prepend(package.parent)
    for registry, plugins in ((models.registry, "_plugins"), (degradations.registry, "_broken")):
        monkeypatch.setattr(registry, "_discovered", False)
        monkeypatch.setattr(registry, plugins, {})
    monkeypatch.setattr(extensions, "_used", set())
    user_code._announced.cache_clear()
    user_code.warn_of_namesake.cache_clear()
    for side in ("blurry", "sharp"):
        photo = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
        write_image(tmp_path / "pairs" / side / "a.png", Image(photo))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    user_code._announced.cache_clear()
    user_code.warn_of_namesake.cache_clear()


NET = ["--model", "torch.nn:Identity"]
PAIRS = ["evaluate-pairs", "pairs", "--layout", "folders", "--flow", "lucas_kanade"]
RESTORE = ["restore", "pairs/blurry/a.png", "-o", "out.png"]


@pytest.mark.filterwarnings("ignore:list_(models|degradations). plugin")
@pytest.mark.filterwarnings("ignore:'.*' is the built-in one")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*RESTORE, "--model", "bad-import"], "plugin 'bad-import' (absent_module:Net) failed: No module named"),
        ([*RESTORE, "--model", "bad-type"], "(math:tau) failed: expected a function or class, got float"),
        ([*RESTORE, "--model", "bad-exit"], "plugin 'bad-exit' (leaves:Net) failed: 1"),
        ([*RESTORE, "--model", "ifan"], "model 'ifan' needs weights: name its checkpoint"),
        ([*RESTORE, *NET, "--method", "bad-import"], "method bad-import: absent_module:Method: No module named"),
        (
            [*RESTORE, *NET, "--method", "bad-class"],
            "method bad-class: expected a subclass of adapters.Adapter, got class Identity",
        ),
        (["train", "supervised", "--model.name", "bad-import", "--data.pictures", "bundled"], "(absent_module:Net)"),
        (["evaluate", *NET, "--degradations", "bad-import"], "plugin 'bad-import' (absent_module:Haze) failed"),
        (["evaluate", *NET, "--degradations", "bad-class"], "expected 'bad-class' to be a subclass of Degradation"),
        ([*PAIRS, *NET, "--metrics", "bad-import"], "--metrics: absent_module:metric: No module named"),
        ([*PAIRS, *NET, "--metrics", "bad-type"], "--metrics: bad-type is no function"),
        ([*PAIRS, *NET, "--metrics", "psnr"], "--metrics: psnr is measured anyway"),
        ([*PAIRS[:3], "bad-import", *PAIRS[4:], *NET], "absent_module:layout: No module named"),
        ([*PAIRS[:3], "bad-type", *PAIRS[4:], *NET], "bad-type: expected a function of root and split"),
    ],
)
def test_a_broken_plug_in_is_one_line(broken, capsys, words, message):
    from tta_restore.cli import main

    assert main([*words, "-q"]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert message in error


@pytest.mark.filterwarnings("default")
def test_a_broken_plug_in_breaks_no_other_command(broken, capsys):
    """Built-in models, methods, degradations, quantities and layouts are used, and namesakes told in a sentence."""
    from tta_restore.cli import main

    with pytest.warns(UserWarning, match=r"'tent' is the built-in one; .* is used as torch\.nn:Identity"):
        assert find_method("tent")[1] is adapters.Tent
    with pytest.warns(UserWarning, match="'folders' is the built-in one"):
        assert extensions.use_layout("folders") == "folders"
    assert main([*RESTORE, *NET, "--method", "source", "-q"]) == 0
    told = capsys.readouterr().err
    assert "plugin 'ifan' (torch.nn:Identity) has the name of a built-in model, which is used" in told
    restored, photo = (read_image(broken / name).pixels for name in ("out.png", "pairs/blurry/a.png"))
    assert torch.equal(restored, photo)
    with pytest.warns(UserWarning, match="'noise' is the built-in one"):
        assert isinstance(extensions.parse_degradation("noise:20").degradations[0], degradations.Noise)
    named = [name for name in ("psnr", "bad-type", "math:dist", "mae") if extensions.is_further_metric(name)]
    assert named == ["bad-type", "math:dist"]


@pytest.mark.thorough
def test_what_is_not_there_is_one_line(folder, monkeypatch, capsys):
    from tta_restore.cli import main

    monkeypatch.chdir(folder)
    pairs = ["evaluate-pairs", "flat", "--layout", "folders", "--model", "torch.nn:Identity", "--flow", "lucas_kanade"]
    for words, message in (
        (
            ["evaluate", "--data", "flat=pairs", *pairs[4:6], "--metrics", "sharpness"],
            "no metric 'sharpness'",
        ),
        (["evaluate", "--data", "flat=pairs", *pairs[4:6], "--metrics", "math:tau"], "math:tau is no function"),
        (["train", "supervised", "--data.degradations", "fog"], "[data] degradations fog: no degradation 'fog'"),
        (["train", "misaligned", "--validation.metrics", "math:tau"], "[validation] metrics: expected layout and root"),
        (["train", "reblur", "--data.degradations", "[]"], "[data] degradations: expected names"),
        (["evaluate-pairs", "flat", "--layout", "math:nothing", *pairs[4:]], "math:nothing: math has no nothing"),
        (["evaluate-pairs", "flat", "--layout", "math:sqrt", *pairs[4:]], "math:sqrt: TypeError: "),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
