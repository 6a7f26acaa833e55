"""One image by standard input and standard output."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image as PilImage

from tta_restore.cli import main

MODEL = ["--method", "source", "--model", "torch.nn:Identity", "--device", "cpu"]
PIXELS = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)


class Stream(io.TextIOWrapper):
    """A standard stream over bytes."""

    def __init__(self, content=b"", terminal=False):
        self.bytes, self.terminal = io.BytesIO(content), terminal
        super().__init__(self.bytes, write_through=True)

    def isatty(self):
        return self.terminal


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments, content=b"", terminal=False):
        out = Stream(terminal=terminal)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", Stream(content, terminal and content == b""))
            patch.setattr(sys, "stdout", out)
            code = main(["restore", *map(str, arguments), *MODEL])
        return code, out.bytes.getvalue(), capsys.readouterr().err

    return run


def encoded(kind, **options):
    stream = io.BytesIO()
    PilImage.fromarray(PIXELS).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "options", "written"),
    [("PNG", [], "PNG"), ("TIFF", [], "TIFF"), ("BMP", [], "PNG"), ("GIF", [], "PNG"),
     ("PNG", ["--format", "tiff"], "TIFF")],
)  # fmt: skip
def test_an_image_goes_through_a_pipe(run, kind, options, written):
    code, result, err = run("-", "-o", "-", *options, content=encoded(kind))
    assert code == 0, err
    picture = PilImage.open(io.BytesIO(result))
    assert picture.format == written
    if kind != "GIF":  # a palette
        assert np.array_equal(np.asarray(picture), PIXELS)
    assert err.endswith("1 restored; written to standard output\n")


def test_either_end_may_be_a_file(run, tmp_path):
    (tmp_path / "a.webp").write_bytes(encoded("WEBP", lossless=True))
    code, result, _ = run(tmp_path / "a.webp", "-o", "-", "--quality", "100")
    assert (code, PilImage.open(io.BytesIO(result)).format) == (0, "WEBP")
    code, result, _ = run("-", "-o", tmp_path / "b.png", content=encoded("JPEG"))
    assert (code, result, (tmp_path / "b.png").read_bytes()[1:4]) == (0, b"", b"PNG")


def test_messages_name_standard_input_and_nothing_else_is_printed(run):
    content = encoded("PNG")
    code, result, err = run("-", "-o", "-", content=content[: len(content) // 2])
    assert (code, result) == (1, b"")
    assert err.startswith("error: standard input: truncated or damaged PNG")
    code, result, err = run("-", "-o", "-", "--dry-run", content=content)
    assert (code, result) == (0, b"")
    assert err.splitlines()[0] == "would restore standard input -> standard output"
    assert run("-", "-o", "-", "--dry-run", "-q", content=content)[2].splitlines()[0] == err.splitlines()[0]
    assert run("-", "-o", "-", "-q", content=content)[2] == ""


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        (["-", "-o", "-"], b"", "standard input: empty"),
        (["-", "-o", "-"], b"y\n" * 9999, "standard input: no image of a known format"),
        (["-", "-o", "-"], b"\0\0\0\x18ftypisom" + bytes(400), r"standard input: a video (MP4 or QuickTime)"),
        (["-", "a.png", "-o", "-"], b"x", "- stands for one image, got 2 inputs"),
        (["a.png", "b.png", "-o", "-"], b"x", "- stands for one image, got 2 inputs"),
        ([".", "-o", "-"], b"x", ".: is a folder, and standard output takes one image"),
        (["-", "-o", "-", "--clips"], b"x", "- stands for one image, and clips were asked for"),
        (["-", "-o", "-", "--max-pixels", "10"], encoded("PNG") + bytes(2**10), "standard input"),
    ],
)
def test_wrong_usage_is_one_line(run, tmp_path, monkeypatch, arguments, content, message):
    monkeypatch.chdir(tmp_path)
    code, result, err = run(*arguments, content=content)
    assert (code in (1, 2), result) == (True, b"")
    assert message in err
    assert "/tmp" not in err


def test_a_terminal_is_no_pipe(run, tmp_path):
    assert "standard input is a terminal" in run("-", "-o", tmp_path / "a.png", terminal=True)[2]
    code, result, err = run("-", "-o", "-", content=encoded("PNG"), terminal=True)
    assert (code, result) == (2, b"")
    assert "standard output is a terminal" in err
