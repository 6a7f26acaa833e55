"""The page of `tta-restore serve` in a real browser; skipped without gradio, playwright or a Chromium."""

import os
import signal
import subprocess
import sys
import threading
import zipfile

import pytest
import torch
from _browser import chromium
from safetensors.torch import load_file

from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.data.synthetic import dead_leaves
from tta_restore.models import create_model

pytest.importorskip("gradio", reason="needs the extra serve")
pytest.importorskip("playwright.sync_api", reason="needs playwright")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SECONDS = 120_000  # milliseconds that a restoration may take on a busy machine


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for name in ("first", "second"):
        sharp = dead_leaves.tile(96, generator)
        noisy = (sharp + 30 / 255 * torch.randn(sharp.shape, generator=generator)).clamp(0, 1)
        write_image(folder / f"{name}.png", Image(noisy))
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Yield the address of a running page and the folder of its temporary files; afterwards it ended cleanly."""
    folder = tmp_path_factory.mktemp("temporary")
    process = subprocess.Popen(
        [sys.executable, "-m", "tta_restore", "serve", "--max-files", "3", "--max-pixels", "20000", "-j", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
    )
    killer = threading.Timer(240, process.kill)
    killer.start()
    try:
        address = process.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:"), process.stderr.read()
        yield address, folder
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert out.splitlines()[-1] == "ended; photos and results on the page were removed"
        assert errors == ""
        assert not list(folder.glob("tta-restore-*"))
    finally:
        killer.cancel()
        process.kill()


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser, server):
    """Yield the page in a fresh window; no request leaves this computer, and no script fails."""
    window = browser.new_page(viewport={"width": 1200, "height": 900})
    foreign, failures = [], []
    window.on("request", lambda r: None if r.url.startswith((server[0], "data:", "blob:")) else foreign.append(r.url))
    window.on("pageerror", lambda error: failures.append(str(error)))
    window.goto(server[0])
    window.wait_for_selector("#start")
    yield window
    window.close()
    assert [url for url in foreign if "iframe-resizer" not in url] == []  # gradio's own, for pages inside others
    assert failures == []


def choose(page, element, text):
    page.click(f"#{element} input")
    page.get_by_role("option", name=text).first.click()


def drop(page, element, *files):
    page.set_input_files(f"#{element} input[type=file]", [str(file) for file in files])
    page.wait_for_selector(f"#{element} .file-preview")


def wait_for(page, text):
    page.wait_for_function("t => document.querySelector('#summary').innerText.includes(t)", arg=text, timeout=SECONDS)


def download(page, selector, folder):
    with page.expect_download() as found:
        page.click(selector)
    target = folder / found.value.suggested_filename
    found.value.save_as(target)
    return target


def test_photos_are_restored_compared_and_downloaded(page, photos, tmp_path):
    choose(page, "model", "denoiser")
    drop(page, "photos", photos / "first.png", photos / "second.png", photos / "broken.png")
    page.click("#start")
    wait_for(page, "2 of 3 photos restored")
    page.wait_for_selector("#slider img")
    assert page.eval_on_selector_all("#slider img", "all => all.every(i => i.naturalWidth === 96)")
    details = page.inner_text("#details")
    assert "rusted (" in details
    assert "Cost:" in details
    choose(page, "shown", "broken.png")
    page.wait_for_function("() => document.querySelector('#details').innerText.includes('was not restored')")
    assert "/tmp" not in page.inner_text("#details")
    assert not page.is_visible("#slider img")
    choose(page, "shown", "second.png")
    page.wait_for_selector("#slider img")

    archive = download(page, "#results a >> nth=0", tmp_path)
    with zipfile.ZipFile(archive) as files:
        assert sorted(files.namelist()) == ["first-restored.png", "second-restored.png"]
    restored = download(page, "#results a >> nth=1", tmp_path)
    assert read_image(restored).pixels.shape == (3, 96, 96)
    checkpoint = download(page, "#checkpoint", tmp_path)
    network = create_model("small_unet")
    network.load_state_dict(load_file(checkpoint))
    assert "--model small_unet --checkpoint adapted.safetensors" in page.inner_text("#checkpoint-note")


def test_a_model_file_of_the_user(page, photos, tmp_path):
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"no model")
    choose(page, "model", "a model file of yours")
    drop(page, "photos", photos / "first.png")
    page.click("#start")
    wait_for(page, "drop a model file, or choose a shipped model")
    drop(page, "model-file", damaged)
    page.click("#start")
    wait_for(page, "damaged.pth is damaged, or holds pickled Python objects")
    assert "/" not in page.inner_text("#summary")


def test_limits_are_kept(page, photos, tmp_path):
    page.click("#start")
    wait_for(page, "drop one or more photos first")
    write_image(tmp_path / "large.png", Image(torch.rand(3, 200, 200)))
    choose(page, "model", "denoiser")
    drop(page, "photos", tmp_path / "large.png")
    page.click("#start")
    wait_for(page, "0 of 1 photo restored")
    shown = "() => document.querySelector('#details').innerText.includes('above the limit of 20000')"
    page.wait_for_function(shown)


def test_a_run_is_stopped_after_a_photo(page, photos):
    choose(page, "model", "generalist")
    drop(page, "photos", photos / "first.png", photos / "second.png")
    page.click("#start")
    wait_for(page, "1 of 2: first.png")
    page.click("#stop")
    wait_for(page, "Stopped.")
    assert page.is_enabled("#start")
    assert not page.is_visible("#stop")


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_overflows(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
