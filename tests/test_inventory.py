"""docs/inventory.md names objects, models and tests that exist."""

import importlib
import re
from pathlib import Path

import tta_restore
from tta_restore import models

ROOT = Path(tta_restore.__file__).parents[1]
TEXT = (ROOT / "docs/inventory.md").read_text()


def test_every_test_exists():
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", TEXT))
    assert len(named) > 30
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []


def test_every_object_exists():
    for name in set(re.findall(r"`(tta_restore(?:\.\w+)+)`", TEXT)):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, leaf = name.rpartition(".")
            assert hasattr(importlib.import_module(module), leaf), name


def test_every_model_is_registered():
    named = {name for row in re.findall(r"models? `(\w+)`", TEXT) for name in [row]}
    assert named >= {"ifan", "jdrl_journal", "blur_conditioned", "video_reblur", "dpdnet_s"}
    assert named <= set(models.list_models())
