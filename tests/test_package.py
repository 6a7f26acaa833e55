"""Importing the package: quick, without optional packages, complete."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
from _fresh import run_program

import tta_restore

ROOT = Path(__file__).parents[1]
PACKAGE = Path(tta_restore.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = (
    "timm",
    "open_clip",
    "spandrel",
    "skimage",
    "sklearn",
    "matplotlib",
    "jinja2",
    "jsonargparse",
    "tifffile",
    "av",
)


def test_import_needs_no_optional_package():
    program = f"""
import sys
for name in {OPTIONAL!r}: sys.modules[name] = None
import tta_restore
import tta_restore.ops, tta_restore.nn, tta_restore.losses, tta_restore.models, tta_restore.adapters
import tta_restore.data, tta_restore.metrics
from tta_restore.__main__ import main
sys.argv = ["tta_restore", "info"]
raise SystemExit(main())
"""
    run = run_program(program)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"tta_restore {tta_restore.__version__} | torch")


def test_import_loads_nothing_heavy_but_torch():
    program = """
import sys, torch
before = {name for name in sys.argv[1:] if name in sys.modules}
import tta_restore
print(sorted({name for name in sys.argv[1:] if name in sys.modules} - before))
"""
    heavy = ["torchvision", "numpy.testing", "PIL", "triton", "tta_restore.ops", "tta_restore.models", *OPTIONAL]
    run = run_program(program, *heavy)
    assert run.stdout == "[]\n", run.stderr


def test_every_public_name_exists():
    for name in tta_restore.__all__:
        assert getattr(tta_restore, name) is not None
    assert set(tta_restore.__all__) <= set(dir(tta_restore))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = tta_restore.nothing


@pytest.mark.thorough
def test_modules_are_there_when_they_are_named():
    """What the design and the guides call by name needs no import of its own; a fresh process has none loaded."""
    program = """
import tta_restore as t
for named in (
    t.engine.evaluate_stream, t.engine.train.supervised.train_supervised, t.engine.train.misaligned.MisalignedObjective,
    t.engine.train.meta.meta_train, t.engine.train.reblur.pretrain_reblur,
    t.data.synthetic.defocus.defocus_stream,
    t.data.synthetic.dead_leaves, t.data.datasets.pairs, t.models.optical_flow, t.models.jdrl.BlurConditioned,
):
    assert named is not None
for package in (t.engine, t.data, t.models):
    try:
        package.nothing
    except AttributeError as error:
        assert "has no attribute 'nothing'" in str(error)
    else:
        raise SystemExit("nothing is there")
"""
    run = run_program(program)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("package", ["io", "datasets"])
def test_every_name_that_a_package_of_data_exports_exists(package):
    module = getattr(tta_restore.data, package)
    assert all(getattr(module, name).__name__ == name for name in module.__all__)
    assert set(module.__all__) <= set(dir(module))


def test_floors_of_the_linter_are_all_packages():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = config["tool"]["importlinter"]["contracts"][0]["layers"]
    named = {part.strip().removeprefix("tta_restore.") for layer in layers for part in re.split("[|:]", layer)}
    packages = {path.parent.name for path in (ROOT / "tta_restore").glob("*/__init__.py")}
    assert packages <= named


def test_memory_that_nobody_wrote_is_poisoned():
    """The conftest's guard works, in Python and beneath it."""
    assert torch.empty(3).isnan().all()
    assert torch.empty_like(torch.ones(2, 2)).isnan().all()
    assert torch.ones(2).new_empty(4).isnan().all()
    assert torch.empty_strided((2, 2), (1, 2)).isnan().all()


def test_citation_agrees_with_the_package():
    """Version, licence and keywords of CITATION.cff, pyproject.toml and README.md are the same."""
    citation = (ROOT / "CITATION.cff").read_text()
    fields = dict(re.findall(r"^([\w-]+): (.+)$", citation, re.MULTILINE))
    assert fields["version"] == tta_restore.__version__
    assert fields["license"] == PROJECT["license"]
    assert re.findall(r"^  - (?!name)(.+)$", citation, re.MULTILINE) == PROJECT["keywords"]
    assert PROJECT["license"] in (ROOT / "README.md").read_text().split("## Licence")[1]


def test_the_command_line_needs_no_extra():
    """Every package that the command line imports at its top level or in its parser is a base dependency."""
    needed = {re.split("[^a-z_-]", line)[0] for line in PROJECT["dependencies"]}
    assert needed >= {"torch", "timm", "open_clip_torch", "einops", "numpy", "pillow", "safetensors", "tqdm"}
    assert needed >= {"jsonargparse", "pyyaml"}


def test_extras_in_messages_and_pages_exist():
    extras = set(PROJECT["optional-dependencies"])
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *PACKAGE.rglob("*.py")]
    named = {
        extra
        for page in pages
        for names in re.findall(r"pip install [^\n\[]*['\"](?:tta[-_]restore|\.)\[([a-z,]+)\]", page.read_text())
        for extra in names.split(",")
    }
    assert named >= {"io", "restorers", "video"}
    assert named <= extras


def test_the_long_description_stands_alone():
    """Relative links and pictures lead nowhere on PyPI; the example and the gains are those of the README."""
    page, readme = (ROOT / PROJECT["readme"]).read_text(), (ROOT / "README.md").read_text()
    assert re.findall(r"\]\((?!https:)[^)]*|<\w.*", page) == []
    examples, rows = re.compile("```python\n.*?```", re.DOTALL), re.compile(r"^\|.*", re.MULTILINE)
    assert examples.findall(page) == examples.findall(readme)
    assert set(rows.findall(page)) <= set(rows.findall(readme))


@pytest.mark.parametrize("broken", ["version", "changelog", "token"])
def test_a_release_that_is_not_ready_is_refused_before_it_builds(broken, tmp_path):
    """Neither a version, a changelog nor a token that is missing gets as far as the upload."""
    for name in (".ci/release", "tta_restore/__init__.py", "CITATION.cff", "CHANGELOG.md"):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        target.write_text(((PACKAGE.parent if name.startswith("tta_restore") else ROOT) / name).read_text())
    version = tta_restore.__version__
    changelog = f"## {version} (2026-01-31)\n" if broken != "changelog" else f"## {version} (not released)\n"
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    if broken == "version":
        (tmp_path / "CITATION.cff").write_text("version: 99.0.0\n")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    token = {} if broken == "token" else {"TWINE_PASSWORD": "none"}
    environment = {"PATH": os.environ["PATH"], **token}
    run = subprocess.run(["bash", tmp_path / ".ci/release"], capture_output=True, text=True, env=environment)
    said = {"version": "CITATION.cff has another version", "changelog": "CHANGELOG.md has no line", "token": "token"}
    assert run.returncode == 1
    assert said[broken] in run.stderr
    assert run.stderr.count("\n") == 1
    assert not (tmp_path / "dist").exists()
