"""Two processes under torchrun, killed and started again: training and evaluation end as if nothing had happened."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.data.synthetic import photos

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="kills by signals")]

PROGRAM = """
import os, sys, time
import torch
open("pid." + os.environ["RANK"], "w").write(str(os.getpid()))  # workers have process groups of their own
torch.set_num_threads(1)
from tta_restore.cli import main
from tta_restore.engine.train import fabric, loop
from tta_restore.engine.evaluate import runner

# Slow enough to be killed in the middle.
saved, saved_by_fabric, line = loop.save_state, fabric._save, runner._line
def slow_state(*arguments, **keywords):
    saved(*arguments, **keywords)
    time.sleep({pause})
def slow_fabric(*arguments, **keywords):
    saved_by_fabric(*arguments, **keywords)
    time.sleep({pause})
def slow_line(record):
    time.sleep({pause})
    return line(record)
loop.save_state, fabric._save, runner._line = slow_state, slow_fabric, slow_line
sys.exit(main(sys.argv[1:]))
"""


def launch(folder: Path, words: list[str], *, pause: float = 0.0) -> subprocess.Popen[str]:
    script = folder / f"program{pause}.py"
    script.write_text(PROGRAM.format(pause=pause))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(
        [*launcher, *words], cwd=folder, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(folder: Path, words: list[str]) -> str:
    process = launch(folder, words)
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors[-3000:]
    return output


def kill_when(folder: Path, words: list[str], seen) -> None:
    """Start with pauses, and kill all processes at once when ``seen()`` is true."""
    process = launch(folder, words, pause=3.0)
    end = time.monotonic() + 300
    while not seen() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1][-3000:]
    assert seen()
    process.kill()
    for rank in range(2):
        os.kill(int((folder / f"pid.{rank}").read_text()), signal.SIGKILL)
    process.communicate()


@pytest.fixture
def data(tmp_path):
    for number in range(4):
        generator = torch.Generator().manual_seed(number)
        image = torch.rand(3, 48, 48, generator=generator)
        for folder, shade in (("blurry", 0.9), ("sharp", 1.0)):
            write_image(tmp_path / "pairs" / folder / f"{number}.png", Image(image * shade))
        for folder, shade in (("blur", 0.9), ("sharp", 1.0)):
            write_image(tmp_path / f"clips/test/{number:03d}/{folder}/00000000.png", Image(image * shade))
        for split in ("train_c", "test_c"):
            for folder in ("source", "target"):
                write_image(tmp_path / "DPDD" / split / folder / f"{number}.png", Image(image))
    return tmp_path


RUN = ["--run.steps", "6", "--run.batch_size", "1", "--run.save_every", "2", "--run.draw_every", "0"]
PAIRS = ["--data.layout", "folders", "--data.root", "pairs", "--data.size", "32"]
CLIPS = [
    "--model.name", "_meta_networks:Deblur", "--reblur.num_layers", "1", "--reblur.base_channels", "2",
    "--reblur.fusion", "channels", "--data.pictures", "bundled", "--data.frames", "5", "--data.size", "40",
    "--data.length", "2", "--data.num_subframes", "3",
]  # fmt: skip
TRAININGS = {
    "supervised": [
        "--model.name", "_meta_networks:Deblur", *PAIRS,
        "--settings.reblur_weight", "0", "--settings.disparity_weight", "0",
    ],
    "misaligned": [
        "--model.name", "_meta_networks:Deblur", *PAIRS,
        "--flow.name", "lucas_kanade", "--reblur.width", "2", "--settings.warm_up", "2",
    ],
    "reblur": [*CLIPS, "--discriminator.base_channels", "2", "--windows.patch_size", "32"],
    "meta": [*CLIPS, "--windows.patch_size", "32", "--windows.num_patches", "1", "--windows.query_frames", "1"],
}  # fmt: skip


@pytest.mark.parametrize("kind", TRAININGS)
def test_training_killed_and_resumed_by_two_processes_ends_with_the_same_bits(data, kind):
    words = ["train", kind, *TRAININGS[kind], *RUN, "-q", "--run.out"]
    run(data, [*words, "whole"])
    state = data / "killed/state.pt"
    kill_when(data, [*words, "killed"], state.exists)
    assert torch.load(state, weights_only=True)["step"] < 6
    run(data, [*words, "killed"])
    whole, killed = (load_file(data / name / "restorer.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert torch.load(data / "killed/state.pt", weights_only=True)["identity"]["processes"] == 2


@pytest.mark.parametrize("kind", TRAININGS)
def test_training_by_fabric_killed_and_resumed_takes_the_steps_of_our_loop(data, kind):
    """DDP adds gradients in another order than our loop: weights differ in the last bits."""
    pytest.importorskip("lightning_fabric")
    words = ["train", kind, *TRAININGS[kind], *RUN, "-q", "--run.out"]
    run(data, [*words, "own"])
    carried = [*words, "killed", "--run.engine", "fabric", "--run.fabric", '{"strategy": "ddp", "devices": 2}']
    state = data / "killed/fabric/state.json"
    kill_when(data, carried, state.exists)
    assert json.loads(state.read_text())["step"] < 6
    assert not (data / "killed/restorer.safetensors").exists()
    run(data, carried)
    own, killed = (load_file(data / name / "restorer.safetensors") for name in ("own", "killed"))
    torch.testing.assert_close(killed, own, atol=1e-6, rtol=1e-5)


MEASURED = ("method", "family", "photo", "psnr", "ssim", "mae")


def rows_of(path: Path) -> list[list[str]]:
    return [[row[name] for name in MEASURED if name in row] for row in csv.DictReader(path.read_text().splitlines())]


EVALUATIONS = {
    "evaluate": (
        ["evaluate", "--data", "DPDD=DPDD", "--model", "network:Net", "-q", "--out"], "frames.csv", "run/*.jsonl",
    ),
    "reproduce": (
        ["reproduce", "ifan-dpdd", "--data", "DPDD=DPDD", "--models", "IFAN=network:Net", "-q", "--out"], "frames.csv",
        "run/*/*.jsonl",
    ),
    "evaluate-pairs": (
        ["evaluate-pairs", "pairs", "--layout", "folders", "--model", "network:Net", "--flow", "lucas_kanade", "--out"],
        "", "*.run/*.jsonl",
    ),
    "evaluate --methods": (
        ["evaluate", "--data", "DPDD=DPDD", "--model", "network:Net", "--methods", "siam-ctta", "-q", "--out"],
        "frames.csv", "run/*.jsonl",
    ),
    "evaluate-clips": (
        ["evaluate-clips", "clips", "--layout", "reds", "--model", "network:Net", "--out"], "", "*.run/*.jsonl",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", EVALUATIONS)
def test_evaluation_shared_killed_and_resumed_has_one_result(data, kind):
    (data / "network.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.gain = torch.nn.Parameter(torch.tensor(0.95))\n"
        "    def forward(self, x):\n"
        "        return x * self.gain\n"
    )
    words, table, records = EVALUATIONS[kind]
    ending = "" if table else ".csv"

    def result(name: str) -> Path:
        return data / f"{name}{ending}" / table if table else data / f"{name}{ending}"

    alone = subprocess.run(
        [sys.executable, "-c", "import sys; from tta_restore.cli import main; sys.exit(main(sys.argv[1:]))",
         *words, f"alone{ending}"], cwd=data, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr[-3000:]
    where = data / "killed" if table else data

    def begun() -> bool:
        return any(where.glob(records))

    kill_when(data, [*words, f"killed{ending}"], begun)
    assert not result("killed").exists()
    run(data, [*words, f"killed{ending}"])
    assert rows_of(result("killed")) == rows_of(result("alone"))
    assert len(rows_of(result("alone"))) >= 4


def test_what_fails_in_one_process_costs_one_row(data):
    """Of four images the second one, which the second process reads, is damaged; weights are damaged for both."""
    (data / "network.py").write_text("import torch\nclass Net(torch.nn.Identity):\n    pass\n")
    images = data / "DPDD/test_c/source"
    whole = {path: path.read_bytes() for path in sorted(images.iterdir())}
    (data / "damaged.pth").write_bytes(b"nothing")
    words = ["reproduce", "ifan-dpdd", "--data", "DPDD=DPDD", "--models", "IFAN=network:Net", "--out", "out", "-q"]
    words += ["--weights", "DPDNet-S=damaged.pth"]
    (images / "1.png").write_bytes(whole[images / "1.png"][:300])
    for damaged in (["input", "IFAN"], []):
        process = launch(data, words)
        _, errors = process.communicate(timeout=300)
        assert process.returncode != 0
        assert errors.count("Traceback") == 1  # that of torchrun
        assert errors.count("error: DPDNet-S failed") == 1
        failed = json.loads((data / "out/results.json").read_text())["failed"]
        assert list(failed) == [*damaged[:1], "DPDNet-S", *damaged[1:]]
        assert all("truncated or damaged PNG" in failed[row] for row in damaged)
        assert "damaged.pth is damaged" in failed["DPDNet-S"]
        (images / "1.png").write_bytes(whole[images / "1.png"])
    assert len(rows_of(data / "out/frames.csv")) == 8


def test_calibration_shared_by_two_processes_has_the_result_of_one(data):
    """Every step averages the gradients of two halves of the batch; held-out pairs are shared as well."""
    axis = torch.arange(-3, 4)
    disk = (axis[:, None] ** 2 + axis**2 <= 6.5).float()
    for number, name in enumerate(photos.DEV[:2]):
        blurred = F.conv2d(photos.load(name)[:, None, :160, :160], (disk / disk.sum())[None, None])[:, 0]
        write_image(data / f"camera/{number}.png", Image(blurred.clamp(0, 1)))
    words = ["calibrate", "camera", "--model", "specialist", "-o", "{}.safetensors", "--device", "cpu"]
    words += ["--method.steps", "24"]
    alone = subprocess.run(
        [sys.executable, "-c", "import sys; from tta_restore.cli import main; sys.exit(main(sys.argv[1:]))",
         *(word.format("alone") for word in words)], cwd=data, capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr[-3000:]
    output = run(data, [word.format("shared") for word in words])
    assert output.count("Checkpoint: shared.safetensors") == 1  # one report
    reports = [json.loads((data / f"{name}.json").read_text()) for name in ("alone", "shared")]
    assert reports[0]["gain"] > 0.5
    assert reports[0]["steps"] == reports[1]["steps"]
    assert reports[1]["gain"] == pytest.approx(reports[0]["gain"], abs=1e-3)
    one, two = (load_file(data / f"{name}.safetensors") for name in ("alone", "shared"))
    difference = max((two[name] - one[name]).abs().max().item() for name in one)
    assert difference < 1e-4
    few = launch(data, [*(word.format("few") for word in words), "--method.batch_size", "1"])
    assert "expected batch_size >= 2 processes, got 1" in few.communicate(timeout=300)[1]
    assert few.returncode != 0


def test_calibration_killed_and_resumed_by_two_processes_ends_with_the_same_bits(data):
    for number, name in enumerate(photos.DEV[:3]):
        photo = photos.load(name)[:, :96, :96]
        noise = 0.08 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(number))
        write_image(data / f"camera/{number}.png", Image((photo + noise).clamp(0, 1)))
    words = ["calibrate", "camera", "--model", "denoiser", "--device", "cpu", "--method.steps", "8", "-o"]
    run(data, [*words, "whole.safetensors"])
    state = data / ".killed.safetensors.state"
    kill_when(data, [*words, "killed.safetensors"], state.exists)
    assert not (data / "killed.safetensors").exists()
    output = run(data, [*words, "killed.safetensors"])
    assert output.count("continued behind the first ") == 1
    reports = [json.loads((data / f"{name}.json").read_text()) for name in ("whole", "killed")]
    assert reports[0]["frames"] > 1
    assert reports[0]["gains"] == reports[1]["gains"]
    whole, killed = (load_file(data / f"{name}.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert not state.exists()
