"""The command that measures: what it writes and prints, on the smallest case."""

import json
import re
from pathlib import Path

import pytest
import torch
from _base import needs_extension
from _fresh import run_program

from benchmarks import cases, moves, report
from tta_restore._core import dispatch
from tta_restore.adapters import SiamCTTA
from tta_restore.models import RestorerSpec

ROOT = Path(__file__).parents[1]


def test_backward_passes_run_on_the_backend_of_their_contender():
    case = cases.IsotropicReblur((1, 1, 9, 9), kernel_sizes=(3,))
    before = dispatch.Operator._kernel
    chosen = []

    def record(self, name):
        chosen.append((self.name, name))
        return before(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch.Operator, "_kernel", record)
        cases.runner(case.contenders("cpu")["reference"], case.tensors("cpu"), "forward+backward")()
    assert ("isotropic_reblur_backward", "reference") in chosen
    assert {name for _, name in chosen} == {"reference"}


def test_a_call_of_an_adapter_stays_in_few_files():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 3, 3, padding=1))
    files, count = moves.moves(SiamCTTA(net, spec=RestorerSpec()), torch.rand(1, 3, 48, 48))
    assert files <= 14
    assert count <= 155


@pytest.mark.thorough
@needs_extension
def test_a_report_has_times_stream_memory_and_machine(tmp_path):
    """`make bench-gpu` runs this command where no test ever does."""
    options = [
        "--only",
        "x256x256 float32",
        "--contenders",
        "ours",
        "--directions",
        "forward",
        "--allocators",
        "default",
    ]
    file = tmp_path / "report.json"
    program = "import runpy; runpy.run_module('benchmarks', run_name='__main__')"
    options += ["--threads", "1", "--rounds", "2", "--output", file]
    run = run_program(program, "report", *options, folder=ROOT)
    assert run.returncode == 0, run.stderr
    result = json.loads(file.read_text())
    (row,) = result["measurements"]
    assert (row["op"], row["direction"], row["threads"]) == ("isotropic_reblur", "forward", 1)
    assert {"ours", "stream read", "stream copy"} == row["times"].keys()
    assert all(taken["wall"]["median"] > 0 for taken in row["times"].values())
    assert 0 <= row["peak_bytes"]["ours"] < 1 << 26  # 0 where the allocator had the room already
    assert {"device", "torch", "cores"} <= result["machine"].keys()
    assert "isotropic_reblur 1x3x256x256 float32" in run.stdout
    assert file.with_suffix(".svg").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--only", "nothing"],
            "--only: no case is called 'nothing'; there are.* isotropic_reblur 1x3x256x256 float32",
        ),
        (["--contenders", "our"], "--contenders: invalid choice: 'our'"),
        (["--directions", "sideways"], "--directions: invalid choice: 'sideways'"),
        (["--threads", "0"], "--threads: expected a positive number, got 0"),
        (["--rounds", "x"], "--rounds: invalid .* value: 'x'"),
    ],
)
def test_wrong_options_are_usage_errors(options, message, tmp_path, capsys):
    """Not minutes of measuring, and then a table of nothing."""
    file = tmp_path / "report.json"
    with pytest.raises(SystemExit) as stopped:
        report.main(["report", *options, "--output", str(file)])
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert not file.exists()
