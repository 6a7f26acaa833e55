"""The public API is the one that public_api.txt lists: a name or a signature does not change unnoticed."""

import difflib
import importlib

import pytest
from _public_api import COMMAND, LIST, inventory

MODULE = '''"""A module."""

from other import Thing
from .{origin} import helper

__all__ = ["LIMIT", "Class", "Thing", "function", "helper"]
LIMIT: int = 3


def function(x: int, *, y: float = 1.0) -> int:
    """Return x."""
    return x


class _Base:
    def inherited(self) -> None: ...


class Class(_Base):
    """A class."""

    size: int = 2

    def method(self, x: int) -> int:
        return x

    def _private(self) -> None: ...
'''


def test_public_api_is_listed():
    expected, found = LIST.read_text(encoding="utf-8"), inventory()
    changes = [
        line
        for line in difflib.unified_diff(expected.splitlines(), found.splitlines(), lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    assert not changes, (
        f"the public API differs from {LIST.name}; if that is intended, add the change to CHANGELOG.md and run "
        f"`{COMMAND}`:\n" + "\n".join(changes[:40])
    )


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "sample"
    folder.mkdir()
    (folder / "__init__.py").write_text('__all__ = ["helper"]\nfrom ._parts import helper\n')
    (folder / "_parts.py").write_text("def helper(a, b=2): ...\n")
    (folder / "module.py").write_text(MODULE.format(origin="_parts"))
    return folder


def test_inventory_lists_names_and_signatures(package):
    assert inventory(package).splitlines() == [
        "sample",
        "  helper(a, b=2)",
        "",
        "sample.module",
        "  class Class(_Base)",
        "    inherited(self) -> None",
        "    size: int = 2",
        "    method(self, x: int) -> int",
        "  LIMIT: int = 3",
        "  Thing: of another package",
        "  function(x: int, *, y: float=1.0) -> int",
        "  helper(a, b=2)",
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [("y: float = 1.0", "y: float = 2.0"), ("size: int", "length: int"), ("def inherited", "def renamed")],
)
def test_a_changed_signature_changes_the_inventory(package, before, after):
    first = inventory(package)
    module = package / "module.py"
    module.write_text(module.read_text().replace(before, after))
    assert inventory(package) != first


def test_a_listed_name_that_is_missing_raises(package):
    (package / "module.py").write_text('__all__ = ["nothing"]\n')
    with pytest.raises(LookupError, match=r"sample.module.__all__ has 'nothing'"):
        inventory(package)


@pytest.mark.parametrize("name", ["adapters", "degradations", "losses", "metrics", "models", "nn", "ops"])
def test_every_listed_name_can_be_imported(name):
    module = importlib.import_module(f"tta_restore.{name}")
    assert [entry for entry in module.__all__ if not hasattr(module, entry)] == []
