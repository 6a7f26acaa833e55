"""The published protocol on small data sets in their layouts: crops, bits, turns, the table, and what is left out."""

import csv
import json

import pytest
import torch
from _alexnet import save_alexnet
from safetensors.torch import load_file
from torch import nn

from tta_restore import metrics, models
from tta_restore.cli.main import main
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.engine.evaluate import dpdd as published
from tta_restore.engine.evaluate.dpdd import PUBLISHED, run_published
from tta_restore.engine.run.usage import UsageError

SMALL = {"base_channels": 2, "num_steps": 2, "num_res_blocks": 1}


class Brighten(nn.Module):
    """Its output depends on the place, so that a picture that is turned, padded or cropped otherwise differs."""

    spec = models.RestorerSpec()

    def forward(self, x):
        assert x.shape[-2] % 8 == x.shape[-1] % 8 == 0
        ramp = torch.linspace(0, 0.1, x.shape[-1]).view(1, 1, 1, -1)
        return (x + ramp) * 1.1  # beyond 1 in places: to be clipped


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)

    def put(path, depth=8):
        write_image(root / path, Image(torch.rand(3, 45, 51, generator=generator)), bit_depth=depth)

    for i in (1, 2):
        for folder in ("test_c/source", "test_c/target", "test_r/source", "test_l/source"):
            put(f"DPDD/{folder}/{i}.png", 16)
        put(f"RealDOF/source/{i}.png")
        put(f"RealDOF/target/{i}.png")
        put(f"CUHK/image/out{i}.jpg")
    put("PixelDP/test_c/source/7.png")
    return root


@pytest.fixture
def brighten(monkeypatch):
    monkeypatch.setattr(published, "load_restorer", lambda model, **options: models.as_restorer(Brighten()))


def pictures_of(data, index, bits):
    blurry, sharp = (
        read_image(data / f"DPDD/test_c/{kind}/{index}.png").pixels[None, :, :40, :48] for kind in ("source", "target")
    )
    if bits == 8:
        blurry, sharp = (((p * 65535).round() // 256) / 255 for p in (blurry, sharp))
    return blurry, sharp


@pytest.mark.parametrize("bits", [8, 16])
def test_numbers_are_those_of_the_protocol(data, tmp_path, brighten, bits):
    said = []
    names = ("DPDD", "RealDOF", "CUHK", "PixelDP")
    domains = {name: data / name for name in names}
    options = {"model": "brighten", "bits": bits, "progress": False, "say": said.append}
    result = run_published(domains, tmp_path, **options)
    assert result.methods == ["input", "brighten"]
    assert result.families == ["DPDD", "RealDOF"]
    for record in result.of("brighten", "DPDD"):
        blurry, sharp = pictures_of(data, record.photo, bits)
        restored = Brighten()(blurry).clamp(0, 1)
        assert record.psnr == pytest.approx(float(-10 * (restored - sharp).square().mean().log10()), abs=1e-4)
        assert record.mae == pytest.approx(float((restored - sharp).abs().mean()), abs=1e-6)
        uniform = metrics.Protocol(window="uniform")
        assert record.ssim == pytest.approx(float(metrics.ssim(restored, sharp, protocol=uniform)), abs=1e-6)
        assert record.lpips is None
    rows = list(csv.reader((tmp_path / "table.csv").read_text().splitlines()))
    assert rows[0][1:7] == ["data set", "pictures", "PSNR", "SSIM", "MAE", "LPIPS"]
    mean = result.value("brighten", "psnr", "DPDD").mean
    assert ["brighten", "DPDD", "2", f"{mean:.2f}"] == rows[2][:4]
    assert ["IFAN", "DPDD", "", "25.37", "0.789", "0.0394", "0.217", "published"] in rows
    assert ["IFAN", "RealDOF", "", "24.71", "0.748", "0.0407", "0.306", "published"] in rows
    text = "\n".join(said)
    assert "LPIPS is left out: Lpips: expected AlexNet's weights" in text
    assert "CUHK, PixelDP: no originals, nothing to measure" in text
    page = (tmp_path / "report.html").read_text()
    assert "Beside the published numbers" in page
    assert "LPIPS is left out" in page
    assert "all data sets" in page
    assert "lenses" not in page
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["bits"] == bits
    assert sorted(p.relative_to(tmp_path).as_posix() for p in (tmp_path / "pictures").rglob("*.png")) == [
        "pictures/CUHK/out1.png", "pictures/CUHK/out2.png", "pictures/PixelDP/7.png",
    ]  # fmt: skip
    again = run_published(domains, tmp_path, **options)
    assert again.records == result.records  # read back, not run
    with pytest.raises(UsageError, match="holds a run of another model"):
        run_published(domains, tmp_path, **(options | {"bits": 24 - bits}))


def test_pixel_pictures_are_turned_and_turned_back(data, tmp_path, brighten):
    run_published({"PixelDP": data / "PixelDP"}, tmp_path, model="b", progress=False, say=lambda text: None)
    picture = read_image(data / "PixelDP/test_c/source/7.png").pixels[None, :, :40, :48]
    expected = Brighten()(picture.rot90(1, (2, 3))).rot90(-1, (2, 3)).clamp(0, 1)
    found = read_image(tmp_path / "pictures/PixelDP/7.png").pixels[None]
    torch.testing.assert_close(found, expected, atol=0.51 / 255, rtol=0)
    assert not torch.allclose(found, Brighten()(picture).clamp(0, 1), atol=0.01)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.thorough
def test_lpips_is_measured_where_a_file_is_given(data, tmp_path, brighten):
    save_alexnet(tmp_path / "alexnet.pth")
    said = []
    result = run_published(
        {"RealDOF": data / "RealDOF"}, tmp_path / "out", model="b", limit=1, progress=False, say=said.append,
        lpips_weights=tmp_path / "alexnet.pth",
    )  # fmt: skip
    assert "lpips" in result.quantities
    assert "left out" not in "\n".join(said)
    assert all(r.lpips > 0 for r in result.records)
    with pytest.raises(UsageError, match=r"^--lpips-weights: .*nowhere\.pth"):
        run_published({"RealDOF": data / "RealDOF"}, tmp_path / "x", model="b", lpips_weights=tmp_path / "nowhere.pth")


@pytest.mark.thorough
def test_the_command_line_with_ifan(data, tmp_path, capsys):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {name: models.create_model(name, **SMALL) for name in ("ifan", "ifan_dual")}
    for name, network in networks.items():
        torch.save(network.state_dict(), tmp_path / f"{name}.pytorch")
    arguments = ["--checkpoint", str(tmp_path / "ifan.pytorch"), "--limit", "1"]
    data_sets = ["--data", f"DPDD={data / 'DPDD'}", f"RealDOF={data / 'RealDOF'}"]
    assert main(["evaluate", "--model", "ifan", *arguments, *data_sets, "--out", str(tmp_path / "one")]) == 0
    text = capsys.readouterr().out
    assert "25.37" in text
    assert "measured" in text
    blurry, sharp = pictures_of(data, 1, 8)
    with torch.no_grad():
        restored = networks["ifan"].eval()(blurry)
    rows = list(csv.DictReader((tmp_path / "one/frames.csv").read_text().splitlines()))
    found = next(float(row["psnr"]) for row in rows if (row["method"], row["family"]) == ("ifan", "DPDD"))
    assert found == pytest.approx(float(metrics.psnr(restored, sharp)), abs=1e-3)
    # disparity and filters as tensors and images
    shown = ["--data", f"RealDOF={data / 'RealDOF'}", "--save-pictures", "--out", str(tmp_path / "maps")]
    assert main(["evaluate", "--model", "ifan", *arguments, *shown]) == 0
    maps = load_file(tmp_path / "maps/maps/RealDOF/1.safetensors")
    other = read_image(data / "RealDOF/source/1.png").pixels[None, :, :40, :48]
    with torch.no_grad():
        made = networks["ifan"].forward_train(other)
    torch.testing.assert_close(maps["disparity"], made.disparity)
    torch.testing.assert_close(maps["filter_strength"], made.filters.square().mean(1, keepdim=True).sqrt())
    assert read_image(tmp_path / "maps/maps/RealDOF/1.disparity.png").pixels.shape[-2:] == (5, 6)
    # dual: the views are found and used
    arguments[1] = str(tmp_path / "ifan_dual.pytorch")
    assert main(["evaluate", "--model", "ifan_dual", *arguments, *data_sets[:2], "--out", str(tmp_path / "two")]) == 0
    right, left = (
        ((read_image(data / f"DPDD/test_{side}/source/1.png").pixels[None, :, :40, :48] * 65535).round() // 256) / 255
        for side in "rl"
    )
    with torch.no_grad():
        restored = networks["ifan_dual"].eval()(blurry, right, left)
    rows = list(csv.DictReader((tmp_path / "two/frames.csv").read_text().splitlines()))
    found = next(float(row["psnr"]) for row in rows if row["method"] == "ifan_dual")
    assert found == pytest.approx(float(metrics.psnr(restored, sharp)), abs=1e-3)
    assert main(["evaluate", "--model", "ifan_dual", *arguments, *data_sets, "--out", str(tmp_path / "three")]) == 2
    assert "RealDOF: find_files: realdof has no dual-pixel views" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "ifan"], "model 'ifan' needs weights: name its checkpoint"),
        (["--model", "specialist", "--checkpoint", "x"], "belong to a registered model or"),
        (["--model", "ifan", "--checkpoint", "absent.pth"], "there is no file absent.pth"),
        (["--model", "generalist", "--data", "DPDD=nowhere"], "DPDD: there is no folder nowhere"),
    ],
)
def test_wrong_usage(data, tmp_path, capsys, arguments, message):
    chosen = arguments if "--data" in arguments else [*arguments, "--data", f"DPDD={data / 'DPDD'}"]
    assert main(["evaluate", *chosen, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_published_table_is_complete():
    assert {name: len(rows) for name, rows in PUBLISHED.items()} == {"dpdd": 7, "realdof": 6}
    for rows in PUBLISHED.values():
        psnr, ssim, mae, lpips = zip(*rows.values(), strict=True)
        assert max(psnr) == rows["IFAN"][0]
        assert max(ssim) == rows["IFAN"][1]
        assert min(mae) == rows["IFAN"][2]
        assert min(lpips) == rows["IFAN"][3]
