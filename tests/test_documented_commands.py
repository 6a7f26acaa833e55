"""Commands on the pages parse, messages in the guide on errors exist, and the picture of the README is there."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import front_picture
from tta_restore.cli.commands import COMMANDS, Command
from tta_restore.cli.parsing import parse
from tta_restore.engine.demo.demo import demo_streams

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINE = re.compile(r"^(?: {4}|\$ )?(?:python -m tta_restore|tta-restore|torchrun .*?-m tta_restore) (.+)$", re.MULTILINE)


def commands():
    """Yield the page and the words of every command line, without comments and redirections."""
    for page in PAGES:
        for line in LINE.findall(re.sub(r"\\\n\s*", "", page.read_text())):
            words = shlex.split(line, comments=True)
            if "<" in words:
                del words[words.index("<") : words.index("<") + 2]
            if ">" in words:
                del words[words.index(">") :]
            yield pytest.param(words, id=f"{page.stem}: {' '.join(words)}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_a_page_write_to_different_places(page):
    """A result that is there is kept: a reader who runs two commands with one output compares a method with itself."""
    found: dict[str, set[tuple[str, ...]]] = {}
    for line in LINE.findall(re.sub(r"\\\n\s*", "", page.read_text())):
        words = [word for word in shlex.split(line, comments=True) if word != "--dry-run"]
        if words[0] in ("restore", "calibrate") and "-o" in words and words[words.index("-o") + 1] != "-":
            found.setdefault(words[words.index("-o") + 1], set()).add(tuple(words))
    assert [out for out, runs in found.items() if len(runs) > 1] == []


@pytest.mark.parametrize("words", list(commands()))
def test_a_documented_command_parses(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, rest = words[0], words[1:]
    command = COMMANDS[name]
    if not isinstance(command, Command):
        name, command, rest = f"{name} {rest[0]}", command[rest[0]], rest[1:]
    if "--config" in rest:
        (tmp_path / rest[rest.index("--config") + 1]).write_text(
            "[run]\nsteps = 1\n" if command.config else "seed = 1\n"
        )
    parse(name, command, rest)


def test_there_are_commands_on_the_front_page():
    first = (ROOT / "README.md").read_text().split("## Install")[0]
    assert {line.split()[0] for line in LINE.findall(first)} >= {"restore", "calibrate", "serve"}


def test_every_message_in_the_guide_on_errors_exists():
    source = "".join(path.read_text() for path in (ROOT / "tta_restore").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source).replace("{error.name}", "imagecodecs")
    guide = (ROOT / "docs/guides/errors.md").read_text()
    messages = [
        text for row in re.findall(r"^\| (`.*?) \|", guide, re.MULTILINE) for text in re.findall("`(.+?)`", row)
    ]
    assert len(messages) > 20
    of_torch = {"Found no NVIDIA driver on your system"}
    assert [text for text in messages if text not in source and text not in of_torch] == []


def test_links_of_the_readme_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())
    assert "docs/front.jpg" in targets
    assert [target for target in targets if not target.startswith("http") and not (ROOT / target).exists()] == []


def test_the_picture_is_small_and_of_frames_of_the_demo():
    path = ROOT / "docs" / "front.jpg"
    assert path.stat().st_size < 200_000
    conditions = {frame.family for frames in demo_streams(1, seed=0).values() for frame in frames}
    assert set(front_picture.CONDITIONS) <= conditions
    frame = demo_streams(1, seed=0)[0][0]
    entries = dict.fromkeys(front_picture.COLUMNS, (frame.sharp, 30.0))
    with Image.open(path) as shown:
        assert shown.size == front_picture.draw(dict.fromkeys(front_picture.CONDITIONS, entries)).size
