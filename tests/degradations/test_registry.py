"""Degradations by name, from the user's module, from JSON."""

import sys
import types
from dataclasses import dataclass

import pytest
import torch

from tta_restore.degradations import (
    Clip,
    ClipParameters,
    Degradation,
    Noise,
    create_degradation,
    list_degradations,
    register_degradation,
)


@dataclass(frozen=True)
class Darker(Degradation):
    """Half as bright."""

    factor: float = 0.5
    Parameters = ClipParameters

    def sample(self, generator, n):
        return ClipParameters(torch.full((n,), self.factor))

    def apply(self, sharp, parameters, generator=None):
        return sharp * self._expect(sharp, parameters).white[:, None, None, None]

    def distance(self, a, b):
        return (a.white - b.white).abs()


def test_shipped_names():
    assert {"blur", "motion_blur", "noise", "resize", "jpeg", "clip", "quantize", "compose"} <= set(list_degradations())
    assert create_degradation("noise", read_std=0.1) == Noise(read_std=0.1)


def test_own_degradations_have_names():
    register_degradation("darker")(Darker)
    assert "darker" in list_degradations()
    made = create_degradation({"kind": "darker", "factor": 0.25})
    assert made == Darker(0.25)
    assert create_degradation(made.to_dict()) == made
    with pytest.raises(ValueError, match="'noise' is defined twice"):
        register_degradation("noise")(Darker)


def test_module_and_class(monkeypatch):
    module = types.ModuleType("my_camera")
    module.Darker = Darker
    monkeypatch.setitem(sys.modules, "my_camera", module)
    monkeypatch.delattr(Darker, "kind", raising=False)
    made = create_degradation("my_camera:Darker", factor=0.3)
    assert isinstance(made, Darker)
    assert create_degradation(made.to_dict()) == made
    with pytest.raises(ValueError, match="cannot import 'my_camera:Brighter'"):
        create_degradation("my_camera:Brighter")
    module.Text = str
    with pytest.raises(ValueError, match="to be a subclass of Degradation"):
        create_degradation("my_camera:Text")


def test_unknown_names_and_settings():
    with pytest.raises(ValueError, match="no degradation is called 'nois'; did you mean noise"):
        create_degradation("nois")
    with pytest.raises(TypeError, match="'clip' has no wite; did you mean white"):
        create_degradation("clip", wite=0.5)
    with pytest.raises(TypeError, match="expected 'text' to be a subclass of Degradation"):
        register_degradation("text")(str)
    assert Clip.kind == "clip"
