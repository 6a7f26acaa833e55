"""The continual protocol over folders: every method, nothing reset, killed and continued, and what is refused."""

import csv
import json

import pytest
import torch
from torch import nn

from tta_restore import adapters
from tta_restore.cli.main import main
from tta_restore.data.datasets.layouts import folder_frames
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.engine.evaluate import continual
from tta_restore.engine.evaluate.continual import run_continual
from tta_restore.engine.evaluate.results import StreamResult
from tta_restore.engine.evaluate.runner import run_resumable
from tta_restore.engine.report.samples import KeptPictures
from tta_restore.engine.run import methods
from tta_restore.engine.run.methods import ImageMethod
from tta_restore.engine.run.usage import UsageError
from tta_restore.models import RestorerSpec, as_restorer


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    generator = torch.Generator().manual_seed(0)
    for name, kinds in (("first", ("source", "target")), ("second", ("input", "ground_truth")), ("blind", ("",))):
        for i in range(3):
            picture = torch.rand(3, 20, 24, generator=generator)
            for kind in kinds:
                (folder / name / kind).mkdir(parents=True, exist_ok=True)
                write_image(folder / name / kind / f"{i}.png", Image(picture))
    return {name: folder / name for name in ("first", "blind", "second")}


class Net(nn.Module):
    spec = RestorerSpec()

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.Conv2d(6, 3, 3, padding=1))

    def forward(self, x):
        return x + 0.1 * self.body(x)


@pytest.fixture(autouse=True)
def small_model(monkeypatch):
    monkeypatch.setattr(continual, "load_restorer", lambda model, **options: as_restorer(Net()))


@pytest.mark.thorough
def test_every_method_runs_side_by_side_and_nothing_is_measured_without_an_original(domains, tmp_path, monkeypatch):
    def no_clip(restorer, **options):
        raise ValueError("no CLIP")  # its weights are not there: that row is left out, and said

    table = {**methods.METHODS, "causiam": (no_clip, None)}
    monkeypatch.setattr(methods, "METHODS", table)
    said = []
    names = ["source", "causiam", "siam-ctta", "tent", "tent[variant=official]", "sar[variant=official]"]
    options = {"methods": names, "limit": 2, "progress": False}
    result = run_continual(domains, tmp_path, say=said.append, seed=3, **options)
    assert said[0] == "left out: method 'causiam': no CLIP"
    assert "LPIPS is left out: Lpips: expected AlexNet's weights" in said[1]
    assert "4 frames, 2 data sets." in said[1]
    assert "lens" not in said[1]
    assert "LPIPS is left out" in (tmp_path / "report.html").read_text()
    assert result.methods == ["self-ensemble", *(n for n in names if n not in ("causiam", "self-ensemble"))]
    assert result.families == ["first", "second"]
    for name in result.methods:
        assert [r.index for r in result.of(name)] == [0, 1, 4, 5]
    learned = {r.method for r in result.records if r.report.get("updated")}
    assert learned == {"siam-ctta", "tent", "tent[variant=official]"}
    # Two unmeasured frames were adapted on in between.
    assert [r.report["frame"] for r in result.of("siam-ctta")] == [0, 1, 4, 5]
    page = (tmp_path / "report.html").read_text()
    assert "siam-ctta" in page
    # The middle picture of each data set with originals, as every method and the file have it, and the original
    assert page.count("The middle picture of this data set") == 2
    assert {path.name for path in (tmp_path / "run").glob("tent.*.png")} == {"tent.1.png", "tent.5.png"}
    for family, shown in (("first", "1"), ("second", "1")):
        assert f"{family}: {shown}" in page
    rows = list(csv.DictReader((tmp_path / "frames.csv").read_text().splitlines()))
    assert len(rows) == 4 * len(result.methods)
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["domains"]["blind"]
    again = run_continual(domains, tmp_path, say=said.append, seed=3, **options)
    assert again.records == result.records  # all done: read back, not run
    with pytest.raises(UsageError, match=r"holds a run of another model, seed or data \(seed differs\); give"):
        run_continual(domains, tmp_path, seed=4, **options)


def test_pictures_that_are_shown_are_crops_of_the_last_round(tmp_path):
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    for i in range(2):
        for kind in ("source", "target"):
            write_image(tmp_path / kind / f"{i}.png", Image(torch.rand(3, 20, 500, generator=generator)))
    frames = folder_frames({"set": tmp_path}, rounds=2)
    kept = KeptPictures(frames, tmp_path / "run")
    assert kept.chosen == [3]
    records = run_resumable(
        frames, "m", ImageMethod(adapters.Adapter(Net())), tmp_path / "run", look=lambda i, y: kept.keep("m", i, y)
    )
    (sample,) = kept.samples(StreamResult(tuple(records)), before="input", after="m")
    assert sample.pictures["input"].shape == sample.sharp.shape == sample.pictures["m"].shape == (3, 20, 320)
    assert torch.equal(sample.sharp, frames[3].sharp[..., 90:410])
    expected = Net()(frames[3].blurry[None])[0, :, :, 90:410].detach().clamp(0, 1)
    assert (sample.pictures["m"] - expected).abs().max() <= 0.5 / 255 + 1e-6
    assert sample.psnr["m"] == records[3].psnr


@pytest.mark.thorough
def test_a_killed_run_goes_on_where_its_last_state_was(domains, tmp_path):
    frames = folder_frames(domains, rounds=2)

    def method():
        return ImageMethod(adapters.SiamCTTA(Net(), select="all", lr=1e-2))

    def numbers(records):
        return [(r.index, r.psnr, r.report["loss"]) for r in records]

    whole = run_resumable(frames, "siam", method(), tmp_path / "whole", progress=False, save_every=4)
    assert len(whole) == 12
    assert [path.name for path in (tmp_path / "whole").glob("*.safetensors")] == ["siam.18.safetensors"]

    class Killed(ImageMethod):
        def __call__(self, x):
            if self.adapter.state.frames == 10:
                raise KeyboardInterrupt
            return super().__call__(x)

    with pytest.raises(KeyboardInterrupt):
        run_resumable(frames, "siam", Killed(method().adapter), tmp_path / "cut", progress=False, save_every=4)
    assert [path.name for path in (tmp_path / "cut").glob("*.safetensors")] == ["siam.8.safetensors"]
    log = tmp_path / "cut" / "siam.jsonl"
    assert len(log.read_text().splitlines()) == 7  # one more than the state has seen
    log.write_text(log.read_text()[:-30])  # a kill leaves what a buffer held
    rest = run_resumable(frames, "siam", method(), tmp_path / "cut", progress=False, save_every=4)
    assert numbers(rest) == numbers(whole)


@pytest.mark.parametrize("content", ['{"index": 0, "bro\n', "null\n", "[]\n", '{"x": 1}\n', "\xff\n"])
def test_damaged_records_are_named(content, domains, tmp_path):
    frames = folder_frames(domains, rounds=1)
    run_resumable(frames, "m", ImageMethod(adapters.Adapter(Net())), tmp_path, progress=False)
    (tmp_path / "m.jsonl").write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=r"m.jsonl: damaged records of an earlier run; remove .* to start anew"):
        run_resumable(frames, "m", ImageMethod(adapters.Adapter(Net())), tmp_path, progress=False)


@pytest.mark.thorough
def test_the_command_line_reaches_it(domains, tmp_path, capsys):
    data = [f"{name}={path}" for name, path in domains.items()]
    arguments = ["evaluate", "--out", str(tmp_path / "out"), "--methods", "source", "--limit", "1", "--data", *data]
    assert main(arguments) == 0
    assert "PSNR gain over self-ensemble" in capsys.readouterr().out
    assert main(["evaluate", "--out", str(tmp_path / "x"), "--methods", "nothing", "--data", *data]) == 2
    assert "no method 'nothing'" in capsys.readouterr().err
    assert main(["evaluate", "--out", str(tmp_path / "y"), "--data", f"a={tmp_path / 'nowhere'}"]) == 2
    assert main(["evaluate", "--data", "nameless"]) == 2


def test_an_original_of_another_size_is_named(tmp_path):
    for kind, size in (("source", 20), ("target", 24)):
        write_image(tmp_path / "d" / kind / "a.png", Image(torch.rand(3, size, size)))
    frames = folder_frames({"d": tmp_path / "d"})
    with pytest.raises(ValueError, match=r"for frame 0 \(.*source/a.png\), expected \(1, 3, 24, 24\)"):
        run_resumable(frames, "m", ImageMethod(adapters.Adapter(Net())), tmp_path / "run", progress=False)


def test_data_without_originals_alone_is_refused(tmp_path):
    write_image(tmp_path / "CUHK/image/out.png", Image(torch.rand(3, 20, 20)))
    with pytest.raises(UsageError, match="CUHK: no originals, nothing to measure; `tta-restore restore --method`"):
        run_continual({"CUHK": tmp_path / "CUHK"}, tmp_path / "out", methods=["source"], device="cpu")
    assert not (tmp_path / "out").exists()
