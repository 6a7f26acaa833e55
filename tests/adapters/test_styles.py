"""Networks in many styles: each method is right on each, or refuses it before anything changes."""

import re

import pytest
import torch
from adapters.styles import (
    ARGUMENTS,
    COMPARED,
    METHODS,
    REFUSED,
    STYLES,
    RecordedPairs,
    build,
    denoise_loop,
    frames,
    outcome,
    pairs,
    pairs_loop,
    plain_loop,
)

from tta_restore.adapters import SelfDenoise, SiamCTTA
from tta_restore.adapters.methods import self_denoise

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
WORKS = ("SelfEnsemble", "SiamCTTA", "SelfDenoise")
OF_EACH_KIND = ("plain", "second input", "depends on earlier calls", "TorchScript inside")
"""Styles on which every method is tried; the others with one method that adapts on views and one that makes pairs."""


@pytest.mark.parametrize("style", STYLES)
def test_methods_are_right_or_refuse_in_words(style):
    for method in METHODS if style in OF_EACH_KIND else ("SelfEnsemble", "SiamCTTA", "DegradationPairs"):
        said = outcome(method, style)
        if style in REFUSED:
            assert said == "yes" or re.search(REFUSED[style], said), (method, said)
            assert said != "yes" or method in ("Adapter", "SelfEnsemble"), method
        elif method in WORKS:
            assert said == "yes", (method, said)


def assert_weights(adapter, expected):
    assert adapter.student.keys() == expected.keys()
    for name, weight in adapter.student.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-5)
    own = dict(adapter.restorer.module.named_parameters())
    assert any(not torch.equal(weight, own[name]) for name, weight in adapter.student.items())


@pytest.mark.parametrize("style", COMPARED)
def test_adapted_weights_are_those_of_a_plain_loop(style):
    adapter = SiamCTTA(build(style), lr=1e-2, restore=0.0)
    for x in frames(style):
        adapter(x, **ARGUMENTS.get(style, {}))
    assert_weights(adapter, plain_loop(style))


@pytest.mark.parametrize("style", [style for style in COMPARED if style[0] not in "246"])
def test_pairs_are_learned_as_by_a_plain_loop(style):
    adapter = pairs(RecordedPairs, build(style), steps=2, batch_size=2, views="identity")
    adapter.recorded = []
    for x in frames(style):
        adapter(x, **ARGUMENTS.get(style, {}))
    assert len(adapter.recorded) == 6
    assert_weights(adapter, pairs_loop(style, adapter.recorded))


@pytest.mark.parametrize("style", COMPARED)
def test_frames_are_denoised_as_by_a_plain_loop(style, monkeypatch):
    drawn, draw = [], self_denoise.neighbor_subsamples
    monkeypatch.setattr(
        self_denoise, "neighbor_subsamples", lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1]
    )
    adapter = SelfDenoise(build(style), steps=1, lr=1e-2, views="identity")
    for x in frames(style):
        adapter(x, **ARGUMENTS.get(style, {}))
    assert_weights(adapter, denoise_loop(style, drawn))
