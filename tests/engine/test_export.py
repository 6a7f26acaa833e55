"""`tta-restore export --onnx`; checkpoints of states are tested with `calibrate`."""

from __future__ import annotations

import pytest
import torch

from tta_restore.cli import main

CODE = """
import torch
from torch import nn
from tta_restore.models import RestorerSpec, as_restorer, SizeRequirements

def net():
    made = nn.Conv2d(3, 3, 3, padding=1)
    nn.init.dirac_(made.weight)
    return made

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 4, stride=4), nn.ConvTranspose2d(8, 3, 4, stride=4)

    def forward(self, x):
        return {"features": self.down(x), "image": x + 0.01 * self.up(self.down(x))}

def pair():
    return as_restorer(Pair(), RestorerSpec(value_range=(-1, 1), size=SizeRequirements(multiple_of=4)))

class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

class Drawn(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)

class OneSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 3, 48, 48))

    def forward(self, x):
        return x + self.position
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "exportnets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def needs_onnx():
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    return pytest.importorskip("onnxruntime", reason="needs the extra onnx")


@pytest.mark.thorough
def test_any_size_that_the_model_takes(folder, capsys):
    runtime = needs_onnx()
    assert main(["export", "--model", "exportnets:pair", "--onnx", "pair.onnx", "-o", "pair.safetensors"]) == 0
    assert "differs from the model by at most" in capsys.readouterr().out
    assert (folder / "pair.safetensors").exists()
    session = runtime.InferenceSession("pair.onnx", providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["image"]
    for size in ((64, 64), (20, 132)):
        frame = torch.rand(1, 3, *size)
        image = torch.from_numpy(session.run(None, {"frame": frame.numpy()})[0])
        assert image.shape == frame.shape
        assert 0 < (image - frame).abs().max() < 0.1  # in [0, 1], not in the model's range


@pytest.mark.thorough
def test_a_fixed_size(folder):
    runtime = needs_onnx()
    assert main(["export", "--model", "exportnets:net", "--onnx", "net.onnx", "--size", "30x41"]) == 0
    session = runtime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, 30, 41]
    assert main(["export", "--model", "exportnets:OneSize", "--onnx", "one.onnx"]) == 0
    session = runtime.InferenceSession("one.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, 48, 48]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a file to write"),
        (["-o", "a.safetensors", "--size", "8x8"], "--size: goes with --onnx"),
        (["--onnx", "a.pb"], "ends in .onnx"),
        (["--onnx", "a.onnx", "--size", "8"], "expected HxW"),
        (["--onnx", "a.onnx", "--role", "student"], "--role: goes with --state"),
        (["-o", "a.safetensors", "--state", "absent.safetensors"], "--state absent.safetensors"),
        (["--onnx", "a.onnx", "--model", "exportnets:pair", "--size", "30x41"], "does not take frames of 30 x 41"),
        (["--onnx", "a.onnx", "--model", "exportnets:OneSize", "--size", "96x96"], "at most 48 pixels, got 96 x 96"),
        *(
            pytest.param(["--onnx", "a.onnx", "--model", f"exportnets:{name}"], message, marks=pytest.mark.thorough)
            for name, message in (
                ("Branches", "torch.onnx.export cannot write the model"),
                ("Drawn", "something else than the model"),
            )
        ),
    ],
)
def test_what_cannot_be_exported(folder, capsys, arguments, message):
    if "a.onnx" in arguments:
        needs_onnx()
    model = [] if "--model" in arguments else ["--model", "exportnets:net"]
    assert main(["export", *arguments, *model]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not list(folder.glob("a.*"))
    assert not list(folder.glob(".a.*"))


def test_without_the_extra(folder, capsys, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxscript" else found(name, *a))
    assert main(["export", "--model", "exportnets:net", "--onnx", "net.onnx"]) == 2
    assert "pip install 'tta-restore[onnx]'" in capsys.readouterr().err
