import importlib.metadata
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tta_restore import models
from tta_restore.models import checkpoint, registry


def build_small(width: int = 4) -> nn.Module:
    return nn.Conv2d(3, width, 1)


def test_a_registered_builder_is_listed_under_its_kind_and_built_with_its_config():
    models.register_model("small", kind="estimator")(build_small)
    assert "small" in models.list_models()
    assert "small" in models.list_models("estimator")
    assert "small" not in models.list_models("restorer")
    assert models.create_model("small", width=7).out_channels == 7


def test_a_second_definition_is_refused_and_both_are_named():
    models.register_model("small")(build_small)
    models.register_model("small")(build_small)  # the same one again, as importlib.reload does
    with pytest.raises(ValueError, match=r"test_registry\.build_small and by .*Conv2d"):
        models.register_model("small")(nn.Conv2d)
    assert registry._entries["small"].builder is build_small


def test_unknown_names_and_kinds_are_answered_with_near_names():
    models.register_model("tiny_network")(build_small)
    with pytest.raises(ValueError, match="did you mean tiny_network"):
        models.create_model("tiny_netwrk")
    with pytest.raises(ValueError, match="restorer, reblurrer"):
        models.list_models("restorers")
    with pytest.raises(ValueError, match="kind of 'x'"):
        models.register_model("x", kind="network")
    with pytest.raises(TypeError, match="heads"):
        models.create_model("tiny_network", heads=3)


def test_checkpoint_metadata_gives_the_config_and_guards_the_model(tmp_path):
    models.register_model("small")(build_small)
    models.register_model("other")(build_small)
    trained = build_small(width=6)
    path = tmp_path / "trained.safetensors"
    save_file(trained.state_dict(), path, metadata={"model": "small", "config": json.dumps({"width": 6})})
    loaded = models.create_model("small", checkpoint=path)
    assert torch.equal(loaded.weight, trained.weight)
    with pytest.raises(ValueError, match=r"weights of 'small', not of 'other'"):
        models.create_model("other", checkpoint=path)
    with pytest.raises(ValueError, match="shape"):
        models.create_model("small", checkpoint=path, width=5)


def test_a_bare_word_names_a_shipped_file(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "WEIGHTS", tmp_path)
    models.register_model("small")(build_small)
    trained = build_small()
    save_file(trained.state_dict(), tmp_path / "specialist.safetensors")
    assert torch.equal(models.create_model("small", checkpoint="specialist").weight, trained.weight)
    for padding in range(0, 160, 8):  # the length of a header may begin as a pickle does
        save_file(trained.state_dict(), tmp_path / "specialist.safetensors", {"note": "n" * padding})
        assert torch.equal(models.create_model("small", checkpoint="specialist").weight, trained.weight)
    with pytest.raises(ValueError, match=r"'generalist' are shipped \(there are: specialist\)"):
        models.create_model("small", checkpoint="generalist")


def test_plugins_are_found_and_a_broken_one_only_warns(monkeypatch):
    good = importlib.metadata.EntryPoint("from_plugin", "torch.nn:Identity", registry.ENTRY_POINT_GROUP)
    broken = importlib.metadata.EntryPoint("broken", "no_such_package:build", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [broken, good])
    monkeypatch.setattr(registry, "_discovered", False)
    with pytest.warns(UserWarning, match="plugin 'broken'"):
        assert "from_plugin" in models.list_models()
    assert isinstance(models.create_model("from_plugin"), nn.Identity)


def test_a_plugin_that_was_imported_before_is_no_namesake(monkeypatch):
    models.register_model("from_plugin")(build_small)
    points = [
        importlib.metadata.EntryPoint(name, value, registry.ENTRY_POINT_GROUP)
        for name, value in (("from_plugin", f"{__name__}:build_small"), ("ifan", "torch.nn:Identity"))
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    monkeypatch.setattr(registry, "_discovered", False)
    monkeypatch.setattr(registry, "_plugins", {})
    with pytest.warns(UserWarning, match="'ifan' .* has the name of a built-in model") as told:
        assert registry.is_plugin("from_plugin")
    assert len(told) == 1
    assert not registry.is_plugin("ifan")


def test_a_keyword_that_the_model_does_not_take_is_answered_with_near_ones():
    models.register_model("small", kind="estimator")(build_small)
    with pytest.raises(TypeError, match="create_model: 'small' has no widht; did you mean width"):
        models.create_model("small", widht=3)
    with pytest.raises(TypeError, match="create_model: 'small' has no xy; there are: width"):
        models.create_model("small", xy=3)
