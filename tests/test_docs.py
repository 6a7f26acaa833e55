"""The documentation site: every public name has a page, the picture is current, links are checked, the examples run."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tta_restore

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GALLERY = sorted((ROOT / "examples" / "gallery").glob("plot_*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_one_page():
    pytest.importorskip("sphinx", reason="needs the extra docs")
    api = load(DOCS / "_ext" / "api_pages.py")
    modules = api.open_modules()
    pages = api.pages()
    for package in (
        "adapters",
        "data.io",
        "degradations",
        "engine.train.loop",
        "losses",
        "metrics",
        "models",
        "nn",
        "ops",
    ):
        path = f"tta_restore.{package}"
        assert path in pages
        for name in modules[path].__all__:
            value = getattr(modules[path], name)
            if api.kind_of(value) != "data":
                assert sum(page.endswith(f".{name}") and f":: {page}\n" in text for page, text in pages.items()) >= 1, (
                    name
                )
    documented = api.documented_names(modules)
    assert len(documented["tta_restore.ops"]) == len(modules["tta_restore.ops"].__all__)
    assert "sac" not in documented.get("tta_restore.ops.adaptive_conv", [])  # it has a page under the shorter path


def test_lines_and_words_of_commands_can_be_wrapped_and_copied():
    block = '<div class="highlight-{} notranslate"><div class="highlight"><pre><span></span>{}\n</pre></div>\n</div>'
    lines = load(DOCS / "_ext" / "command_lines.py")
    text = 'tta-restore <span class="nb">info</span> --model a.pth\n\ncd my-photos'
    marked = lines.mark_lines(block.format("none", text))
    assert re.findall(r'<span class="word">(.*?)</span>', marked) == ["tta-restore", "--model", "my-photos"]
    assert marked.count('<span class="line">') == 2
    assert re.sub(r"<[^>]*>", "", marked) == re.sub(r"<[^>]*>", "", block.format("none", text))
    for language in ("python", "Python", "pycon", "default"):
        assert lines.mark_lines(block.format(language, text)) == block.format(language, text)


def test_the_picture_of_the_architecture_is_current():
    architecture = load(DOCS / "architecture.py")
    for name, colors in architecture.COLORS.items():
        assert (DOCS / f"architecture-{name}.svg").read_text() == architecture.draw(colors)
    packages = {path.parent.name for path in Path(tta_restore.__file__).parent.glob("*/__init__.py")}
    assert {name for row in architecture.floors() for name in row} == packages


def test_broken_links_and_anchors_are_found(tmp_path):
    links = load(DOCS / "check_links.py")
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text(
        '<a href="mailto:x">0</a><a href="sub/b.html#there">1</a>'
        '<a href="sub/b.html#not">2</a><a href="c.html">3</a><a href="#top">4</a>'
        '<img src="sub/x.png"><a href="https://good.org/x#y">5</a><a href="https://bad.org">6</a>'
    )
    (tmp_path / "sub" / "b.html").write_text('<p id="there"><a href="../a.html">1</a><a href="..">2</a></p>')
    (tmp_path / "sub" / "x.png").write_bytes(b"x")
    known = {"https://good.org/x": None, "https://bad.org": False}
    broken, outside, count = links.check_site(tmp_path, known.get)
    assert sorted(broken) == sorted(
        ["a.html: #top", "a.html: c.html", "a.html: https://bad.org", "a.html: sub/b.html#not", "sub/b.html: .."]
    )
    assert outside == known
    assert count == 7


def test_addresses_that_cannot_be_reached_are_unchecked():
    assert load(DOCS / "check_links.py").exists("http://127.0.0.1:9/") is None


@pytest.mark.slow
@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.stem)
def test_an_example_of_the_gallery_runs(path, tmp_path):
    environment = {
        "MPLBACKEND": "Agg",
        "PYTHONPATH": ":".join(sys.path),
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_the_gallery_is_there():
    assert len(GALLERY) >= 7
