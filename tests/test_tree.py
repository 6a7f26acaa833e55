"""The tree in the README and the packages on disk agree."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def listed():
    """Return the package paths of the tree in the README."""
    block = re.search(r"## The tree\n.*?```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    paths, parent = [], ""
    for line in block[1].splitlines():
        name = line.split("/")[0]
        if not line.startswith(" "):
            parent = name
            paths.append(name)
        else:
            paths.append(f"{parent}/{name.strip()}")
    return paths


def test_tree_of_readme_is_on_disk():
    package = ROOT / "tta_restore"
    found = {str(path.parent.relative_to(package)) for path in package.rglob("__init__.py")} - {"."}
    assert len(listed()) == len(set(listed()))
    assert set(listed()) == found


def test_every_listed_package_has_a_description():
    block = re.search(r"## The tree\n.*?```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert all(len(line.split("/", 1)[1].strip()) > 4 for line in block[1].splitlines())
