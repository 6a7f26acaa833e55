"""The page is one file that asks for nothing, shows the numbers of the result, and does not hide what failed."""

from __future__ import annotations

import base64
import io
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image as PilImage

from tta_restore.engine.evaluate.results import FrameRecord, StreamResult
from tta_restore.engine.report import images, plots
from tta_restore.engine.report.comparison import Comparison, render_comparison
from tta_restore.engine.report.page import KernelSample, MethodNote, Report, Sample, render_report, write_report
from tta_restore.engine.run.usage import UsageError

GAINS = {"ours": (1.0, 0.4), "idle": (0.0, 0.0), "bad": (-0.7, -0.5)}


@pytest.fixture(scope="module")
def report() -> Report:
    records = []
    for index in range(12):
        family, position = ("disk", "cat_eye")[index // 6], index % 6
        base = FrameRecord("base", 0, index, family, "photo", position, 20 + index / 3, 0.7, 0.01, 0.02)
        records.append(base)
        for method, (first, second) in GAINS.items():
            gain = (first, second)[index // 6] + 0.02 * position * bool(first)
            step = {
                "updated": index != 3,
                "skipped_because": "loss spike" if index == 3 else None,
                "steps": 16,
                "loss": 0.1,
                "lens_changed": float(index == 6),
            }
            records.append(replace(base, method=method, psnr=base.psnr + gain, cpu_seconds=1.0, report=step))
    generator = torch.Generator().manual_seed(0)
    pictures = {name: torch.rand(3, 20, 30, generator=generator) for name in ("base", *GAINS)}
    psnr = dict.fromkeys(pictures, 21.234)
    samples = [
        Sample("cat_eye: photo", "median frame", pictures, torch.rand(3, 20, 30), psnr, "base", "ours"),
        Sample("the worst", "worst frame", pictures, torch.rand(3, 20, 30), psnr, "base", "ours", failure=True),
    ]
    kernels = torch.rand(2, 3, 5, 5, generator=generator)
    kernels = kernels / kernels.sum((-2, -1), keepdim=True)
    return Report(
        title="A <title> & more",
        result=StreamResult(tuple(records)),
        baseline="base",
        contrasts=[("ours", "base")],
        curves=["base", "ours", "bad"],
        notes={"ours": MethodNote("Learns.", plan="site | tensor <b>", color="#123456")},
        samples=samples,
        kernels=[KernelSample("disk", kernels, kernels)],
        facts={"seed": "0", "command": "tta-restore demo"},
        limits=["Lenses are simulated."],
    )


@pytest.fixture(scope="module")
def page(report) -> str:
    return render_report(report)


class Reader(HTMLParser):
    """Collects text, and every address that a browser would ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.addresses, self.skip = [], [], None

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data") and value:
                self.addresses.append(value)
        if tag in ("style", "script"):
            self.skip = tag

    def handle_endtag(self, tag):
        if tag == self.skip:
            self.skip = None

    def handle_data(self, data):
        if self.skip is None:
            self.text.append(data)


def read(page: str) -> tuple[str, list[str]]:
    reader = Reader()
    reader.feed(page)
    return re.sub(r"\s+", " ", " ".join(reader.text)), reader.addresses


@pytest.mark.thorough
def test_nothing_is_asked_for_from_elsewhere(page):
    _, addresses = read(page)
    assert len([a for a in addresses if a.startswith("data:image/png;base64,")]) == 2 * 5 + 2
    assert [a for a in addresses if not a.startswith(("data:", "#"))] == []
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_numbers_stand_where_they_belong(page, report):
    text, _ = read(page)
    gain = report.result.gain("ours", "base")
    assert f"+{gain.mean:.2f} dB PSNR" in text
    assert f"weakest lens cat eye +{report.result.gain('ours', 'base', family='cat_eye').mean:.2f}" in text
    assert "frames adapted on: 11" in text
    assert "skipped because loss spike: 1" in text
    assert "optimizer steps: 192" in text
    assert "changes of lens noticed: 1" in text
    assert "100 % of the light" in text
    assert f"{report.result.value('base').mean:.2f}" in text


@pytest.mark.thorough
def test_the_page_opens_on_the_frame_of_the_largest_gain(report):
    """Against the baseline of the gain, whatever the samples were chosen to compare; the frame is shown once."""
    first = replace(report.samples[0], title="small", before="idle", psnr={"base": 20.0, "ours": 20.1, "idle": 20.0})
    second = replace(first, title="large", psnr={"base": 20.0, "ours": 23.0, "idle": 20.0})
    page = render_report(replace(report, samples=[first, second, report.samples[1]]))
    opening = page[page.index('<div class="opening">') : page.index('<p class="lead">')]
    assert "<strong>large.</strong>" in opening
    assert re.findall(r"selected>(\w+)</option>", opening) == ["base", "ours"]
    assert "PSNR" in opening
    rest = page[page.index('id="look"') :]
    assert "<h3>small</h3>" in rest
    assert "<h3>large</h3>" not in rest
    text, _ = read(render_report(replace(report, samples=report.samples[1:])))  # a failure case alone opens no page
    assert "gains most over" not in text


def test_what_does_not_help_is_said(page):
    text, _ = read(page)
    assert re.search(r"Not distinguishable from base on this stream, or ahead by less than 0\.01 dB: idle \(", text)
    assert re.search(r"Below base on this stream: bad \(-0\.\d\d dB\)", text)
    assert "ours (" not in text[text.index("Not distinguishable") :]
    assert "interval over whole lenses does not exclude zero" not in text  # ours gains on both lenses
    assert "failure case" in text
    assert "Lenses are simulated." in text


@pytest.mark.thorough
def test_a_gain_on_some_lenses_only_is_said(report):
    """Ahead on one lens by much, behind on the other by little: clear over frames, unclear over lenses."""
    records = tuple(
        replace(r, psnr=r.psnr - 0.5 if r.method == "ours" and r.family == "cat_eye" else r.psnr)
        for r in report.result.records
    )
    text, _ = read(render_report(replace(report, result=StreamResult(records))))
    assert re.search(r"interval over whole lenses does not exclude zero: ours \(\+0\.\d\d dB\)\.", text)


def test_text_is_escaped(page):
    assert "A &lt;title&gt; &amp; more" in page
    assert "tensor &lt;b&gt;" in page


def test_pictures_are_kept_exactly(page, report):
    first = re.search(r'src="data:image/png;base64,([^"]+)"', page)[1]
    shown = np.asarray(PilImage.open(io.BytesIO(base64.b64decode(first))))
    expected = (report.samples[0].pictures["base"] * 255).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(shown, expected)


@pytest.mark.thorough
def test_drawings_repeat_and_leave_matplotlib_as_it_was(report):
    before = dict(mpl.rcParams)
    assert render_report(report) == render_report(report)
    assert dict(mpl.rcParams) == before


def test_more_methods_than_colors_differ_in_line_and_marker():
    names = [f"method {number}" for number in range(2 * len(plots.PALETTE) + 1)]
    records = [FrameRecord(name, 0, t, "a", "a", t, 20.0 + t, 0.9, 1.0, 1.0) for name in names for t in range(2)]
    colors = {name: plots.PALETTE[order % len(plots.PALETTE)] for order, name in enumerate(names)}
    svg = plots.psnr_over_stream(StreamResult(tuple(records)), names, colors)
    first = [line for line in re.findall(r'style="fill: none; ([^"]*)"', svg) if plots.PALETTE[0].lower() in line]
    assert len(set(first)) == 3  # of the three methods of the first color


def test_identifiers_of_the_drawings_are_apart(page):
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    assert len(drawings) == 4
    clips = [set(re.findall(r'<clipPath id="([^"]+)"', drawing)) for drawing in drawings]
    assert all(clips)
    assert len(set().union(*clips)) == sum(map(len, clips))


@pytest.mark.thorough
def test_a_page_without_pictures_and_kernels(report, tmp_path):
    write_report(tmp_path / "r.html", replace(report, samples=(), kernels=(), notes={}))
    page = (tmp_path / "r.html").read_text()
    assert 'id="look"' not in page
    assert 'id="kernels"' not in page
    assert list(tmp_path.iterdir()) == [tmp_path / "r.html"]


def test_unknown_methods_are_refused(report):
    with pytest.raises(ValueError, match="no records of 'theirs'"):
        render_report(replace(report, contrasts=[("theirs", "base")]))


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_says_what_to_install(package, report, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"needs {package}: pip install 'tta-restore\[report\]'"):
        render_report(report)


def test_kernel_sheet_and_overlap():
    kernels = torch.zeros(2, 3, 5, 5)
    kernels[..., 2, 2] = 1
    sheet = images.kernel_sheet(kernels, gap=1)
    assert sheet.shape == (3, 2 * 6 + 1, 3 * 6 + 1)
    assert sheet.dtype == torch.uint8
    assert sheet[0, 3, 3] == 0  # the center of the first kernel, darkest
    assert sheet[0, 1, 1] == 255  # its corner, without light
    moved = kernels.roll(1, dims=-1)
    assert images.kernel_overlap(kernels, kernels) == 1
    assert images.kernel_overlap(moved, kernels) == 0
    assert images.kernel_overlap(0.5 * moved + 0.5 * kernels, kernels) == pytest.approx(0.5)
    wide = torch.nn.functional.pad(kernels, (1, 1, 1, 1))
    assert images.kernel_overlap(wide, kernels) == 1


def test_sentences_next_to_rows_appear_once():
    pytest.importorskip("jinja2")
    tables = [(title, ["row", "PSNR published"], [["SAR", "1.0"], ["JNB", "2.0"]]) for title in ("one", "two")]
    notes = {"SAR": "as source on every image", "JNB": "quoted"}
    text = render_comparison(Comparison("title", "lead", "source", tables, notes))
    assert text.count("as source on every image") == 1
    assert text.count("> quoted<") == 2
