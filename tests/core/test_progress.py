"""ProgressBar: lines where stderr is no terminal, a bar on one."""

import io
import re
import sys
from types import SimpleNamespace

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
        assert re.fullmatch(r"lens: [123] of 3 after [\d:]+(, estimating the time left)?(, loss=0.5)?", line), line


def test_nested_work_and_work_of_unknown_length(stderr, monkeypatch):
    stream = stderr(False)
    monkeypatch.setattr(progress, "_INTERVAL", 1e-9)
    for _ in ProgressBar(range(2), desc="outer"):
        for _ in ProgressBar(iter(range(2)), desc="inner", leave=False):
            pass
    lines = stream.getvalue().splitlines()
    assert any(re.fullmatch(r"outer: 1 of 2 after [\d:]+, estimating the time left", line) for line in lines)
    for line in lines:
        assert re.fullmatch(
            r"(outer: [012] of 2 after [\d:]+(, estimating the time left)?)|(inner: [012] after [\d:]+)", line
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


@pytest.fixture
def clock(monkeypatch, stderr):
    """Clock that the test sets; stderr is not a terminal."""
    stderr(False)
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def work(bar, clock, seconds, **options):
    clock.seconds += seconds
    bar.update(**options)


# seconds of the frames of a real video: the method calibrates on the first five, and again on every eighth frame
CALIBRATING = [20.9, 8.2, 6.2, 5.8, 3.1]
VIDEO = [*CALIBRATING, *[0.3, 3.1, 0.3, 0.3, 0.3, 3.1, 0.3, 0.3], *[*[0.3] * 5, 3.1, 0.3, 0.3] * 60]


def test_no_time_left_before_there_is_a_basis_and_a_good_one_afterwards(clock):
    bar = ProgressBar(total=len(VIDEO))
    shown = {}
    for number, seconds in enumerate(VIDEO[:-8], 1):
        work(bar, clock, seconds)
        if bar.seconds_left is not None:
            shown[number] = bar.seconds_left / sum(VIDEO[number:])
    assert min(shown) > len(CALIBRATING)
    assert max(shown) == len(VIDEO) - 8
    assert max(shown.values()) < 1.6
    assert min(shown.values()) > 0.6
    assert len(shown) > 0.85 * len(VIDEO)


def test_start_up_is_not_counted(clock):
    bar = ProgressBar(total=100)
    work(bar, clock, 60)
    for _ in range(5):
        assert bar.seconds_left is None
        work(bar, clock, 2)
    assert bar.seconds_left == pytest.approx(94 * 2)


def test_recent_items_weigh_more(clock):
    bar = ProgressBar(total=1000)
    for _ in range(40):
        work(bar, clock, 2)
    for _ in range(60):
        work(bar, clock, 1)
    assert 900 < bar.seconds_left < 900 * 1.1  # the mean over all is 1.4 s


def test_few_items_give_an_estimate_from_the_third_on(clock):
    bar = ProgressBar(total=4)
    work(bar, clock, 30)
    work(bar, clock, 10)
    assert bar.seconds_left is None
    work(bar, clock, 10)
    assert bar.seconds_left == pytest.approx(10)


def test_kinds_are_told_apart_and_all_of_them_must_have_begun(clock):
    bar = ProgressBar(total=40, kinds={"source": 20, "adapted": 20})
    for _ in range(20):
        work(bar, clock, 0.1, kind="source")
    assert bar.seconds_left is None
    for _ in range(6):
        work(bar, clock, 10, kind="adapted")
    assert bar.seconds_left == pytest.approx(14 * 10)


def test_items_of_parallel_workers_carry_their_own_times(clock):
    bar = ProgressBar(total=20, parallel=2)
    for _ in range(8):
        bar.update(seconds=6.0)
    assert bar.seconds_left == pytest.approx(12 * 6 / 2)


def test_items_that_were_skipped_are_no_measure_of_the_others(clock):
    bar = ProgressBar(total=120, kinds={"image": 120})
    for _ in range(100):
        clock.seconds += 0.001
        bar.skip(kind="image")
    for _ in range(6):
        work(bar, clock, 5, kind="image")
    assert bar.seconds_left == pytest.approx(14 * 5)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_the_bar_shows_the_estimate(clock, stderr, monkeypatch, is_terminal):
    stream = stderr(is_terminal)
    monkeypatch.setattr(progress, "_INTERVAL", 0.0)
    bar = ProgressBar(total=50, unit="frame", mininterval=0)
    work(bar, clock, 60)
    assert ("<?, " if is_terminal else "estimating the time left") in stream.getvalue()
    for _ in range(9):
        work(bar, clock, 3)
    last = re.split(r"[\n\r]", stream.getvalue().strip())[-1]
    assert ("<02:00, " if is_terminal else "about 02:00 left") in last
    assert (" 3.00s/frame" in last) == is_terminal


def test_one_item_alone_has_no_time_left_and_neither_has_a_complete_bar(clock, stderr, monkeypatch):
    stream = stderr(False)
    monkeypatch.setattr(progress, "_INTERVAL", 0.0)
    bar = ProgressBar(total=1, mininterval=0)
    work(bar, clock, 60)
    assert stream.getvalue().splitlines() == ["0 of 1 after 00:00", "1 of 1 after 00:00"]
