"""ProgressBar: lines where stderr is no terminal, a bar on one."""

import io
import re
import sys

import pytest

from tta_restore._core import progress
from tta_restore._core.progress import ProgressBar


class Stream(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def stderr(monkeypatch):
    def put(is_terminal):
        monkeypatch.setattr(sys, "stderr", Stream(is_terminal))
        return sys.stderr

    return put


def test_a_line_at_each_interval_and_none_for_short_work(stderr, monkeypatch):
    stream = stderr(False)
    assert list(ProgressBar(range(3), unit="step")) == [0, 1, 2]
    assert stream.getvalue() == ""
    monkeypatch.setattr(progress, "_INTERVAL", 1e-9)
    bar = ProgressBar(range(2), desc="lens", initial=1, total=3)
    for _ in bar:
        bar.set_postfix({"loss": "0.5"})
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 2
    for line in lines:
        assert re.fullmatch(r"lens: [123] of 3 after [\d:]+, about [\d:?]+ left(, loss=0.5)?", line), line


def test_nested_work_and_work_of_unknown_length(stderr, monkeypatch):
    stream = stderr(False)
    monkeypatch.setattr(progress, "_INTERVAL", 1e-9)
    for _ in ProgressBar(range(2), desc="outer"):
        for _ in ProgressBar(iter(range(2)), desc="inner", leave=False):
            pass
    lines = stream.getvalue().splitlines()
    assert any(re.fullmatch(r"outer: 1 of 2 after [\d:]+, about [\d:]+ left", line) for line in lines)
    for line in lines:
        assert re.fullmatch(
            r"(outer: [012] of 2 after [\d:]+, about [\d:?]+ left)|(inner: [012] after [\d:]+)", line
        ), line


def test_values_shown_next_to_the_bar_write_no_lines_of_their_own(stderr):
    stream = stderr(False)
    bar = ProgressBar(range(5), unit="step")
    for _ in bar:
        bar.set_postfix({"loss": "0.5"})
        bar.set_description("step")
    assert stream.getvalue() == ""


def test_a_bar_on_a_terminal_and_silence_on_request(stderr):
    stream = stderr(True)
    assert len(list(ProgressBar(range(3), unit="step"))) == 3
    assert "3/3" in stream.getvalue()
    for is_terminal in (True, False):
        stream = stderr(is_terminal)
        assert len(list(ProgressBar(range(3), shown=False))) == 3
        assert stream.getvalue() == ""
