"""The examples run, in small."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from _fresh import run_program

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_layer(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["own_layer.py", "--steps", "30", "--size", "32"])
    before, after = load("own_layer").main()
    assert after < before


@pytest.mark.thorough
@pytest.mark.parametrize(("network", "size"), [("kpn", "16"), ("ifan", "16"), ("upsampler", "32")])
def test_kernel_networks(monkeypatch, network, size):
    torch._dynamo.reset()
    words = ["kernel_networks.py", "--network", network, "--steps", "40", "--size", size, "--compiler", "aot_eager"]
    monkeypatch.setattr(sys, "argv", words)
    before, after = load("kernel_networks").main()
    assert after < before


@pytest.mark.slow
@pytest.mark.parametrize("network", ["kpn", "ifan", "upsampler"])
def test_kernel_networks_in_two_processes(network):
    """Compiled by inductor; the example itself compares the weights of the processes."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += [EXAMPLES / "kernel_networks.py", "--network", network, "--steps", "40", "--size", "32"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"{network}: ")]
    before, after = (float(line.split()[i]) for i in (-4, -2))
    assert after < before


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # of Lightning itself
def test_lightning_ifan(monkeypatch):
    if not any(map(importlib.util.find_spec, ("lightning", "pytorch_lightning"))):
        pytest.skip("needs lightning")
    monkeypatch.setattr(sys, "argv", ["lightning_ifan.py", "--steps", "2", "--size", "32", "--base-channels", "2"])
    module = load("lightning_ifan").main()
    assert module(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)


@pytest.mark.thorough
def test_sweep(monkeypatch, tmp_path):
    monkeypatch.setattr(
        sys,
        "argv",
        ["sweep.py", "--frames", "1", "--size", "32", "--model", "_meta_networks:Deblur", "--out", str(tmp_path)],
    )
    example = load("sweep")
    monkeypatch.setattr(example, "GRID", {"ema": (0.9, 0.99)})
    gains = example.main()
    assert list(gains) == ["siam-ctta[ema=0.9]", "siam-ctta[ema=0.99]"]
    assert (tmp_path / "report.html").exists()


@pytest.mark.thorough
def test_plugin(tmp_path):
    """As installed: the entry points of its pyproject.toml in the metadata of a distribution on the path."""
    project = tomllib.loads((EXAMPLES / "plugin/pyproject.toml").read_text())["project"]
    info = tmp_path / "site/tta_restore_gain-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "\n".join(f"{n} = {v}" for n, v in names.items()) for group, names in groups]
    (info / "entry_points.txt").write_text("\n\n".join(lines))
    words = ["evaluate", "--model", "gain", "--degradations", "underexposure", "--methods", "gain-tuner", "--metrics"]
    words += ["brightness-error", "--seeds", "1", "--frames", "2", "--out", "out", "-q"]
    path = os.pathsep.join([str(tmp_path / "site"), str(EXAMPLES / "plugin")])
    program = "import sys; from tta_restore.cli import main; sys.exit(main(sys.argv[1:]))"
    done = run_program(program, *words, folder=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "out/frames.csv").read_text().splitlines()))
    assert {row["method"] for row in rows} == {"source", "self-ensemble", "gain-tuner"}
    assert all(0 <= float(row["brightness-error"]) < 1 for row in rows)
