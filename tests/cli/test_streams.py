"""Standard streams of the command line: readers that leave, full devices, closed streams."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from _fresh import run_program

from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image

PROGRAM = """
import os, sys
from tta_restore.cli import main
{before}
sys.exit(main(sys.argv[1:]))
"""
NOBODY_READS = """
ends = os.pipe()
os.dup2(ends[1], {number})
for end in ends:
    os.close(end)
"""
FULL = "os.dup2(os.open('/dev/full', os.O_WRONLY), {number})"
CLOSED = "os.close({number})"

PRINTING = [
    ["--help"], ["info"], ["restore", "--help"], ["train", "reblur", "--print_config"], ["reproduce", "--list"],
    ["restore", "a.png", "-o", "-", "--method", "source"],
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "a.png", Image(torch.rand(3, 16, 16)))
    return tmp_path


def run(folder, words, before, **numbers):
    return run_program(PROGRAM.format(before=before.format(**numbers)), *words, folder=folder)


@pytest.mark.thorough
@pytest.mark.parametrize("words", PRINTING, ids=" ".join)
def test_a_reader_that_left_ends_every_command_quietly(folder, words):
    done = run(folder, words, NOBODY_READS, number=1)
    assert done.returncode == 141
    lines = done.stderr.splitlines()
    assert all(line.startswith(("note:", "1 restored")) for line in lines), done.stderr


@pytest.mark.thorough
def test_a_reader_of_messages_that_left_ends_a_restoration(folder):
    done = run(folder, ["restore", "a.png", "-o", "out", "--method", "source"], NOBODY_READS, number=2)
    assert (done.returncode, done.stdout) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [PRINTING[index] for index in (0, 2, 5)], ids=" ".join)
def test_a_full_device_is_one_line_and_an_exit_code(folder, words):
    done = run(folder, words, FULL, number=1)
    if words[-1] == "source":  # before the work
        assert done.returncode == 2
        assert done.stderr == (
            "tta-restore restore: standard output is closed or full: give a file, or pipe the image on\n"
        )
    else:
        assert done.returncode == 1
        assert done.stderr == f"tta-restore: standard output: {os.strerror(errno.ENOSPC)}\n"


@pytest.mark.parametrize("before", [FULL, CLOSED], ids=["full", "closed"])
def test_messages_that_cannot_be_written_do_not_cost_the_work(folder, before):
    if before == FULL and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    words = ["restore", "a.png", "nix.png", "-o", "out", "--method", "source"]
    done = run(folder, words, before, number=2)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert read_image(folder / "out/a.png").pixels.shape == (3, 16, 16)
    assert [path.name for path in sorted((folder / "out").iterdir())] == ["a.png", "tta-restore.yaml"]


@pytest.mark.thorough
def test_closed_streams(folder):
    done = run(folder, ["info", "generalist"], CLOSED, number=1)
    assert (done.returncode, done.stderr) == (1, f"tta-restore: standard output: {os.strerror(errno.EBADF)}\n")
    done = run(folder, ["restore", "a.png", "-o", "-"], CLOSED, number=1)
    assert done.returncode == 2
    assert "standard output is closed or full" in done.stderr
    every = "\n".join(CLOSED.format(number=number) for number in range(3))
    done = run(folder, ["restore", "a.png", "-o", "out", "--method", "source"], every)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert read_image(folder / "out/a.png").pixels.shape == (3, 16, 16)
