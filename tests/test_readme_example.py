"""The Python in the README and in the guides runs as it stands, each page from top to bottom."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.thorough] * (page.stem != "README"), id=page.stem)
        for page in PAGES
        if BLOCK.search(page.read_text())
    ],
)
@pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated")  # spandrel's NAFNet
def test_the_code_on_a_page_runs(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": f"page_{page.stem}"}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), names)


def test_the_guides_have_code():
    assert {page.stem for page in PAGES if BLOCK.search(page.read_text())} >= {
        "train_on_misaligned_pairs",
        "train_supervised",
        "wrap_your_model",
        "write_your_own_method",
    }
