"""Reports in a real browser: nothing overflows, pictures are compared and enlarged; skipped without a Chromium."""

import pytest
import torch
from _browser import chromium

from tta_restore.adapters import CalibrationReport
from tta_restore.engine.evaluate.stream import FrameRecord, StreamResult
from tta_restore.engine.report.calibration import CalibrationPage, write_calibration
from tta_restore.engine.report.comparison import Comparison, write_comparison
from tta_restore.engine.report.page import KernelSample, MethodNote, Report, Sample, write_report

METHODS = ("input", "self-ensemble", "a method with a long name: recommended")
FAMILIES = [f"deblurrer: lens number {i} and noise" for i in range(7)]


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def sample(failure=False):
    generator = torch.Generator().manual_seed(0)
    pictures = {name: torch.rand(3, 60, 80, generator=generator) for name in METHODS}
    scores = dict(zip(METHODS, (20.0, 21.0, 24.5), strict=True))
    title = f"{FAMILIES[0]}: photo, frame 1 after the condition changed"
    return Sample(title, "rule", pictures, pictures["input"], scores, "input", METHODS[2], failure)


def write_stream_report(path):
    records = [
        FrameRecord(method, 0, i, family, "photo", 0, 20 + i + gain, 0.7, 0.01, 0.02)
        for gain, method in enumerate(METHODS)
        for i, family in enumerate(FAMILIES)
    ]
    kernels = torch.rand(2, 3, 5, 5)
    report = Report(
        title="A report",
        result=StreamResult(tuple(records)),
        baseline="self-ensemble",
        contrasts=[(METHODS[2], "self-ensemble")],
        curves=METHODS,
        notes={METHODS[2]: MethodNote("Learns.", plan="site | " + "tensor " * 40)},
        samples=[sample(), sample(failure=True)],
        kernels=[KernelSample("disk", kernels, kernels)],
        facts={"command": "tta-restore demo " + "/a/long/path" * 20},
        group="condition",
    )
    write_report(path, report)


def write_table_report(path):
    header = ["", *["DPDD PSNR published", "measured", "difference"] * 6]
    rows = [[f"A method {i} of a long name", *["20.00"] * 18] for i in range(4)]
    page = Comparison(
        "A table", "lead", "a paper", [("Table 1", header, rows)], samples=[sample()], missing=["x" * 200]
    )
    write_comparison(path, page)


def write_calibration_report(path):
    degradation = {"noise": 20.0, "blur": 1.0, "jpeg_quality": 40.0}
    names = [f"DSC_{i:04}_of_a_camera_with_long_names.png" for i in range(5)]
    report = CalibrationReport(
        torch.nn.Identity(), 5, 48, 12.0, "denoise", degradation, 3.5, 0.9, 1e-3, (3.5,) * 5, ("frame 1: " + "x" * 200,)
    )
    facts = {"photos": "/a/long/path" * 20}
    write_calibration(path, CalibrationPage("A calibration", report, [sample()] * 3, names, ["y" * 200], facts))


@pytest.fixture(
    scope="module",
    params=[write_stream_report, write_table_report, write_calibration_report],
    ids=["stream", "table", "calibration"],
)
def address(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    request.param(path)
    return path.as_uri()


def open_page(browser, address, width, scheme="light"):
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.failures = []
    page.on("pageerror", lambda error: page.failures.append(str(error)))
    page.goto(address)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows(browser, address, width, scheme):
    """Neither the page nor a part of it, except where it scrolls inside itself."""
    page = open_page(browser, address, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """() => Array.from(document.querySelectorAll("body *")).filter((element) => {
            const box = element.getBoundingClientRect();
            if (!box.width || box.right <= innerWidth + 1) return false;
            for (let above = element.parentElement; above; above = above.parentElement)
                if (getComputedStyle(above).overflowX !== "visible") return false;
            return true;
        }).map((element) => element.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    page.close()


def test_pictures_are_compared_and_enlarged(browser, address):
    page = open_page(browser, address, 1280)
    first = page.locator(".sample").first
    selects = first.locator("select")
    selects.nth(0).select_option(label="self-ensemble")
    assert first.locator(".difference").inner_text() == "right over left: +3.50 dB"
    selects.nth(0).select_option(label="sharp original")
    assert first.locator(".difference").inner_text() == ""

    before = page.locator(".compare").count()
    first.locator(".enlarge").click()
    shown = page.locator("dialog.zoom .compare")
    fitted = shown.bounding_box()["width"]
    assert 400 < fitted <= 1280
    page.locator("dialog.zoom [data-scale='8']").click()
    assert shown.bounding_box()["width"] == 80 * 8
    assert shown.evaluate("e => getComputedStyle(e.querySelector('img')).imageRendering") == "pixelated"
    page.keyboard.press("Escape")
    assert page.locator("dialog.zoom .compare").count() == 0
    assert first.locator(".compare").count() == 1
    assert page.locator(".compare").count() == before
    assert page.failures == []
    page.close()


def test_the_first_screen_shows_the_picture_of_the_largest_gain(browser, tmp_path):
    write_stream_report(tmp_path / "report.html")
    page = open_page(browser, (tmp_path / "report.html").as_uri(), 1280)
    box = page.locator(".opening .compare").bounding_box()
    assert box["y"] + box["height"] < 844
    assert page.locator(".opening .difference").inner_text() == "right over left: +3.50 dB"
    page.close()
