"""`reproduce` on made-up data sets in the layouts of the papers, with small files that have the official keys."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _meta_networks import Deblur, seeded
from _tiny_clip import save_tiny_clip
from torch import nn

from tta_restore import metrics, models
from tta_restore.cli.main import main
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.engine.evaluate import protocols, reproduction
from tta_restore.engine.evaluate.outcome import Cost, unchanged_rows
from tta_restore.engine.evaluate.reproduce import reproduce
from tta_restore.engine.evaluate.results import FrameRecord
from tta_restore.engine.evaluate.runner import Unit, run_units
from tta_restore.engine.evaluate.tables import DataSet, Row, Table
from tta_restore.engine.report.comparison import Comparison, render_comparison
from tta_restore.engine.run.settings import Named
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.run.user_code import import_named
from tta_restore.engine.train.files import write_weights
from tta_restore.models.ifan.checkpoint import official_names
from tta_restore.models.pwc_net import PWCNet

pytest.importorskip("jinja2")
SMALL_IFAN = {"base_channels": 2, "num_steps": 2, "num_res_blocks": 1}
HEIGHT, WIDTH = 45, 51


def photo(number, height=HEIGHT, width=WIDTH):
    """A smooth random image and a blurred version of it."""
    generator = torch.Generator().manual_seed(number)
    sharp = F.interpolate(torch.rand(1, 3, 12, 12, generator=generator), (height, width), mode="bilinear")
    return sharp[0], F.avg_pool2d(sharp, 5, 1, 2, count_include_pad=False)[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Every data set of the tables, two images each, in the published layouts."""
    root = tmp_path_factory.mktemp("data")

    def put(path, image, depth=8):
        write_image(root / path, Image(image), bit_depth=depth)

    pairs = {
        "DPDD": ("test_c/source", "test_c/target"),
        "RealDOF": ("source", "target"),
        "SDD": ("test/blur", "test/gt"),
        "LFDOF": ("input", "ground_truth"),
        "RTF": ("blur", "sharp"),
    }
    for order, (name, folders) in enumerate(pairs.items()):
        for number in range(1 if name in ("RTF", "RealDOF") else 2):
            sharp, blurry = photo(10 * order + number)
            for folder, image in zip(folders, (blurry, sharp), strict=True):
                put(f"{name}/{folder}/{number}.png", image, 16 if name == "DPDD" else 8)
    for side in "rl":
        for number in range(2):
            put(f"DPDD/test_{side}/source/{number}.png", photo(number)[1], 16)
    put("CUHK/image/out.png", photo(70)[1])
    for name, split, video, folders in (
        ("DVD", "", "one", ("input", "GT")),
        ("DVD", "", "two", ("input", "GT")),
        ("DVD", "", "training", ("input", "GT")),
        ("REDS", "test/", "000", ("blur", "sharp")),
        ("RealBlur", "", "scene001", ("blur", "gt")),
    ):
        for frame in range(2):
            sharp, blurry = photo(100 + 3 * len(video) + frame, 40, 48)
            for folder, image in zip(folders, (blurry, sharp), strict=True):
                stem = f"{folder}_{frame}" if name == "RealBlur" else f"{frame:05d}"
                put(f"{name}/{split}{video}/{folder}/{stem}.png", image)
    (root / "DVD/test_list.txt").write_text("one\ntwo\n")
    (root / "RealBlur/RealBlur_J_test_list.txt").write_text("scene001/gt/gt_0.png scene001/blur/blur_0.png\n")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Small random files with the keys of the official ones."""
    folder = tmp_path_factory.mktemp("weights")
    ifan = seeded(lambda: models.create_model("ifan", horizontal="vertical", **SMALL_IFAN))
    official = {f"module.Network.{name}": value for name, value in official_names(ifan.state_dict()).items()}
    rbn = {f"module.reblurNet.RBF.{i}.bias": torch.zeros(1) for i in (0, 3)}
    torch.save(official | rbn, folder / "IFAN.pytorch")
    unet = seeded(lambda: models.create_model("jdrl_unet", width=2))
    states = {"G_state_dict": unet, "Reblur_state_dict": seeded(lambda: models.create_model("jdrl_reblur", width=2))}
    wrapped = {key: {f"module.{n}": v for n, v in module.state_dict().items()} for key, module in states.items()}
    torch.save({"epoch": 100, "global_step": 100, **wrapped}, folder / "UNet.pth")
    torch.save(seeded(lambda: models.create_model("dpdnet_s", width=2)).state_dict(), folder / "DPDNet.pth")
    flow = {name.replace("net", "module", 1): v * 0.1 for name, v in seeded(PWCNet).state_dict().items()}
    torch.save(flow, folder / "pwc-default")
    torch.save(seeded(Deblur).state_dict(), folder / "deblur.pth")
    reblur = {"fusion": "channels", "base_channels": 2, "num_layers": 1}
    networks = {
        "reblur": seeded(lambda: models.create_model("video_reblur", **reblur)),
        "discriminator": seeded(lambda: models.create_model("patch_critic", base_channels=2)),
    }
    built = {"reblur": ("video_reblur", reblur), "discriminator": ("patch_critic", {"base_channels": 2})}
    write_weights(folder, networks, built)
    return folder


def run(table, out, **options):
    said = []
    outcome = reproduce(table, out=out, progress=False, say=said.append, device="cpu", **options)
    return outcome, "\n".join(said)


def read(path, multiple=1):
    pixels = read_image(path).as_rgb(bit_depth=8)[None]
    height, width = (side // multiple * multiple for side in pixels.shape[-2:])
    return pixels[..., :height, :width]


def mean_psnr(pairs):
    return float(np.mean([-10 * np.log10(float((a - b).double().square().mean())) for a, b in pairs]))


def uniform_ssim(a, b):
    from skimage.metrics import structural_similarity

    return structural_similarity(a[0].double().numpy(), b[0].double().numpy(), channel_axis=0, data_range=1.0)


@pytest.mark.thorough
def test_ifan_dpdd(data, weights, tmp_path, monkeypatch):
    options = {"data": {"DPDD": data / "DPDD"}, "weights": {"IFAN": weights / "IFAN.pytorch"}}
    outcome, said = run("ifan-dpdd", tmp_path, **options)
    assert outcome.exit_code == 0
    assert outcome.measured == ("input", "IFAN")
    # what is missing comes first
    assert said.startswith("Missing:\n")
    assert "the published values are of 76 images" in said
    assert "--weights DPDNet-S=FILE   the model dpdnet_s; for DPDNet-S" in said
    assert "LPIPS is left out" in said
    assert "--lpips-weights FILE   alexnet-owt-7be5be79.pth of torchvision" in said.partition("\n\n")[0]
    # values
    pairs = [[read(data / f"DPDD/test_c/{kind}/{i}.png", 8) for kind in ("source", "target")] for i in range(2)]
    model = models.create_model("ifan", checkpoint=weights / "IFAN.pytorch").eval()
    with torch.no_grad():
        restored = [(model(blurry).clamp(0, 1), sharp) for blurry, sharp in pairs]
    entry = outcome.entry("IFAN", "DPDD", "psnr")
    assert entry.published == 25.37
    assert entry.measured == pytest.approx(mean_psnr(restored), abs=1e-4)
    assert entry.difference == pytest.approx(entry.measured - 25.37)
    assert outcome.entry("input", "DPDD", "psnr").measured == pytest.approx(mean_psnr(pairs), abs=1e-4)
    found = outcome.entry("IFAN", "DPDD", "ssim").measured
    assert found == pytest.approx(np.mean([uniform_ssim(*pair) for pair in restored]), abs=1e-6)
    mae = np.mean([float((a - b).abs().mean()) for a, b in restored])
    assert outcome.entry("IFAN", "DPDD", "mae").measured == pytest.approx(mae, abs=1e-6)
    assert outcome.entry("JNB", "DPDD", "psnr").measured is None
    # parameters and MACs: of this small file, and of a built-in network without weights
    published, own = outcome.costs["IFAN"]
    assert (published.parameters, published.gmacs) == (10.48, 362.9)
    assert own.parameters == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6)
    assert outcome.costs["DPDNet-S"][1].parameters == pytest.approx(31.033423)
    # files
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert {row["row"] for row in rows} == {"input", "JNB", "EBDB", "DMENet", "DPDNet-S", "DPDNet-D", "IFAN"}
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["costs"]["IFAN"]["published"]["seconds"] == 0.014
    page = (tmp_path / "report.html").read_text()
    assert "25.37" in page
    assert '<table class="many">' in page  # four quantities fit by smaller print
    assert "<td>1172.5</td>" in page.replace(' class="published first"', "")  # costs as printed
    assert "105.800" not in page
    assert page.count("data:image/png") == 3  # input, IFAN and the original of the middle image

    # a second run with more weights measures only what is new
    def forbidden(self, x, **arguments):
        raise AssertionError("measured again")

    before = outcome.entries
    options["weights"]["DPDNet-S"] = weights / "DPDNet.pth"
    outcome, _ = run("ifan-dpdd", tmp_path, **options)
    assert outcome.measured == ("input", "DPDNet-S", "IFAN")
    monkeypatch.setattr(models.Restorer, "forward", forbidden)
    again, _ = run("ifan-dpdd", tmp_path, **options)
    assert again.entries == outcome.entries
    assert set(before) - {e for e in before if e.row == "DPDNet-S"} <= set(again.entries)


@pytest.mark.thorough
def test_ifan_dual_and_16_bit(data, weights, tmp_path):
    model = seeded(lambda: models.create_model("ifan_dual", **SMALL_IFAN))
    torch.save(model.state_dict(), tmp_path / "dual.pytorch")
    own = {"data": {"dpdd": data / "DPDD"}, "limit": 1}
    outcome, _ = run("ifan-dual", tmp_path / "dual", weights={"IFAN_dual": tmp_path / "dual.pytorch"}, **own)
    assert outcome.measured == ("input", "IFAN dual")
    assert "Only the first 1 images" in (tmp_path / "dual/report.html").read_text()
    wide, _ = run("ifan-16bit", tmp_path / "wide", weights={"IFAN_16bit": weights / "IFAN.pytorch"}, **own)
    before, sharp = (
        read_image(data / f"DPDD/test_c/{k}/0.png").pixels[None, :, :40, :48] for k in ("source", "target")
    )
    assert wide.entry("input", "DPDD", "psnr").measured == pytest.approx(mean_psnr([(before, sharp)]), abs=1e-4)
    assert wide.entry("input", "DPDD", "psnr").measured != outcome.entry("input", "DPDD", "psnr").measured
    assert {row for row, (_, cost) in outcome.costs.items() if cost.gmacs} == {"IFAN dual"}


def warped_as_released(image, flow):
    """The warp of the official code: a corner-aligned grid, sampled in the half-pixel convention."""
    height, width = image.shape[-2:]
    x = torch.linspace(-1, 1, width) + 2 * flow[0, 0] / (width - 1)
    y = torch.linspace(-1, 1, height)[:, None] + 2 * flow[0, 1] / (height - 1)
    return F.grid_sample(image, torch.stack((x, y), -1)[None], padding_mode="border", align_corners=False)


@pytest.mark.thorough
def test_jdrl_sdd(data, weights, tmp_path):
    files = {"UNet": weights / "UNet.pth", "pwc": weights / "pwc-default"}
    own = {"data": {"SDD": data / "SDD"}, "limit": 1, "rows": ["UNet*", "MPRNet*"]}
    outcome, said = run("jdrl-sdd", tmp_path, weights=files, **own)
    assert outcome.measured == ("UNet*",)
    assert "--weights MPRNet=FILE   a network of another project" in said
    flow = protocols.create_flow("pwc", checkpoint=files["pwc"])
    unet = models.create_model("jdrl_unet", checkpoint=files["UNet"], bgr=True).eval()
    blurry, sharp = (read(data / f"SDD/test/{kind}/0.png", 16) for kind in ("blur", "gt"))
    with torch.no_grad():
        restored = unet(blurry)
    warped = warped_as_released(sharp, flow(restored.flip(1), sharp.flip(1)))  # the pipeline is BGR
    psnr, ssim = mean_psnr([(restored, warped)]), uniform_ssim(restored, warped)
    assert outcome.entry("UNet*", "SDD", "aligned_psnr").measured == pytest.approx(psnr, abs=1e-3)
    assert outcome.entry("UNet*", "SDD", "aligned_ssim").measured == pytest.approx(ssim, abs=1e-5)
    assert outcome.entry("MPRNet*", "SDD", "aligned_psnr").published == 26.88
    page = (tmp_path / "report.html").read_text()
    assert f'data-psnr="{psnr:.2f} dB"' in page  # of the image, as in the table
    assert "PSNR after alignment, of the whole image" in page
    # without the flow network nothing can be measured, and it says so
    said = []
    with pytest.raises(UsageError, match="nothing to measure"):
        reproduce("jdrl-sdd", data={"SDD": data / "SDD"}, out=tmp_path / "no", say=said.append)
    assert "--weights pwc=FILE   PWC-Net; for input, UNet*" in said[0]
    # DPDD: plain values
    outcome, _ = run("jdrl-dpdd", tmp_path / "dpdd", data={"DPDD": data / "DPDD"}, weights={"UNet": files["UNet"]})
    pairs = []
    for number in range(2):
        blurry, sharp = (read_image(data / f"DPDD/test_c/{k}/{number}.png").as_rgb()[None, :, :32, :48]
                         for k in ("source", "target"))  # fmt: skip
        with torch.no_grad():
            pairs.append((unet(blurry), sharp))
    assert outcome.entry("UNet*", "DPDD", "psnr").measured == pytest.approx(mean_psnr(pairs), abs=1e-4)


def luma(image):
    image = (image.double() * 255).round()
    return (65.738 * image[:, 0] + 129.057 * image[:, 1] + 25.064 * image[:, 2]) / 256 + 16


class Plus(nn.Module):
    """A deblurrer of another project: brightens."""

    def forward(self, x):
        return x * 1.02


META = {
    "settings": ["meta-transfer.num_patches=1", "meta-transfer.patch_size=32", "meta-transfer.min_sharpness_gain=0"],
    "progress": False,
    "device": "cpu",
}


@pytest.mark.thorough
def test_meta_table1(data, weights, tmp_path, monkeypatch):
    from skimage.metrics import structural_similarity

    monkeypatch.setattr(reproduction, "load_restorer", lambda source, **options: models.as_restorer(Plus()))
    folders = {"DVD": data / "DVD", "REDS": data / "REDS", "RealBlur-J": data / "RealBlur"}
    outcome, _ = run(
        "meta-table1", tmp_path, data=folders, models={"Restormer": "somebody:Net"}, rows=["Restormer (baseline)"]
    )
    assert outcome.measured == ("Restormer (baseline)",)
    # DVD: the videos of the list file, padded by reflection to 32, 8 bits
    values, ssims = [], []
    for video in ("one", "two"):
        for frame in range(2):
            blurry, sharp = (
                F.pad(read(data / f"DVD/{video}/{kind}/{frame:05d}.png"), (0, 16, 0, 24), mode="reflect")
                for kind in ("input", "GT")
            )
            restored = ((blurry * 1.02).clamp(0, 1) * 255).round() / 255
            values.append((restored, sharp))
            ssims.append(
                structural_similarity(
                    luma(restored)[0].numpy(), luma(sharp)[0].numpy(), data_range=255, gaussian_weights=True, sigma=1.5,
                    use_sample_covariance=False,
                )
            )  # fmt: skip
    entry = outcome.entry("Restormer (baseline)", "DVD", "psnr")
    assert (entry.published, entry.images) == (29.67, 4)
    assert entry.measured == pytest.approx(mean_psnr(values), abs=1e-3)
    assert outcome.entry("Restormer (baseline)", "DVD", "ssim").measured == pytest.approx(np.mean(ssims), abs=1e-4)
    assert outcome.entry("Restormer (baseline)", "REDS", "psnr").images == 2
    aligned = [
        metrics.aligned_scores((read(data / f"RealBlur/scene001/blur/blur_{t}.png") * 1.02).clamp(0, 1),
                               read(data / f"RealBlur/scene001/gt/gt_{t}.png")).psnr
        for t in range(2)
    ]  # fmt: skip
    found = outcome.entry("Restormer (baseline)", "RealBlur-J", "psnr").measured
    assert found == pytest.approx(np.mean(aligned), abs=0.05)  # 8 bits first
    clips = list(csv.DictReader((tmp_path / "clips.csv").read_text().splitlines()))
    assert [(c["data set"], c["video"], c["frames"]) for c in clips] == [
        ("DVD", "one", "2"), ("DVD", "two", "2"), ("REDS", "000", "2"), ("RealBlur-J", "scene001", "2"),
    ]  # fmt: skip


def test_identical_frames_count_100_db(data, tmp_path, monkeypatch):
    for frame in range(3):
        for kind in ("input", "GT"):
            write_image(tmp_path / f"DVD/test/one/{kind}/{frame}.png", Image(photo(frame, 32, 32)[0]))
    monkeypatch.setattr(reproduction, "load_restorer", lambda source, **options: models.as_restorer(nn.Identity()))
    outcome, _ = run(
        "meta-table2", tmp_path / "out", data={"DVD": tmp_path / "DVD"}, models={"MPRNet": "a:b"},
        rows=["MPRNet (baseline)"],
    )  # fmt: skip
    assert outcome.entry("MPRNet (baseline)", "DVD", "psnr").measured == 100.0


@pytest.mark.thorough
def test_meta_table2(data, weights, tmp_path, monkeypatch):
    """The four losses of a model of another project: its weights, ours of the other networks, its own training loss."""
    files = [f"Restormer={weights / 'deblur.pth'}", f"Restormer-meta={weights / 'deblur.pth'}"]
    files += [f"{name}={weights / name}.safetensors" for name in ("reblur", "discriminator")]
    rows = [f"Restormer ({what})" for what in ("baseline", "cycle", "GAN", "GAN+cycle")]
    arguments = ["reproduce", "meta-table2", "--data", f"DVD={data / 'DVD'}", "--weights", *files, "--models"]
    arguments += ["Restormer=_meta_networks:Deblur", "--out", str(tmp_path), "--device", "cpu", "--rows", *rows]
    arguments += ["--settings", *META["settings"], "meta-transfer.lr=0.01", "meta-transfer.reblur_lr=0.01", "-q"]
    assert main(arguments) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    measured = {value["row"]: value["measured"] for value in content["values"]}
    assert list(measured) == rows
    assert len(set(measured.values())) == 4  # each loss moves the weights elsewhere
    assert (tmp_path / "tta-restore.yaml").exists()


MIMO = """
import torch.nn.functional as F
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
    def forward(self, x):
        y = x + 0.1 * self.conv(x)
        half = F.interpolate(y, scale_factor=0.5, mode="bilinear")
        return [F.interpolate(half, scale_factor=0.5, mode="bilinear"), half, y]
def build_net(name):
    assert name == "MIMO-UNetPlus"
    return Net()
"""
CDVD = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
    def forward(self, x):
        assert x.shape[1] == 5
        first, second, third = (x[:, t] + 0.1 * self.conv(x[:, t]) for t in (1, 2, 3))
        return first, second, third, 0.9 * second + 0.05 * (first + third), None
def make_model(arguments):
    return Net()
"""
ADAPTERS = """
import sys
sys.path.insert(0, "{folder}")
def mimo():
    from copy_of_mimo import build_net
    return build_net("MIMO-UNetPlus")
def cdvd():
    from copy_of_cdvd import make_model
    return make_model(None)
"""


@pytest.mark.thorough
def test_meta_rows_of_a_users_copies(data, weights, tmp_path, monkeypatch, capsys):
    """The guide's adapters around made-up copies: files have the networks' own keys, as the authors' have."""
    for name, text in (("copy_of_mimo", MIMO), ("copy_of_cdvd", CDVD), ("our_adapters", ADAPTERS)):
        (tmp_path / f"{name}.py").write_text(text.replace("{folder}", str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    nets = {"MIMOUNet+": "mimo", "CDVD-TSP": "cdvd"}
    files = [f"{name}={weights / name}.safetensors" for name in ("reblur", "discriminator")]
    built = {}
    for name, function in nets.items():
        built[name] = seeded(lambda: import_named(f"our_adapters:{function}")())  # noqa: B023
        torch.save({"model": built[name].state_dict()}, tmp_path / f"{function}.pkl")
        files += [f"{name}={function}.pkl", f"{name}-meta={function}.pkl"]
    words = ["reproduce", "meta-table2", "--data", f"DVD={data / 'DVD'}", "--device", "cpu", "--out", "out", "-q"]
    assert main([*words[:4], "--dry-run"]) == 0
    assert (
        "--weights CDVD-TSP-meta=FILE   with --models CDVD-TSP=module.path:callable, which returns CDVD-TSP of your "
        "copy: five frames (B, 5, 3, H, W) in" in capsys.readouterr().out
    )
    words += ["--models", *(f"{name}=our_adapters:{function}" for name, function in nets.items()), "--weights", *files]
    words += ["--settings", *META["settings"], "meta-transfer.lr=0.01", "meta-transfer.reblur_lr=0.01"]
    assert main(words) == 0
    content = json.loads((tmp_path / "out/results.json").read_text())
    measured = {v["row"]: v["measured"] for v in content["values"] if v["measured"] is not None}
    assert list(measured) == [f"{name} ({what})" for name in nets for what in ("baseline", "cycle", "GAN", "GAN+cycle")]
    assert len(set(measured.values())) == 8  # each loss moves the weights elsewhere
    pairs = {name: [] for name in nets}
    for video in ("one", "two"):
        blurry, sharp = (
            torch.cat(
                [F.pad(read(data / f"DVD/{video}/{kind}/{t:05d}.png"), (0, 16, 0, 24), "reflect") for t in (0, 1)]
            )
            for kind in ("input", "GT")
        )
        for t in (0, 1):
            around = blurry[[max(0, min(1, t + o)) for o in range(-2, 3)]][None]
            with torch.no_grad():
                made = {"MIMOUNet+": built["MIMOUNet+"](blurry[t, None])[2], "CDVD-TSP": built["CDVD-TSP"](around)[3]}
            for name, image in made.items():
                pairs[name].append(((image.clamp(0, 1) * 255).round() / 255, sharp[t, None]))
    for name in nets:
        assert measured[f"{name} (baseline)"] == pytest.approx(mean_psnr(pairs[name]), abs=1e-3)


class Centered(nn.Module):
    def forward(self, x):
        return x - x.mean((-2, -1), keepdim=True) + 0.5


def test_meta_rows_restore_frames_whole(tmp_path, monkeypatch):
    """Frames of 1280 x 720 are larger than the tiles that other commands restore images in."""
    sharp, blurry = photo(3, 32, 1056)
    for kind, image in (("input", blurry), ("GT", sharp)):
        write_image(tmp_path / f"DVD/test/one/{kind}/0.png", Image(image))
    monkeypatch.setattr(reproduction, "load_restorer", lambda source, **options: models.as_restorer(Centered()))
    options = {"data": {"DVD": tmp_path / "DVD"}, "models": {"MPRNet": "a:b"}, "rows": ["MPRNet (baseline)"]}
    outcome, _ = run("meta-table2", tmp_path / "out", **options)
    blurry, sharp = (read(tmp_path / f"DVD/test/one/{kind}/0.png") for kind in ("input", "GT"))
    restored = (Centered()(blurry).clamp(0, 1) * 255).round() / 255
    found = outcome.entry("MPRNet (baseline)", "DVD", "psnr").measured
    assert found == pytest.approx(mean_psnr([(restored, sharp)]), abs=1e-4)


@pytest.mark.thorough
def test_causiam_five(data, weights, tmp_path):
    path, _ = save_tiny_clip(tmp_path)
    folders = {name: data / name for name in ("DPDD", "RealDOF", "LFDOF", "RTF", "CUHK")}
    files = {"DPDNet-S": weights / "deblur.pth", "CLIP": path}
    rows = ["source", "self-ensemble", "CauSiam"]
    options = {
        "rows": rows,
        "models": {"DPDNet-S": "_meta_networks:Deblur"},
        "settings": ["causiam.semantic.encoder=open_clip/tiny-test", "causiam.lr=0.01"],
    }
    outcome, said = run("causiam-five", tmp_path / "out", data=folders, weights=files, **options)
    assert not outcome.failed, said
    assert outcome.measured == tuple(rows)
    model = seeded(Deblur)
    psnr = []
    for name, (blur, gt) in {
        "DPDD": ("test_c/source", "test_c/target"),
        "RealDOF": ("source", "target"),
        "LFDOF": ("input", "ground_truth"),
        "RTF": ("blur", "sharp"),
    }.items():
        pairs = []
        for i in range(1 if name in ("RTF", "RealDOF") else 2):
            blurry, sharp = (
                F.pad(read_image(data / name / kind / f"{i}.png").as_rgb()[None], (0, 13, 0, 3), mode="reflect")
                for kind in (blur, gt)
            )
            with torch.no_grad():
                pairs.append([(image * 255).floor() / 255 for image in (model(blurry).clamp(0, 1), sharp)])
        assert outcome.entry("source", name, "psnr").measured == pytest.approx(mean_psnr(pairs), abs=2e-3)
        psnr += pairs
    entry = outcome.entry("source", "average", "psnr")
    assert (entry.published, entry.images) == (24.676, 6)
    assert entry.measured == pytest.approx(mean_psnr(psnr), abs=2e-3)
    # the images are one stream in the order of the table, CUHK is adapted on and not measured
    frames = list(csv.DictReader((tmp_path / "out/frames.csv").read_text().splitlines()))
    own = [frame for frame in frames if frame["method"] == "CauSiam"]
    assert [int(frame["index"]) for frame in own] == list(range(6))
    assert list(dict.fromkeys(frame["family"] for frame in own)) == ["DPDD", "RealDOF", "LFDOF", "RTF"]
    assert outcome.entry("CauSiam", "RTF", "psnr").measured != outcome.entry("self-ensemble", "RTF", "psnr").measured
    page = (tmp_path / "out/report.html").read_text()
    assert "PSNR over time" in page
    assert "<svg" in page


def test_rows_that_a_method_leaves_unchanged_are_told():
    def record(method, psnr, **report):
        return FrameRecord(method, 0, 0, "A", "a", 0, psnr, 0.9, 1.0, 1.0, report=report)

    rows = [
        Row("source", model="net:build"),
        Row("self-ensemble", model="net:build", method=Named("self-ensemble")),
        Row("SAR", model="net:build", method=Named("sar")),
        Row("Tent", model="net:build", method=Named("tent")),
        Row("EATA", model="net:build", method=Named("eata")),
        Row("CoTTA", model="net:build", method=Named("cotta")),
        Row("another network", model="net:other", method=Named("sar")),
    ]
    table = Table("t", "title", "causiam", (DataSet("A", "folders", ("psnr",)),), tuple(rows), "nowhere")
    records = {
        "source": [record("source", 20.0), record("source", 21.0)],
        "self-ensemble": [record("self-ensemble", 20.5), record("self-ensemble", float("inf"))],
        "SAR": [
            record("SAR", 20.5001, updated=True, drift=1e-7),
            record("SAR", float("inf"), updated=True, drift=3e-7),
        ],
        "Tent": [record("Tent", 20.5, updated=True), record("Tent", 30.0, updated=True)],
        # weights that were zero; as it is read back from a run that was continued
        "EATA": [
            record("EATA", 20.5, updated=True, drift="nan"),
            record("EATA", float("inf"), updated=True, drift="inf"),
        ],
        "CoTTA": [record("CoTTA", 20.0, skipped_because="no weights"), record("CoTTA", 21.0)],
        "another network": [record("another network", 20.0), record("another network", 21.0)],
    }
    assert unchanged_rows(table, records) == {
        "SAR": "as self-ensemble on every image: adapted on 2 of 2, which moved the weights by 3e-07 of their length",
        "EATA": "as self-ensemble on every image: adapted on 2 of 2",
        "CoTTA": "as source on every image: adapted on 0 of 2 (no weights)",
    }


class Tokens(nn.Module):
    """Semantic encoder of somebody: the mean color."""

    def forward(self, x):
        return x.mean((-2, -1)).repeat(1, 4)


@pytest.mark.thorough
def test_causiam_with_another_encoder_needs_no_clip(data, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "somebodys_encoder", sys.modules[__name__])
    words = ["reproduce", "causiam-five", "--data", f"RTF={data / 'RTF'}", "--rows", "CauSiam", "--device", "cpu"]
    words += ["--models", "DPDNet-S=_meta_networks:Deblur", "--weights", f"DPDNet-S={weights / 'deblur.pth'}"]
    words += ["--out", str(tmp_path)]
    assert main(words) == 2
    assert "--weights CLIP=FILE" in capsys.readouterr().out
    assert main([*words, "--settings", "causiam.semantic.encoder=somebodys_encoder:Tokens"]) == 0
    assert "CLIP=FILE" not in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["failed"] == {}


@pytest.mark.thorough
def test_ifan_table1(data, tmp_path, monkeypatch):
    """Each row is a network of its own shape, whose size is found in its file."""
    monkeypatch.setattr(reproduction, "cost_of", lambda *_: Cost())  # seconds of full-size networks
    shapes = {
        "baseline": {"filters": False, "disparity": False},
        "D": {"filters": False},
        "F": {"disparity": False},
        "F+D": {},
        "F+R": {"disparity": False},
        "IFAN": {},
    }
    files, psnr = {}, {}
    blurry, sharp = (read(data / f"DPDD/test_c/{kind}/0.png", 8) for kind in ("source", "target"))
    for number, (name, shape) in enumerate(shapes.items()):
        sizes = {key: value for key, value in SMALL_IFAN.items() if key != "num_steps" or "filters" not in shape}
        net = seeded(lambda: models.create_model("ifan", **sizes, **shape), number).eval()  # noqa: B023
        files[name] = tmp_path / f"{name}.pth"
        torch.save(net.state_dict(), files[name])
        with torch.no_grad():
            psnr[name] = mean_psnr([(net(blurry).clamp(0, 1), sharp)])
    outcome, said = run("ifan-table1", tmp_path / "out", data={"DPDD": data / "DPDD"}, weights=files, limit=1)
    assert not outcome.failed, said
    rows = ("baseline", "D", "F", "F+D", "F+R", "F+D+R")
    assert outcome.measured == rows
    for row, name in zip(rows, shapes, strict=True):
        assert outcome.entry(row, "DPDD", "psnr").measured == pytest.approx(psnr[name], abs=1e-4)


@pytest.mark.thorough
def test_ifan_table4(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        reproduction, "cost_of", lambda restorer, _: Cost(sum(p.numel() for p in restorer.parameters()))
    )
    files = {}
    for steps in (8, 17, 26):
        net = seeded(lambda: models.create_model("ifan", **SMALL_IFAN | {"num_steps": steps}))  # noqa: B023
        files["IFAN" if steps == 17 else f"IFAN_{steps}"] = tmp_path / f"{steps}.pth"
        torch.save(net.state_dict(), tmp_path / f"{steps}.pth")
    outcome, said = run("ifan-table4", tmp_path / "out", data={"DPDD": data / "DPDD"}, weights=files, limit=1)
    assert not outcome.failed, said
    assert outcome.measured == ("N = 8", "N = 17", "N = 26")
    assert len({outcome.entry(row, "DPDD", "psnr").measured for row in outcome.measured}) == 3
    assert outcome.costs["N = 44"][1].parameters > outcome.costs["N = 35"][1].parameters  # of the full size


@pytest.mark.slow
def test_jdrl_journal(data, weights, tmp_path):
    journal = seeded(lambda: models.create_model("jdrl_journal", width=2))
    torch.save(journal.state_dict(), tmp_path / "journal.pth")
    files = {"UNet": weights / "UNet.pth", "UNet_journal": tmp_path / "journal.pth", "pwc": weights / "pwc-default"}
    folders = {name: data / name for name in ("SDD", "RealDOF")}
    outcome, said = run("jdrl-journal", tmp_path / "out", data=folders, weights=files, limit=1)
    assert not outcome.failed, said
    assert outcome.measured == ("input", "UNet (conference)", "UNet (journal)")
    flow = protocols.create_flow("pwc", checkpoint=files["pwc"])
    blurry, sharp = (read(data / f"RealDOF/{kind}/0.png", 16) for kind in ("source", "target"))
    with torch.no_grad():
        restored = journal.eval()(blurry)
        restored = restored[0] if isinstance(restored, tuple) else restored
    warped = warped_as_released(sharp, flow(restored, sharp))
    found = outcome.entry("UNet (journal)", "RealDOF", "aligned_psnr").measured
    assert found == pytest.approx(mean_psnr([(restored, warped)]), abs=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:CauSiam. two steps changed none")  # one view of an equal student: no difference
def test_causiam_sweep(data, weights, tmp_path):
    path, _ = save_tiny_clip(tmp_path)
    files = {"DPDNet-S": weights / "deblur.pth", "CLIP": path}
    options = {
        "models": {"DPDNet-S": "_meta_networks:Deblur"},
        "settings": ["causiam.semantic.encoder=open_clip/tiny-test", "causiam.lr=0.1"],
    }
    folders = {"DPDD": data / "DPDD"}
    outcome, said = run("causiam-sweep", tmp_path / "out", data=folders, weights=files, **options)
    assert not outcome.failed, said
    found = {row: outcome.entry(row, "DPDD", "psnr").measured for row in outcome.measured}
    assert len(found) == 15
    assert {"CauSiam", "eta = 0.999", "K = 3", "N = d4", "alpha = 0.5", "p = 0.1"} < set(found)
    # on one frame nothing is seen of what p restores after its last step
    assert {found[row] for row in found if row.startswith("p = ")} == {found["CauSiam"]}
    assert len(set(found.values())) == 12


def test_rows_that_fail_do_not_stop_the_others(data, weights, tmp_path, capsys):
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    files = {"IFAN": weights / "IFAN.pytorch", "DPDNet-S": tmp_path / "other.pth"}
    outcome, said = run("ifan-realdof", tmp_path / "out", data={"RealDOF": data / "RealDOF"}, weights=files)
    assert outcome.exit_code == 1
    assert list(outcome.failed) == ["DPDNet-S"]
    assert "error: DPDNet-S failed: " in said
    assert outcome.entry("IFAN", "RealDOF", "psnr").measured is not None
    assert "DPDNet-S</strong> failed" in (tmp_path / "out/report.html").read_text()
    words = ["reproduce", "ifan-realdof", "--data", f"RealDOF={data / 'RealDOF'}", "--weights"]
    words += [*(f"{name}={file}" for name, file in files.items()), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*words, "-q"]) == 1
    (line,) = capsys.readouterr().err.splitlines()  # of a quiet run
    assert line.startswith("error: DPDNet-S failed: load_checkpoint: ")


def test_a_damaged_data_set_costs_its_own_values(data, tmp_path, monkeypatch):
    """One image of REDS is damaged; the network of another row cannot be built, as code of others may fail."""

    def load(source, **options):
        if source == "other:Net":
            raise KeyError("layers")
        return models.as_restorer(Plus())

    monkeypatch.setattr(reproduction, "load_restorer", load)
    for video, folders in (("DVD/one", ("input", "GT")), ("REDS/test/000", ("blur", "sharp"))):
        for folder, image in zip(folders, photo(7, 32, 32), strict=True):
            write_image(tmp_path / video / folder / "0.png", Image(image))
    (tmp_path / "DVD/test_list.txt").write_text("one\n")
    damaged = tmp_path / "REDS/test/000/sharp/0.png"
    damaged.write_bytes(damaged.read_bytes()[:500])
    folders = {name: tmp_path / name for name in ("DVD", "REDS")}
    sources = {"Restormer": "somebody:Net", "MPRNet": "other:Net"}
    rows = ["MPRNet (baseline)", "Restormer (baseline)"]
    outcome, said = run("meta-table1", tmp_path / "out", data=folders, models=sources, rows=rows)
    assert outcome.measured == ("Restormer (baseline)",)
    assert outcome.exit_code == 1
    assert outcome.entry("Restormer (baseline)", "DVD", "psnr").images == 1
    assert outcome.entry("Restormer (baseline)", "REDS", "psnr").measured is None
    reason = f"{damaged}: truncated or damaged PNG: image file is truncated"
    assert outcome.failed == {"MPRNet (baseline)": "KeyError: 'layers'", "Restormer (baseline) on REDS": reason}
    assert f"error: Restormer (baseline) on REDS failed: {reason}" in said.splitlines()
    assert "<strong>Restormer (baseline) on REDS</strong> failed: " in (tmp_path / "out/report.html").read_text()
    # where only one data set is measured, the reason stands for the whole row
    outcome, _ = run("meta-table1", tmp_path / "one", data={"REDS": folders["REDS"]}, models=sources, rows=rows)
    assert outcome.failed == {"MPRNet (baseline)": "KeyError: 'layers'", "Restormer (baseline)": reason}


def test_page_of_a_table():
    tables = [("Table 1", ["", "PSNR (dB) published"], [["JNB", "23.69"], ["ours", "-"]])]
    notes = ["Train with `a <b> --c`, and --model.filters false; -3 dB -- no option."]
    remarks = {"JNB": "quoted", "ours": "as input on every image"}
    failed = {"ours": "give --weights", "theirs": "other", "others": "give --weights"}
    page = render_comparison(
        Comparison("A table", "lead", "a paper", tables * 2, row_notes=remarks, notes=notes, failed=failed)
    )
    assert page.count('<small class="note"> quoted</small>') == 2  # in both tables
    assert page.count("<strong>ours</strong>: as input on every image.</p>") == 1
    assert "<code>a &lt;b&gt; --c</code>, and <code>--model.filters</code> false; -3 dB -- no option.</li>" in page
    assert "<strong>ours, others</strong> failed: give <code>--weights</code></li>" in page
    assert "Quoted: a method of others" in page
    assert "Quoted" not in render_comparison(Comparison("A table", "lead", "a paper", tables))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a TABLE is required; there are: ifan-table1, ifan-dpdd"),
        (["table9"], "no table 'table9'; there are: ifan-table1"),
        (["ifan-dpdd", "--data", "SDD=x"], "--data: the table has no 'SDD'; there are: DPDD"),
        (["ifan-dpdd", "--weights", "IFAN=nowhere.pth"], "--weights IFAN=nowhere.pth: there is no such file"),
        (["ifan-dpdd", "--weights", "IFAN"], "--weights: expected NAME=FILE, got 'IFAN'"),
        (["ifan-dpdd", "--rows", "JNB", "ours"], "--rows: ifan-dpdd has no row 'ours'"),
        (["ifan-dpdd", "--data", "DPDD=nowhere"], "nothing to measure, there is no data set that has what it needs"),
        (["meta-table2", "--settings", "lr=3"], "expected METHOD.KEY=VALUE with a method of meta-transfer, source"),
        (["no_such_module:TABLE"], "table no_such_module:TABLE: No module named 'no_such_module'"),
    ],
)
def test_wrong_usage(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_all_that_is_missing_is_listed_before_a_wrong_path(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", "ifan-dpdd", "--data", "DPDD=data/DPDD", "--weights", "IFAN=IFAN.pytorch"]
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.err == "tta-restore reproduce: --weights IFAN=IFAN.pytorch: there is no such file\n"
    line = next(line for line in shown.out.splitlines() if "--data" in line)
    assert line.startswith("  --data DPDD=data/DPDD   there is no folder data/DPDD; Abuolaim and Brown, ECCV 2020")
    assert "DIR holds test_c/source and test_c/target" in line
    assert "--weights DPDNet-S=FILE" in shown.out


def test_list_and_dry_run(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "--list"]) == 0
    assert "causiam-five: CauSiam" in capsys.readouterr().out
    assert main(["reproduce", "ifan-dpdd", "--data", f"DPDD={data / 'DPDD'}", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "would be measured on DPDD: input" in said
    assert "no estimate yet for 2 images of input: their time depends on network, method, image size and device" in said
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_estimates_the_time_from_the_records_of_a_run_with_a_limit(data, tmp_path, monkeypatch):
    def record(job):
        for name in job.domains:
            rows = [FrameRecord(job.row.name, 0, 0, name, "p", 0, 30.0, 0.5, 7.0, 0.0)] * min(
                job.limit or 9, images[name]
            )
            run_units([Unit("0", lambda rows=rows: rows)], job.folder, progress=False)
        return rows

    images = {"SDD": 2, "DPDD": 2}
    sets = tuple(DataSet(name, name, ("psnr",)) for name in images)
    rows = tuple(Row(name, model="torch.nn:Identity", config=config) for name, config in (("a", {}), ("b", {"x": 1})))
    table = Table("own", "Two rows", "own", sets, rows, "here")
    monkeypatch.setattr("tta_restore.engine.evaluate.reproduce.TABLES", {"own": table})
    monkeypatch.setitem(protocols.PROTOCOLS, "own", record)
    options = {"data": {name: data / name for name in images}}

    def dry_run(**more):
        return run("own", tmp_path, **options, dry_run=True, **more)[1].splitlines()[1:]

    assert dry_run() == [
        "no estimate yet for 4 images of a, b: their time depends on network, method, "
        f"image size and device; after a run with --limit 3 into {tmp_path}, --dry-run estimates it from those images"
    ]
    run("own", tmp_path, **options, limit=1, rows=["a"])
    text = f"by the records in {tmp_path}, reading files and metrics not included"
    known, unknown = dry_run()
    assert known == f"about 28 s for what is left of 4 images, {text}: a 28 s"
    assert unknown.startswith("no estimate yet for 4 images of b:")
    run("own", tmp_path, rows=["a"], data={"SDD": data / "SDD"})  # two images fewer are left
    assert dry_run(rows=["a"]) == [f"about 14 s for what is left of 4 images, {text}: a 14 s"]


class Third(nn.Module):
    def forward(self, x):
        return x


def brightness(job):
    """Custom protocol that scores the mean of the restored images."""
    from tta_restore.data.datasets.layouts import folder_frames
    from tta_restore.engine.evaluate.results import FrameRecord

    frames = folder_frames(job.domains, limit=job.limit)
    return [
        FrameRecord(job.row.name, 0, i, frame.family, frame.photo, i, 30.0, 0.5, 0.0, 0.0,
                    metrics={"brightness": float(job.restorer(frame.blurry[None]).mean())})
        for i, frame in enumerate(frames)
    ]  # fmt: skip


OWN = Table(
    "own", "A table of somebody's own", "test_own_table:brightness", (DataSet("Mine", "", ("brightness",)),),
    (Row("third", {"Mine": {"brightness": 0.25}}, "test_own_table:Third"),), "nobody, nowhere",
)  # fmt: skip


def test_own_table_with_own_model_and_protocol(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "test_own_table", sys.modules[__name__])
    arguments = ["reproduce", "test_own_table:OWN", "--data", f"Mine={data / 'RTF'}", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert "0.2500" in capsys.readouterr().out
    (value,) = json.loads((tmp_path / "results.json").read_text())["values"]
    expected = float(read(data / "RTF/blur/0.png").mean())
    assert value["measured"] == pytest.approx(expected, abs=1e-6)
